"""Figures and tables of the loss around the networks of a run: planes, spectra, sharpness."""

import math
from typing import TYPE_CHECKING

import numpy as np

from reporting import flatness, style
from reporting.runs import Run, title
from reporting.tables import Entry, Table, number, percent, power

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 600  # of a density
WIDTH = 0.005  # of its Gaussians, as a part of the spectrum
DECADES = 8  # of a density that are drawn
MOST_SPECTRA = 4  # of one measurement, in one panel
OPERATORS = {"hessian": "Hessian", "gauss_newton": "Gauss-Newton part"}


def operator(name: str) -> str:
    """Return the name of an operator in words: 'layer2' -> 'block of layer 2'."""
    return OPERATORS.get(name, name.replace("layer", "block of layer "))


def plane(runs: list[Run]) -> "Figure":
    """log10 of the loss in a plane through a network, with the path of training, and along the plane's two axes."""
    from matplotlib.ticker import MaxNLocator

    figure = style.blank(2 * style.PANEL[0], 2.5 * len(runs), title(runs, "dataset", "plane"))
    for k, run in enumerate(runs):
        x, y = (np.asarray(run.raw[name]) for name in "xy")
        Z = np.asarray(run.raw["log_loss"]) / style.LN10
        chart, cuts = (figure.add_subplot(len(runs), 2, 2 * k + side) for side in (1, 2))
        levels = np.linspace(np.nanmin(Z), max(np.nanmax(Z), np.nanmin(Z) + 1e-9), 20)
        filled = chart.contourf(x, y, Z, levels, cmap="viridis")
        filled.set_rasterized(True)
        chart.contour(x, y, Z, levels, colors="w", linewidths=0.25, alpha=0.6)
        if "path" in run.raw:
            path = np.vstack([run.raw["path"], [0.0, 0.0]])
            chart.plot(*path.T, ".-", color="w", linewidth=0.8, markersize=3)
            for eid, at in zip(run.raw["path_eids"][:1], path, strict=False):
                side = "right" if at[0] > x.mean() else "left"
                chart.annotate(f"epoch {eid}", at, (0, 4), ha=side, textcoords="offset points", fontsize=7, color="w")
        chart.plot(0, 0, "o", color="w", markeredgecolor="k", markersize=4)
        names = ["first direction", "second direction"]
        if "explained" in run.raw:
            parts = zip(("first", "second"), run.raw["explained"], strict=True)
            names = [f"{name} component, {100 * part:.1f} %" for name, part in parts]
        chart.set(xlabel=names[0], ylabel=names[1])
        chart.grid(False)
        chart.set_title(style.wrapped(", ".join(filter(None, [run.label, run.raw["network"]])), style.PANEL[0]))
        figure.colorbar(filled, ax=chart, pad=0.02, ticks=MaxNLocator(7)).set_label("log₁₀ loss")
        looks = style.cycle(2)
        cuts.plot(x, Z[np.abs(y).argmin()], **looks[0], label="along the first")
        cuts.plot(y, Z[:, np.abs(x).argmin()], **looks[1], label="along the second")
        cuts.set(xlabel="distance from the network" if "path" in run.raw else "filters' norms", ylabel="log₁₀ loss")
    return style.with_legend(figure, cuts)


def spectrum(runs: list[Run]) -> "Figure | None":
    """Log density of the Hessian's spectrum against the eigenvalue over the loss, one panel per operator.

    From stochastic Lanczos quadrature (Ghorbani et al. 2019): Gaussians at the Ritz values. One curve per network, of
    at most four of each measurement.
    """
    curves = [
        (run, name, which, found)
        for run in runs
        for name, network in _few(run.raw).items()
        for which, found in network.get("density", {}).items()
    ]
    if not curves:
        return None
    which = list(dict.fromkeys(curve[2] for curve in curves))
    columns = min(len(which), 2)
    figure, axes = style.panels(math.ceil(len(which) / columns), columns, title(runs, "dataset"))
    panels = dict(zip(which, np.atleast_1d(axes).ravel(), strict=False))
    labels = list(dict.fromkeys(", ".join(filter(None, [run.label, name])) for run, name, _, _ in curves))
    looks = dict(zip(labels, style.series(labels), strict=True))
    for run, name, part, found in curves:
        network = run.raw[name]
        unit = math.exp(network["log_frame"] - network["log_loss"])
        at, height = smoothed(np.asarray(found["values"]) * unit, np.asarray(found["weights"]))
        with np.errstate(divide="ignore"):
            panels[part].plot(at, np.log10(height), **looks[", ".join(filter(None, [run.label, name]))])
    for name, panel in panels.items():
        panel.set(xlabel="eigenvalue / loss", ylabel="log₁₀ density")
        top = max(line.get_ydata().max() for line in panel.lines)
        panel.set_ylim(top - DECADES, top + 0.5)
        panel.set_title(operator(name))
    for panel in np.atleast_1d(axes).ravel()[len(which) :]:
        panel.set_axis_off()
    return style.with_legend(figure, next(iter(panels.values())))


def _few(networks: dict[str, dict]) -> dict[str, dict]:
    """Return at most MOST_SPECTRA networks, the first and the last among them."""
    names = list(networks)
    chosen = np.linspace(0, len(names) - 1, min(len(names), MOST_SPECTRA)).round().astype(int)
    return {names[k]: networks[names[k]] for k in chosen}


def smoothed(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (position, density) at POINTS points: each value becomes a Gaussian, WIDTH of the spectrum wide."""
    low, high = values.min(), values.max()
    width = WIDTH * max(high - low, 1e-300)
    at = np.linspace(low - 5 * width, high + 5 * width, POINTS)
    bumps = np.exp(-0.5 * ((at[:, None] - values) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return at, bumps @ weights


def sharpness(runs: list[Run]) -> "Figure":
    """log10 of the largest (solid) and the mean loss (dashed) in a ball, against its size, one curve per network.

    One panel for each way to measure the ball.
    """
    kinds = list(dict.fromkeys(kind for run in runs for found in run.raw.values() for kind in found["sharpness"]))
    figure, axes = style.panels(1, len(kinds), title(runs, "dataset"))
    panels = dict(zip(kinds, np.atleast_1d(axes), strict=True))
    named = [(run, name, ", ".join(filter(None, [run.label, name]))) for run in runs for name in run.raw]
    looks = style.series([label for _, _, label in named])
    for (run, name, _), look in zip(named, looks, strict=True):
        network = run.raw[name]
        for kind, found in network["sharpness"].items():
            worst, average = (np.asarray(found[key]) / style.LN10 for key in ("worst", "average"))
            panels[kind].plot(found["rho"], worst, marker="o", **look | {"linestyle": "-"})
            panels[kind].plot(found["rho"], average, marker="^", **look | {"linestyle": "--", "label": None})
            start = network["log_loss"] / style.LN10
            panels[kind].axhline(start, color=look["color"], linewidth=0.5, alpha=0.5)
    for kind, panel in panels.items():
        relative = {"norm": "of all weights", "layer": "of each layer", "element": "of each weight"}
        panel.set(xlabel=f"ρ, relative to the norm {relative[kind]}", xscale="log")
        panel.set_ylabel("log₁₀ loss, worst (○), mean (△)")
    return style.with_legend(figure, panels[kinds[0]])


# Tables


def plane_table(entries: list[Entry]) -> list[Table]:
    """Return the table of surfaces: network, plane, range of the losses."""
    rows = []
    for entry in entries:
        raw = entry.run.raw
        Z = np.asarray(raw["log_loss"]) / style.LN10
        explained = [percent(part) for part in raw["explained"]] if "explained" in raw else None
        grid = " × ".join(map(str, Z.shape))
        epochs = number(len(raw["path_eids"])) if "path_eids" in raw else None
        ends = [number(float(end(Z))) for end in (np.nanmin, np.nanmax)]
        rows.append([entry, raw["network"], raw["plane"], grid, *ends, epochs, explained])
    head = ["surface", "through", "plane", "grid", "lowest log10 loss", "highest", "epochs on the path"]
    return [Table("log of the loss in a plane", [*head, "explained variance"], rows, entries)]


def curvature_tables(entries: list[Entry]) -> list[Table]:
    """Return the tables of eigenvalues and traces, and of the traces and ends of each density."""
    rows = []
    for entry in entries:
        for name, network in entry.run.raw.items():
            frame = network["log_frame"]
            for which, found in network.get("density", {}).items():
                values, weights = (np.asarray(found[key]) for key in ("values", "weights"))
                trace = f"{power(found['trace'], frame)} ± {power(found['trace_error'], frame)}"
                ends = [power(float(end), frame) for end in (values.min(), values.max())]
                size = weights * np.abs(values)
                negative = percent(float(size[values < 0].sum() / size.sum())) if size.any() else None
                rows.append([entry, name, operator(which), number(found["parameters"]), *ends, negative, trace])
    head = ["measurement", "network", "of", "parameters", "smallest", "largest", "negative share of |trace|"]
    tables = flatness.curvature_table(entries)
    if rows:
        spectra = [entry for entry in entries if any("density" in found for found in entry.run.raw.values())]
        tables.append(Table("Spectra, by stochastic Lanczos quadrature", [*head, "trace"], rows, spectra))
    return tables


def sharpness_table(entries: list[Entry]) -> list[Table]:
    """Return the table of the largest and mean log loss for each network, kind of ball and rho."""
    rows = []
    for entry in entries:
        for name, network in entry.run.raw.items():
            for kind, found in network["sharpness"].items():
                columns = (found[key] for key in ("rho", "worst", "average", "average_error"))
                for rho, worst, average, error in zip(*columns, strict=True):
                    logs = [number(value / style.LN10) for value in (network["log_loss"], worst, average)]
                    rows.append([entry, name, kind, number(rho), *logs, percent(error)])
    head = ["measurement", "network", "ball relative to", "rho", "log10 loss", "log10 loss, worst", "on average"]
    caption = "Sharpness: the loss in a ball around the weights"
    return [Table(caption, [*head, "standard error of the mean loss"], rows, entries)]
