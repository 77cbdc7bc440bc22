"""Figures and tables of attacks."""

from typing import TYPE_CHECKING

import numpy as np

from reporting import style
from reporting.runs import Run, title
from reporting.tables import Entry, Table, number, percent
from storage import read
from support import forms
from support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _curves(runs: list[Run]) -> list[tuple[Run, dict, dict]]:
    """Return (run, the results of an epoch, line style) of every epoch of every attack."""
    found = [(run, eid) for run in runs for eid in sorted(run.raw)]
    labels = [", ".join(filter(None, [run.label, f"epoch {eid}"])) for run, eid in found]
    looks = style.series(labels, in_order=len(runs) == 1)
    return [(run, run.raw[eid], look) for (run, eid), look in zip(found, looks, strict=True)]


def distances(runs: list[Run]) -> "Figure":
    """Distances of adversarial examples, and robust accuracy at every eps, one curve per epoch."""
    figure, (left, right) = style.panels(1, 2, title(runs, "dataset", "attack_method", "attack_set"))
    curves = _curves(runs)
    method = runs[0].method  # the runs of a figure are of one norm
    distances = [run.distances(res) for run, res, _ in curves]
    distances = [d[res["success"] & (d > 0)] for d, (_, res, _) in zip(distances, curves, strict=True)]
    everything = np.concatenate(distances)
    far = 1.05 * np.quantile(everything, 0.999) if len(everything) else 1.0
    bins = np.linspace(0, far, int(np.clip(np.sqrt(min(map(len, distances))), 10, 60)) + 1)
    for (run, res, look), found in zip(curves, distances, strict=True):
        shares = np.histogram(found, bins)[0] / max(len(found), 1) / np.diff(bins)
        left.stairs(shares, bins, **look)
        eps, robust = robust_accuracy(run, res)
        # Extend the curve to the edge of the panel.
        right.plot([*eps, max(1.02 * far, eps[-1])], [*robust, robust[-1]], drawstyle="steps-post", **look)
    norm = {"L1": "L₁", "L2": "L₂", "Linf": "L∞"}[method.norm]
    left.set(xlabel=f"{norm} distance of an adversarial example", ylabel="density", ylim=(0, None))
    right.set(xlabel=f"ε ({norm})", ylabel="robust accuracy, %", ylim=(0, 102))
    for axes in (left, right):
        axes.set_xlim(0, 1.02 * far)  # with room for the last bin's edge
    return style.with_legend(figure, right)


def robust_accuracy(run: Run, res: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return (eps [n + 1], percent of all images without an example within eps), the n distances above 0 ascending.

    These are the steps of a piecewise constant curve. An image without an example is always robust.
    """
    distance = run.distances(res)
    eps = np.concatenate([[0.0], np.sort(distance[res["success"] & (distance > 0)])])
    return eps, 100 * ((distance > 0).sum() - np.arange(len(eps))) / len(distance)


def linf_grid(runs: list[Run]) -> "Figure":
    """Smallest eps (L-infinity) with an example, and robust accuracy at each eps, one curve per epoch."""
    figure, (left, right) = style.panels(1, 2, title(runs, "dataset", "attack_method", "attack_set"))
    eps_list = sorted({eps for run in runs for eps in run.flags["attack_eps_list"]})
    for run, res, look in _curves(runs):
        eps = np.sort(np.asarray(run.flags["attack_eps_list"], np.float64))
        distance = run.distances(res)
        distance[~res["success"] & (distance > 0)] = np.inf
        left.plot(eps, [100 * np.isclose(distance, e).mean() for e in eps], marker="o", **look)
        right.plot([0, *eps], [100 * (distance > e + 1e-9).mean() for e in (-1e-9, *eps)], marker="o", **look)
    left.set(xlabel="smallest ε with an example", ylabel="images, %", ylim=(0, None))
    right.set(xlabel="ε (L∞)", ylabel="robust accuracy, %", ylim=(0, 102))
    left.set_xlim(0, 1.05 * eps_list[-1])
    right.set_xlim(0, 1.05 * eps_list[-1])
    return style.with_legend(figure, right)


SUMMARY = {  # what `attacks.run` writes of an epoch
    **dict.fromkeys(("n", "clean_acc", "success", "median", "mean"), forms.number),
    **dict.fromkeys(("certified_median", "log_loss", "q_bar_min"), forms.number_or_none),
    "tail": forms.each(forms.number_or_none, forms.number_text),
    "robust_acc": forms.each(forms.number, forms.number_text),
}


def _summary(run: Run) -> dict[str, dict]:
    """summary.json: {epoch, as text: its numbers}. Raises: UserError when something in it is missing or wrong."""
    found = read.read_summary(run.path)
    for eid, numbers in found.items():
        bad = forms.wrong(numbers, SUMMARY) if forms.whole_text(eid) else [""]
        if bad:
            raise UserError(
                f"{run.path / 'summary.json'}: epoch {eid:.20} misses or has invalid {', '.join(bad)}; "
                "it is damaged or from another program: attack the run again"
            )
    return found


def table(entries: list[Entry]) -> list[Table]:
    """Return the table of all attacked epochs, for attacks in one norm."""
    lines = [(entry, eid, found) for entry in entries for eid, found in _summary(entry.run).items()]
    tail = sorted({k for _, _, found in lines for k, v in found["tail"].items() if v is not None}, key=float)
    eps = sorted({e for _, _, found in lines for e in found["robust_acc"]}, key=float)
    method = entries[0].run.method
    shown = {"certified_median": "certified distance, median"}
    shown |= {"median": "distance, median", "mean": "distance, mean of those found"}
    rows = [
        [
            entry,
            eid,
            entry.run.flags["attack_set"],
            number(found["n"]),
            number(None if found["log_loss"] is None else found["log_loss"] / style.LN10),
            number(found["q_bar_min"]),
            percent(found["clean_acc"]),
            percent(found["success"]),
            *(number(found["tail"].get(k), ".4f") for k in tail),
            *(number(found[key], ".4f") for key in shown),
            *(percent(found["robust_acc"].get(e)) for e in eps),
        ]
        for entry, eid, found in lines
    ]
    head = [
        *("attack", "epoch", "images of", "images", "log10 loss", "q_bar_min", "clean accuracy", "success"),
        *(f"distance, {k} %" if float(k) else "distance, minimum" for k in tail),
        *shown.values(),
        *(f"robust accuracy at eps {e}" for e in eps),
    ]
    norm = method.norm.replace("Linf", "L-infinity")
    caption = f"Attacks: {norm} distances to the nearest adversarial example found"
    if method.eps_grid:
        caption = f"Attacks: the smallest eps of a list, in {norm}, with an adversarial example"
    return [Table(caption, head, rows, entries)]
