"""Figures and table of training runs."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from catalogue.measures import ASKED_FOR, FIGURES, SHORT, describe
from models.lr_scheduler import steps_of
from reporting import style
from reporting.runs import UNLABELLED, Run, columns, groups, styles, title
from reporting.tables import Code, Entry, Soft, Table, compared, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _plot(axes: "Axes", runs: list[Run], *names: str, to: Callable = lambda *values: values) -> None:
    """Plot one curve per run: `to` maps the numbers with these names to coordinates."""
    for run, look in zip(runs, styles(runs), strict=True):
        axes.plot(*to(*columns(run, *names)), **look)


MARGINS = {"q_bar_min": f"normalized margin\n{style.MARGIN}", "q_bar2_min": f"normalized margin\n{style.MARGIN2}"}


def loss_margin(runs: list[Run]) -> "Figure":
    """Training loss and normalized margin against epoch.

    As figure 1 of arXiv 1906.05890.
    """
    figure, (left, right) = style.panels(1, 2, title(runs))
    _plot(left, runs, "eid", "log_loss", to=lambda eid, log_loss: (eid, log_loss / style.LN10))
    _plot(right, runs, "eid", "q_bar_min")
    left.set(xlabel="epoch", ylabel="log₁₀ training loss")
    right.set(xlabel="epoch", ylabel=MARGINS["q_bar_min"])
    for axes in (left, right):
        axes.set_xlim(0, None)
    style.show_the_rise(right)
    return style.with_legend(figure, left)


SMOOTHED = {"q_bar_min": "smoothed_q_bar", "q_bar2_min": "smoothed_q_bar2"}
SMOOTHED |= {name: f"smoothed_{name}" for name in ("q_bar_linf", "q_bar_spectral")}
OF_NORMS = {"q_bar_min": "L2 norm", "q_bar_linf": "L∞ norm", "q_bar_spectral": "spectral norm"}


def _smoothed(axes: "Axes", runs: list[Run], x: str, name: str, to: Callable) -> None:
    """Plot the smoothed margin, thin, and the band between its lower bound and q_min."""
    for run, look in zip(runs, styles(runs), strict=True):
        at, log_loss, q_min, margin, smoothed = columns(run, x, "log_loss", "q_min", name, SMOOTHED[name])
        there = np.isfinite(smoothed)
        axes.plot(to(at[there]), smoothed[there], **look | {"label": None, "linewidth": 0.5})
        n, n_classes = (run.about.get("data", {}).get(key) for key in ("train", "classes"))
        if n and n_classes and there.any():
            at, log_loss, q_min, margin = (values[there] for values in (at, log_loss, q_min, margin))
            lowest = q_min - math.log(n * (n_classes - 1)) - n * np.exp(log_loss)
            axes.fill_between(to(at), lowest * margin / q_min, margin, color=look["color"], alpha=0.2, linewidth=0)


def margins(runs: list[Run]) -> "Figure":
    """Both normalized margins against epoch and against the loss, on axes that show every decade.

    Thin: the smoothed margins, G / rhoL and G / norm_prod. Band: their bounds (docs/theory.md).
    """
    figure, axes = style.panels(2, 2, title(runs), sharex="col", sharey="row")
    for (name, shown), row in zip(MARGINS.items(), axes, strict=True):
        _plot(row[0], runs, "eid", name)
        _plot(row[1], runs, "log_loss", name, to=lambda log_loss, margin: (log_loss / style.LN10, margin))
        _smoothed(row[0], runs, "eid", name, lambda eid: eid)
        _smoothed(row[1], runs, "log_loss", name, lambda log_loss: log_loss / style.LN10)
        row[0].set_ylabel(shown)
    style.epochs_by_decade(axes[1, 0])
    style.loss_axis(axes[1, 1])
    for panel in axes.flat:
        style.show_the_rise(panel)
    return style.with_legend(figure, axes[0, 0])


def norm_margins(runs: list[Run]) -> "Figure | None":
    """Normalized margins in three norms against the loss, of runs that recorded `norm_margins`."""
    own = [run for run in runs if columns(run, *OF_NORMS).size]
    if not own:
        return None
    figure, axes = style.panels(1, len(OF_NORMS), title(own))
    for panel, (name, norm) in zip(axes, OF_NORMS.items(), strict=True):
        _plot(panel, own, "log_loss", name, to=lambda log_loss, margin: (log_loss / style.LN10, margin))
        style.loss_axis(panel)
        style.show_the_rise(panel)
        panel.set_title(f"margin in the {norm}")
    return style.with_legend(figure, axes[0])


def norm_margin_table(entries: list[Entry]) -> list[Table]:
    """Return the table of the margins in three norms at the lowest loss that every run with such margins reaches."""
    found = [(entry, columns(entry.run, "eid", "log_loss", *OF_NORMS)) for entry in entries]
    found = [(entry, values[:, (values[2:] > 0).all(axis=0)]) for entry, values in found if values.size]
    found = [(entry, values) for entry, values in found if values.size]
    if not found:
        return []
    common = max(values[1].min() for _, values in found)
    at = np.array([values[:, np.argmax(values[1] <= common)] for _, values in found])
    largest = at[:, 2:].max(axis=0)
    rows = []
    for (entry, _), (eid, log_loss, *values) in zip(found, at, strict=True):
        margins = [[number(value), f" ({value / best:.0%})"] for value, best in zip(values, largest, strict=True)]
        rows.append([entry, number(eid), number(log_loss / style.LN10, ".4g"), *margins])
    head = ["run", "epoch", "log10 training loss", *(f"margin in the {norm}" for norm in OF_NORMS.values())]
    about = "the first measured epoch below a loss that all runs reach; in brackets, relative to the largest"
    return [Table(f"Margins by norm: {about}", head, rows, [entry for entry, _ in found])]


ACCURACY_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 100)


def accuracy(runs: list[Run]) -> "Figure":
    """Training and test accuracy, on an axis that is stretched towards 100 %."""
    figure, (left, right) = style.panels(1, 2, title(runs), sharey=True)
    for axes, name in ((left, "acc"), (right, "test_acc")):
        _plot(axes, runs, "eid", name, to=lambda eid, accuracy: (eid, 100 * accuracy))
        style.epochs_by_decade(axes)
    lowest = min(left.dataLim.y0, right.dataLim.y0)
    nearest = 0.2  # percent: how much of the last stretch before 100 % is shown
    left.set_yscale(
        "function",
        functions=(lambda a: -np.log10(np.maximum(100 + nearest - a, 1e-3)), lambda t: 100 + nearest - 10.0**-t),
    )
    left.set_yticks(ACCURACY_TICKS, [f"{tick:g}" for tick in ACCURACY_TICKS])
    left.set_ylim(max(0, min(lowest - 2, 98)), 100 + nearest / 3)
    left.set_ylabel("training accuracy, %")
    right.set_ylabel("test accuracy, %")
    right.tick_params(labelleft=True)
    return style.with_legend(figure, left)


def norms(runs: list[Run]) -> "Figure":
    """Each layer's norm, and the growth of its square, one row per run.

    Under gradient flow the growth is equal in every layer of a homogeneous network (Du, Hu and Lee,
    arXiv 1806.00900).
    """
    keys = [set().union(*(info["stats"] for info in run.raw.values())) for run in runs]
    names = [sorted((k for k in own if k[:4] == "rho_"), key=lambda k: int(k[4:])) for own in keys]
    longest = max(names, key=len)
    styles = dict(zip(longest, style.cycle(len(longest)), strict=True))
    figure, axes = style.panels(len(runs), 2, title(runs), sharex=True)
    for run, own, (left, right) in zip(runs, names, axes.reshape(-1, 2), strict=True):
        for name in own:
            eid, rho = columns(run, "eid", name)
            look = styles[name] | {"label": f"layer {int(name[4:]) + 1}"}
            left.plot(eid, rho, **look)
            right.plot(eid, rho**2 - rho[:1] ** 2, **look)
        left.set_yscale("log")
        left.set_ylabel(r"norm of a layer $\rho_k$")
        right.set_ylabel(r"growth of $\rho_k^2$")
        for panel in (left, right):
            panel.set_title(style.wrapped(run.label, style.PANEL[0]))
    for panel in axes.reshape(-1, 2)[-1]:
        style.epochs_by_decade(panel)
    return style.with_legend(figure, axes.reshape(-1, 2)[names.index(longest), 0])


def steps(runs: list[Run]) -> "Figure":
    """Learning rates in the frame and true ones, attempts and time of each epoch."""
    figure, axes = style.panels(2, 2, title(runs), sharex=True)
    (relative, true), (attempts, seconds) = axes
    _plot(relative, runs, "eid", "lr")
    _plot(true, runs, "eid", "lr", "log_frame", to=lambda eid, lr, frame: (eid, np.log10(lr) - frame / style.LN10))
    for panel, name in ((attempts, "attempts"), (seconds, "time")):
        _plot(panel, runs, "eid", name, to=lambda eid, value: (eid, smoothed(value)))
    relative.set(ylabel="lr in the frame", yscale="log")
    true.set(ylabel="log₁₀ lr")
    mean = ", running mean" if max(len(run.raw) for run in runs) >= 100 else ""
    attempts.set(ylabel=f"attempts per epoch{mean}", xlabel="epoch", ylim=(0, None))
    seconds.set(ylabel=f"seconds per epoch{mean}", xlabel="epoch", ylim=(0, None))
    attempts.set_xlim(0, None)
    return style.with_legend(figure, relative)


def over_seeds(runs: list[Run]) -> "Figure | None":
    """Mean over seeds, and a band of one standard deviation: loss, normalized margin, test error.

    Runs that differ only in the seed are one curve, up to the last epoch that all of them have.
    """
    same = groups(runs, lambda run: tuple(sorted((k, str(v)) for k, v in run.meant.items() if k not in PER_SEED)))
    same = {key: own for key, own in same.items() if len({run.flags["seed"] for run in own}) > 1}
    if not same:
        return None
    figure, axes = style.panels(1, 3, title(runs))
    names = {"log_loss": "log₁₀ training loss", "q_bar_min": MARGINS["q_bar_min"], "test_acc": "test error, %"}
    for own, look in zip(same.values(), style.cycle(len(same)), strict=True):
        curve = f"{drop_seed(own[0].label) or 'mean'}, {len(own)} seeds"
        for panel, name in zip(axes, names, strict=True):
            found = [dict(zip(*columns(run, "eid", name), strict=True)) for run in own]
            eids = sorted(set.intersection(*(set(values) for values in found)))
            values = np.array([[values[eid] for eid in eids] for values in found])
            if name == "log_loss":
                values = values / style.LN10
            if name == "test_acc":
                values = 100 * (1 - values)
            mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
            panel.plot(eids, mean, **look | {"label": curve})
            panel.fill_between(eids, mean - sd, mean + sd, color=look["color"], alpha=0.25, linewidth=0)
    for panel, name in zip(axes, names, strict=True):
        panel.set(xlabel="epoch", ylabel=names[name])
        panel.set_xlim(0, None)
    return style.with_legend(figure, axes[0])


PER_SEED = {"seed", *UNLABELLED}


def drop_seed(label: str) -> str:
    """Return a run's label without its seed."""
    return ", ".join(part for part in label.split(", ") if not part.startswith("seed "))


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a fiftieth of all values; near the ends, over those that exist."""
    ones = np.ones(max(1, len(values) // 50))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _recorded(runs: list[Run]) -> dict[str, None]:
    """Return all keys of stats, in their order."""
    return {key: None for run in runs for info in run.raw.values() for key in info["stats"]}


def of_catalogue(name: str, runs: list[Run]) -> "Figure | None":
    """Draw a figure of `catalogue.measures.FIGURES`: one colour per run, one dash per key. None without numbers."""

    def seen(key: str) -> bool:
        return any(np.isfinite(columns(run, key)).any() for run in runs)

    panels = [panel for panel in FIGURES[name].panels if any(map(seen, panel.keys))]
    if not panels:
        return None
    figure, axes = style.panels(math.ceil(len(panels) / 2), 2, title(runs), squeeze=False)
    for panel, place in zip(panels, axes.flat, strict=False):
        keys = dict(zip(panel.keys, style.DASHES, strict=False))
        for key, dash in keys.items():
            for run, look in zip(runs, styles(runs), strict=True):
                eid, value = columns(run, "eid", key)
                value = np.where(value > 0, value, np.nan) if panel.log else value
                if np.isfinite(value).any():
                    of_key: dict[str, Any] = {"linestyle": dash} if len(keys) > 1 else {}
                    of_key |= {} if dash == style.DASHES[0] else {"label": None}
                    marker = {"marker": "o", "markersize": 2} if len(eid) <= FEW else {}
                    place.plot(eid, value, **look | of_key | marker)
        if panel.level is not None:
            place.axhline(panel.level, color="0.4", linewidth=0.6, zorder=1)
        if panel.log and place.lines:
            place.set_yscale("log")
        place.set(xlabel="epoch", title=style.wrapped(panel.title, style.PANEL[0]))
        if len(keys) > 1:  # a colour for each run, a dash for each number
            style.legend_below(place, {SHORT.get(key, key): dash for key, dash in keys.items() if seen(key)})
    for place in list(axes.flat)[len(panels) :]:
        place.set_axis_off()
    return style.with_legend(figure, axes.flat[0])


def linear(runs: list[Run]) -> "Figure | None":
    """A linear network's normalized margin relative to the hard-margin SVM's, and the gap against log T.

    T is the time of the flow. The gap falls approximately as 1 / log T.
    """
    own = [run for run in runs if columns(run, "q_bar_svm").size]
    if not own:
        return None
    figure, (left, right) = style.panels(1, 2, title(own))
    for run, look in zip(own, styles(own), strict=True):
        best = columns(run, "q_bar_svm")[0, -1]
        eid, margin, smoothed, lr, frame = columns(run, "eid", "q_bar_min", "smoothed_q_bar", "lr", "log_frame")
        left.plot(eid, margin, **look | {"label": run.label or "margin"})
        left.plot(eid, smoothed, **look | {"label": "smoothed", "linewidth": 0.6})
        left.axhline(best, color="k", linewidth=0.8, linestyle=":", label="hard-margin SVM")
        log_time = np.logaddexp.accumulate(np.log(lr) - frame) + _log_steps(run)
        shown = (log_time > 1) & (margin < best)
        right.plot(log_time[shown], 1 - margin[shown] / best, **look)
        if shown.any():
            t, gap = log_time[shown], 1 - margin[shown] / best
            right.plot(t, gap[-1] * t[-1] / t, color="0.5", linewidth=0.8, linestyle="--", label="∝ 1 / log T")
    left.set(xlabel="epoch", ylabel=MARGINS["q_bar_min"])
    style.epochs_by_decade(left)
    style.show_the_rise(left)
    right.set(xlabel="log T, T the time of the flow", ylabel=r"$1 - \bar q_{\min} / \bar q_{\mathrm{SVM}}$")
    if right.lines and any(len(line.get_xdata()) for line in right.lines):
        right.set(xscale="log", yscale="log")
    for axes in (left, right):
        style.legend_below(axes)
    return figure


def _log_steps(run: Run) -> float:
    """Return log(gradient steps per epoch / examples); 0 where the number of examples is unknown."""
    n = run.about.get("data", {}).get("train")
    return math.log(max(steps_of(n, run.flags["B"], run.flags["drop_last"]), 1) / n) if n else 0.0


def asked_for(runs: list[Run]) -> "Figure | None":
    """The numbers requested by `--measure` without a figure of their own, one panel per quantity."""
    drawn = {
        "since_eid",
        "log_time",
        "q_bar_svm",
        *OF_NORMS,
        *(key for own in FIGURES.values() for p in own.panels for key in p.keys),
    }
    keys = [key for key in _recorded(runs) if describe(key)[2] == ASKED_FOR and key not in drawn]
    if not keys:
        return None
    figure, axes = style.panels(math.ceil(len(keys) / 2), min(len(keys), 2), title(runs))
    panels = np.atleast_1d(axes).ravel()
    for key, panel in zip(keys, panels, strict=False):
        _plot(panel, runs, "eid", key)
        meaning, unit, _ = describe(key)
        panel.set(xlabel="epoch", ylabel=f"{key}, {unit}" if unit else key)
        panel.set_title(style.wrapped(meaning, style.PANEL[0]))
        values = [line.get_ydata() for line in panel.lines]
        if values and min(np.nanmin(v, initial=np.inf) for v in values) > 0:
            panel.set_yscale("log")
    for panel in panels[len(keys) :]:
        panel.set_axis_off()
    return style.with_legend(figure, panels[0])


WINDOW = 50  # epochs
FEW = 60  # points: each is marked


def course(values: np.ndarray) -> dict[str, float]:
    """Return the decreases of a quantity that should only rise: between epochs, over windows, from its peak.

    Args:
      values: positive, at consecutive epochs, [n].

    Returns: steps, dips, worst_dip (relative to the value before); windows of WINDOW epochs, one after the other,
      and window_dips; drawdown, the largest fall from an earlier peak, relative to it.
    """
    steps = values[1:] / values[:-1] - 1
    windows = values[WINDOW::WINDOW] / values[:-WINDOW:WINDOW] - 1 if len(values) > WINDOW else np.zeros(0)
    return {
        "steps": len(steps),
        "dips": int((steps < 0).sum()),
        "worst_dip": max(float(-steps.min(initial=0.0)), 0.0),
        "windows": len(windows),
        "window_dips": int((windows < 0).sum()),
        "drawdown": float(np.max(1 - values / np.maximum.accumulate(values), initial=0.0)),
    }


def course_table(entries: list[Entry]) -> list[Table]:
    """Return the table of the decreases of the smoothed margin, of the runs that have one."""
    rows, listed = [], []
    for entry in entries:
        for key in SMOOTHED.values():
            eid, values = columns(entry.run, "eid", key)
            eid, values = eid[np.isfinite(values)], values[np.isfinite(values)]
            if len(values) > 1 and (values > 0).all() and (np.diff(eid) == 1).all():
                found = course(values)
                counts = [number(found["dips"]), " of ", number(found["steps"])]
                windows = [number(found["window_dips"]), " of ", number(found["windows"])]
                falls = [percent(found[key] or None) for key in ("worst_dip", "drawdown")]
                windows = windows if found["windows"] else []
                rows.append([entry, Code(key), counts, falls[0], windows, falls[1]])
                listed += [entry] if entry not in listed else []
    if not rows:
        return []
    head = [
        "run",
        "margin",
        "epochs that fell",
        "worst fall",
        f"windows of {WINDOW} that fell",
        "largest fall from a peak",
    ]
    about = "gradient flow never decreases it; plain SGD may (docs/theory.md)"
    return [Table(f"Decreases of the smoothed margin: {about}", head, rows, listed)]


def _headline(what: str, entries: list[Entry], infos: list[dict]) -> Table:
    """Return what one asks of a run first, at its last fully evaluated epoch."""
    rows = []
    for entry, info in zip(entries, infos, strict=True):
        stats = info["stats"]
        margins = [number(stats.get(key)) for key in MARGINS]
        accuracies = [percent(stats.get(key)) for key in ("acc", "test_acc")]
        log10_loss = number(stats["log_loss"] / style.LN10, ".6g")
        rows.append([entry, number(info["eid"]), log10_loss, *accuracies, *margins, _dips(entry.run)])
    head = ["run", "epoch", "log10 training loss", "training accuracy", "test accuracy"]
    head += ["margin q_min/ρᴸ", "margin q_min/(ρ₁⋯ρ_L)", "epochs in which the smoothed margin fell"]
    return compared(f"{what}: the last epoch", head, rows)


def _dips(run: Run) -> list | None:
    """Return in how many epochs the smoothed margin fell, of how many; None where there is none."""
    _, values = columns(run, "eid", "smoothed_q_bar")
    values = values[np.isfinite(values)]
    if len(values) < 2 or not (values > 0).all():
        return None
    found = course(values)
    return [number(found["dips"]), " of ", number(found["steps"])]


def table(entries: list[Entry]) -> list[Table]:
    """Return the tables of each run's last fully evaluated epoch, and of the smoothed margin."""
    raws = [entry.run.raw for entry in entries]
    last = [max((eid for eid in raw if "acc" in raw[eid]["stats"]), default=max(raw)) for raw in raws]
    infos = [raw[eid] for raw, eid in zip(raws, last, strict=True)]
    keys = list(dict.fromkeys(key for info in infos for key in info["stats"]))

    def in_words(key):
        meaning, unit, _ = describe(key)
        return f"{meaning} ({unit})" if unit in ("s", "radian") else meaning

    def row(name, about, values):
        return [[Code(name), " ", Soft(about)], *values]

    def shown(key, value):
        return percent(value) if describe(key)[1] == "fraction" else number(value)

    epochs = [f"{eid} of {entry.run.flags['E']}" for eid, entry in zip(last, entries, strict=True)]
    log10 = [number(info["stats"]["log_loss"] / style.LN10, ".6g") for info in infos]
    attempts = [number(sum(info["stats"].get("attempts", 0) for info in raw.values())) for raw in raws]
    seconds = [number(sum(info["time"] for info in raw.values()), ".1f") for raw in raws]
    rows = [
        row("eid", "epoch, of the total", epochs),
        row("log10_loss", "log10 of the training loss", log10),
        *(row(key, in_words(key), [shown(key, i["stats"].get(key)) for i in infos]) for key in keys),
        row("lr", "learning rate, in the frame", [number(info["lr"]) for info in infos]),
        row("", "attempts of all epochs", attempts),
        row("", "seconds of all epochs", seconds),
    ]
    what = "Training" if entries[0].run.kind == "train" else "Stored epochs"
    every = Table(f"{what}: all numbers of the last epoch", ["number", *entries], rows, entries)
    return [_headline(what, entries, infos), every, *norm_margin_table(entries), *course_table(entries)]
