"""Figures and tables of flatness measurements."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reporting import style
from reporting.runs import Run, say, styles, title
from reporting.tables import Entry, Table, number, plus_minus, power
from storage.read import are_epochs_of_one_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SURFACE_CLIP = 3.5
SURFACE_VIEWS = {  # (elevation, azimuth) in degrees, by (data set, random labels)
    ("mnist", False): (60, 225),
    ("mnist", True): (65, 225),
    ("cifar10", False): (50, 225),
    ("cifar10", True): (50, 225),
}


def _places(runs: list[Run]) -> tuple[dict[str, int], bool]:
    """Return the position of each network on an axis, and whether that is its epoch.

    Networks are placed side by side unless they are several epochs of one run.
    """
    names = list(dict.fromkeys(name for run in runs for name in networks_of(run)))
    epochs = {name: eid for run in runs for name, eid in run.measured.items() if name in names}
    if len(epochs) == len(names) and are_epochs_of_one_run(list(epochs.values())):
        return dict(sorted(epochs.items(), key=lambda item: item[1])), True
    return {name: k for k, name in enumerate(names)}, False


def networks_of(run: Run) -> dict[str, dict]:
    """Return {name: results} of the measured networks."""
    return run.raw.get("networks", run.raw)


def _epochs(axes: "Axes") -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def profiles(runs: list[Run]) -> "Figure":
    """The loss along each random direction up to the radius, one panel per measurement.

    The walks to the flatness radius (arXiv 1801.02254, section IV).
    """
    n_columns = min(len(runs), 2)
    figure, axes = style.panels(math.ceil(len(runs) / n_columns), n_columns, title(runs, "dataset", "random_labels"))
    panels = np.atleast_1d(axes).ravel()
    names = list(_places(runs)[0])
    looks = dict(zip(names, style.series(names), strict=True))
    for run, panel in zip(runs, panels, strict=False):
        for name, found in run.raw["networks"].items():
            look = looks[name] | {"label": None}
            for profile in found["profiles"]:
                walked = run.flags["radius_step"] * np.arange(len(profile))
                change = np.asarray(profile) - found["I"]
                panel.plot(walked, change, **look | {"linewidth": 0.5, "alpha": 0.45})
                panel.plot(walked[-1], change[-1], ".", color=look["color"], markersize=2.5)
        threshold = run.flags["threshold"]
        panel.axhline(threshold, color="0.3", linewidth=0.7, linestyle="--")
        panel.set(xlabel="distance walked", ylabel="change of the loss I")
        panel.set_title(style.wrapped(run.label, style.PANEL[0]))
        panel.set_xlim(0, None)
        panel.set_ylim(None, 1.15 * threshold)
    for look in looks.values():
        panels[0].plot([], [], **look)
    for panel in panels[len(runs) :]:
        panel.set_axis_off()
    return style.with_legend(figure, panels[0])


def radii(runs: list[Run]) -> "Figure":
    """Every direction's radius and each network's mean; for the paper's own experiments, the published mean ± sd.

    Epochs of a run are placed at their numbers; other networks side by side, one group per measurement.
    """
    figure, axes = style.panels(1, 1, title(runs, "dataset", "random_labels"), width=max(1, 0.47 * len(runs)))
    places, in_time = _places(runs)
    of_runs, of_networks = styles(runs), dict(zip(places, style.series(list(places)), strict=True))
    for k, run in enumerate(runs):
        networks = run.raw["networks"]
        at = [places[name] for name in networks]
        if not in_time:
            at = k + (np.linspace(-0.22, 0.22, len(networks)) if len(networks) > 1 else np.zeros(1))
        for x, (name, found) in zip(at, networks.items(), strict=True):
            look = of_runs[k] if in_time else of_networks[name]
            values, counts = np.unique(found["radii"], return_counts=True)
            axes.scatter(np.full(len(values), x), values, 4 + 5 * counts, color=look["color"], alpha=0.5, linewidth=0)
            if not in_time:
                width = min(0.09, 0.3 / len(networks))
                axes.plot([x - width, x + width], [found["mean"]] * 2, **look | {"linestyle": "-"})
        if in_time:
            axes.plot(at, [found["mean"] for found in networks.values()], **of_runs[k])
        if run.raw["row"].get("published"):
            axes.errorbar(
                max(at) if in_time else k + 0.38, *run.raw["row"]["published"], fmt="D", color="k",
                markersize=3, capsize=2, linewidth=0.8, label="published, mean ± sd",
            )  # fmt: skip
    if in_time:
        _epochs(axes)
    else:
        said = [run.label or say("params", run.flags["params"]) for run in runs]
        inches = figure.get_figwidth() / len(runs)
        lines = ["\n".join(style.wrapped(part, inches, 0) for part in text.split(", ")) for text in said]
        axes.set_xticks(range(len(runs)), lines)
        axes.set_xlim(-0.5, len(runs) - 0.4)
    axes.set_ylabel("flatness radius (•), mean (–)")
    axes.set_ylim(0, None)
    return style.with_legend(figure, axes)


def radius_loss(runs: list[Run]) -> "Figure | None":
    """Each network's radius, mean ± standard error over its directions, against its training loss.

    Drawn for three networks or more: the radius depends on the length of the training.
    """
    if sum(len(run.raw["networks"]) for run in runs) < 3:
        return None
    figure, axes = style.panels(1, 1, title(runs, "dataset", "random_labels"), width=1.2)
    for run, look in zip(runs, styles(runs), strict=True):
        networks = list(run.raw["networks"].values())
        radii = [np.asarray(found["radii"], np.float64) for found in networks]
        errors = [r.std(ddof=1) / math.sqrt(len(r)) if len(r) > 1 else 0.0 for r in radii]
        means = [found["mean"] for found in networks]
        axes.errorbar(
            [found["I"] for found in networks], means, errors, fmt="o", capsize=2, linewidth=0.8,
            color=look["color"], label=look["label"],
        )  # fmt: skip
        if run.raw["row"].get("published"):
            mean, sd = run.raw["row"]["published"]
            axes.axhspan(mean - sd, mean + sd, color=look["color"], alpha=0.12, linewidth=0)
    band = " (band: published)" if any(run.raw["row"].get("published") for run in runs) else ""
    axes.set(xlabel="training loss I(w)", xscale="log", ylabel=f"flatness radius{band}", ylim=(0, None))
    return style.with_legend(figure, axes)


def surfaces(runs: list[Run]) -> "Figure":
    """The loss in the plane of three networks, as in the paper and as a map, one row per surface."""
    from matplotlib.ticker import MaxNLocator

    figure = style.blank(2 * style.PANEL[0], 2.6 * len(runs), title(runs, "dataset", "random_labels"))
    for k, run in enumerate(runs):
        X, Y, Z = (np.asarray(run.raw[name]) for name in "XYZ")
        side = figure.add_subplot(len(runs), 2, 2 * k + 1, projection="3d")
        plot_surface(side, X, Y, Z, view_of(run), zoom=1.3)
        chart = figure.add_subplot(len(runs), 2, 2 * k + 2)
        clipped = _clipped(Z)
        low, high = _colour_range(clipped)
        levels = np.linspace(low, high, 15)
        filled = chart.contourf(X, Y, clipped, levels, cmap="coolwarm")
        filled.set_rasterized(True)
        chart.contour(X, Y, clipped, levels, colors="k", linewidths=0.25, alpha=0.6)
        names = run.raw["networks"]
        for name, x, y in zip(names, (1, 0, 0), (0, 1, 0), strict=True):  # Z = 1 - X - Y is the third
            chart.plot(x, y, "o", color="w", markeredgecolor="k", markersize=4)
            chart.annotate(
                name, (x, y), (-4 if x else 4, 4), ha="right" if x else "left",
                textcoords="offset points", fontsize=7,
                bbox={"facecolor": "w", "alpha": 0.7, "linewidth": 0, "pad": 0.8},
            )  # fmt: skip
        chart.set(xlabel=f"share of {names[0]}", ylabel=f"share of {names[1]}", aspect="equal")
        chart.grid(False)
        bar = figure.colorbar(filled, ax=chart, ticks=MaxNLocator(7), pad=0.02)
        bar.set_label("training loss" + (f" (clipped at {SURFACE_CLIP})" if np.nanmax(Z) > SURFACE_CLIP else ""))
        chart.set_title(style.wrapped(run.label, style.PANEL[0]))
    return figure


def view_of(run: Run) -> tuple[int, int]:
    """Return elevation and azimuth of the paper's view of such a surface."""
    random = run.flags["random_labels"] is not None
    return SURFACE_VIEWS.get((run.flags["dataset"], random), SURFACE_VIEWS["mnist", random])


def _clipped(Z: np.ndarray) -> np.ndarray:
    return np.minimum(np.nan_to_num(Z, nan=SURFACE_CLIP, posinf=SURFACE_CLIP), SURFACE_CLIP)


def _colour_range(clipped: np.ndarray) -> tuple[float, float]:
    """Return the losses at both ends of the colour scale, which map and surface share."""
    return clipped.min(), max(clipped.max(), clipped.min() + 1e-12)


def plot_surface(
    axes: "Axes", X: np.ndarray, Y: np.ndarray, Z: np.ndarray, view: tuple[int, int], zoom: float = 1
) -> None:
    """Draw the loss in the plane of three networks as arXiv 1801.02254 does, section IV.

    Args:
      axes: with projection='3d'.
      X, Y, Z: [n, n]; Z is the loss. It is clipped at 3.5; NaN counts as that.
      view: elevation and azimuth, degrees: `view_of`.
      zoom: as in matplotlib's set_box_aspect.
    """
    clipped = _clipped(Z)
    low, high = _colour_range(clipped)
    drawn = axes.plot_surface(
        X, Y, clipped, cmap="coolwarm", vmin=low, vmax=high, rcount=len(X), ccount=len(X), linewidth=0,
        antialiased=False,
    )  # fmt: skip
    drawn.set(rasterized=True, clip_on=False)
    axes.view_init(*view)
    axes.set_box_aspect(None, zoom=zoom)
    axes.set_axis_off()


def curvature(runs: list[Run]) -> "Figure":
    """The Hessian's largest eigenvalues and its trace, and both over the loss, of each network."""
    figure, (left, right) = style.panels(1, 2, title(runs, "dataset"))
    places, in_time = _places(runs)
    for run, look in zip(runs, styles(runs), strict=True):
        networks = list(run.raw.values())
        values = [*zip(*(found["eigenvalues"] for found in networks), strict=True)]
        values += [[found["trace"] for found in networks]]
        frame, loss = (np.array([found[k] for found in networks]) / style.LN10 for k in ("log_frame", "log_loss"))
        with np.errstate(divide="ignore", invalid="ignore"):
            *logs, trace = np.log10(np.array(values, np.float64)) + frame
            error = np.array([found["trace_error"] for found in networks]) / np.array(values[-1])
            bars = np.abs([np.log10(np.maximum(1 - error, 0.01)), np.log10(1 + error)])  # no axis reaches 0
            bars[:, ~np.isfinite(trace)] = 0  # nor a trace below it
        faint = look | {"label": None, "linewidth": 0.6}
        x = [places[name] for name in run.raw]
        for panel, unit in ((left, 0), (right, loss)):
            for k, largest in enumerate(logs):
                panel.plot(x, largest - unit, marker="o", **(faint | {"alpha": 0.5} if k else look))
            panel.errorbar(x, trace - unit, bars, capsize=2, marker="^", markerfacecolor="w", **faint)
    for panel, what in ((left, ""), (right, ", over the loss")):
        if in_time:
            _epochs(panel)
        else:
            every = math.ceil(len(places) / 5)  # as many labels as there is room for
            names = [name.replace(" epoch", "\nepoch") for name in places]
            panel.set_xticks(range(0, len(names), every), names[::every])
        panel.set_ylabel(f"log₁₀{what}")
    for marker, face, name in (("o", "0.4", "largest eigenvalues"), ("^", "w", "trace")):
        left.plot([], [], marker=marker, color="0.4", markerfacecolor=face, linewidth=0.6, label=name)
    return style.with_legend(figure, left)


# Tables


def radius_tables(entries: list[Entry]) -> list[Table]:
    """Return Table 1 of arXiv 1801.02254 with the published and our values, and the table of the networks."""
    averaged = [e for e in entries if not are_epochs_of_one_run(list(e.run.measured.values()))]
    rows, networks = [], []
    for entry in averaged:
        flags, row = entry.run.flags, entry.run.raw["row"]
        rows.append(
            [
                entry,
                Path(flags["dataset"]).stem,
                say("random_labels", flags["random_labels"]),
                say("params", flags["params"]),
                number(len(entry.run.raw["networks"])),
                plus_minus(row["mean"], row["sd"]),
                plus_minus(*row["published"]) if row.get("published") else None,
                number(row.get("standard_errors"), ".1f"),
                plus_minus(row["by_norm_mean"], row["by_norm_sd"]),
            ]
        )
    for entry in entries:
        for name, found in entry.run.raw["networks"].items():
            few = [number(found["I"]), number(found["mean"], ".4f"), number(found["norm"], ".4f")]
            by_norm = number(found["mean_by_norm"], ".4f")
            networks.append([entry, name, *few, by_norm, number(len(found["radii"]))])
    head = ["measurement", "data", "labels", "perturbed", "networks", "radius", "published"]
    head += ["standard errors apart", "radius / norm"]
    about = "mean ± standard deviation over networks; published: arXiv 1801.02254, table 1"
    few = ["measurement", "network", "loss I(w)", "radius, mean", "norm", "radius / norm", "directions"]
    first = [Table(f"Flatness radius: {about}", head, rows, averaged)] if averaged else []
    return [*first, Table("Flatness radius of each network", few, networks, entries)]


def surface_table(entries: list[Entry]) -> list[Table]:
    """Return the table of surfaces: networks, grid, range of the losses."""
    rows = []
    for entry in entries:
        flags, Z = entry.run.flags, entry.run.raw["Z"]
        labels = say("random_labels", flags["random_labels"])
        names = ", ".join(entry.run.raw["networks"])
        low, high = number(float(Z.min())), number(float(Z.max()))
        grid = " × ".join(map(str, Z.shape))
        rows.append([entry, Path(flags["dataset"]).stem, labels, names, grid, low, high])
    head = ["surface", "data", "labels", "through", "grid", "lowest loss", "highest loss"]
    return [Table("Loss in the plane of three networks", head, rows, entries)]


def curvature_table(entries: list[Entry]) -> list[Table]:
    """Return the table of largest eigenvalues and traces, in units of the true loss."""
    rows = []
    for entry in entries:
        for name, found in entry.run.raw.items():
            frame = found["log_frame"]
            trace = f"{power(found['trace'], frame)} ± {power(found['trace_error'], frame)}"
            values = ", ".join(power(value, frame) for value in found["eigenvalues"])
            log10_loss = number(found["log_loss"] / style.LN10)
            sharp = [number(found.get(key), ".4g") for key in ("sharpness", "lr_sharpness")]
            rows.append([entry, name, log10_loss, values, *sharp, trace, number(found["parameters"])])
    head = ["measurement", "network", "log10 loss", "largest eigenvalues", "largest / loss", "largest × lr", "trace"]
    head += ["parameters"]
    return [Table("The training loss's Hessian", head, rows, entries)]
