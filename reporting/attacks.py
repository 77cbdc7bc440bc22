"""Figures and tables of attacks."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from data import loading
from reporting import style
from reporting.runs import Run, title
from reporting.tables import Entry, Table, compared, number, percent
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


MOST_EXAMPLES = 6


def examples(runs: list[Run]) -> "Figure | None":
    """The nearest adversarial examples of the last epoch: image, example, and their difference (grey: none)."""
    run, eid = runs[-1], max(runs[-1].raw)
    found, away = run.raw[eid], run.distances(run.raw[eid])
    nearest = [k for k in np.argsort(away) if found["success"][k] and away[k] > 0][:MOST_EXAMPLES]
    images = _originals(run, found["indices"][nearest]) if nearest and "images" in found else None
    if images is None or not _are_away(images, found["images"][nearest], away[nearest], run.method.norm):
        return None
    figure = style.blank(2 * style.PANEL[0], 1.25 * style.PANEL[1], title(runs[-1:], "dataset", "attack_method"))
    axes = figure.subplots(3, MOST_EXAMPLES)
    for panel in axes.flat:
        panel.set_axis_off()
    for k, (index, image) in enumerate(zip(nearest, images, strict=True)):
        example = found["images"][index]
        size = np.abs(example - image).max()
        pictures = (image, example, 0.5 + (example - image) / (2 * size if size else 1))
        for panel, picture in zip(axes[:, k], pictures, strict=True):
            shown = picture[..., 0] if picture.shape[-1] == 1 else picture
            panel.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0, k].set_title(f"class {found['labels'][index]}\n{away[index]:.3g} away")
        axes[2, k].set_title(f"±{size:.2g}")
    return figure


def _are_away(images: np.ndarray, examples: np.ndarray, distances: np.ndarray, norm: str) -> bool:
    """Return whether these are the images that were attacked: their distances are those that were recorded."""
    if images.shape != examples.shape:
        return False
    order = {"L1": 1, "L2": 2, "Linf": np.inf}[norm]
    found = np.linalg.norm((examples - images).reshape(len(images), -1), order, axis=1)
    return bool(np.allclose(found, distances, rtol=1e-3, atol=1e-6))


def _originals(run: Run, indices: np.ndarray) -> np.ndarray | None:
    """Return images of the attacked set, in [0, 1]; None where the data is not here."""
    names = ("data_dir", "train_N", "test_N", "classes", "subset_seed")
    flags = {name: None if run.flags[name] == "all" else run.flags[name] for name in names}
    try:
        dataset = loading.load(run.flags["dataset"], **flags, download=False)
    except (UserError, OSError, ImportError):
        return None
    x, _ = dataset[0 if run.flags["attack_set"] == "train" else 1]
    return x[indices] * dataset.scale if indices.max() < len(x) else None


SUMMARY = {  # what `attacks.run` writes of an epoch
    **dict.fromkeys(("n", "clean_acc", "success", "median", "mean"), forms.number),
    **dict.fromkeys(("certified_median", "log_loss", "q_bar_min"), forms.number_or_none),
    "tail": forms.each(forms.number_or_none, forms.number_text),
    "robust_acc": forms.each(forms.number, forms.number_text),
}


def _summary(run: Run) -> dict[str, dict]:
    """Read summary.json: {epoch, as text: its numbers}. Raises: UserError when something is missing or wrong."""
    found = read.read_summary(run.path)
    for eid, numbers in found.items():
        bad = forms.wrong(numbers, SUMMARY) if forms.whole_text(eid) else [""]
        if bad:
            which = f"missing or invalid: {', '.join(bad)}" if bad != [""] else "not an epoch with its numbers"
            raise UserError(
                f"{run.path / 'summary.json'}: epoch {eid:.20}: {which}; it is damaged or from another program: "
                "attack the run again"
            )
    return found


QUANTILES = (0.0, 0.01, 0.1, 0.5)  # of the distances that are compared
RESAMPLES = 1000


def paired(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[float, tuple[float, float, float]]:
    """Compare the distances of two epochs on the same images.

    Args:
      first, second: of each image, [N]; infinite without an example.

    Returns: {quantile: (second's less first's, and the 95 % interval of that difference)}, the interval from
      RESAMPLES bootstrap samples of the images, each taken in both epochs.
    """
    rng, n = np.random.default_rng(seed), len(first)

    def difference(chosen: Any) -> np.ndarray:
        return np.quantile(second[chosen], QUANTILES, axis=-1) - np.quantile(first[chosen], QUANTILES, axis=-1)

    with np.errstate(invalid="ignore"):  # a quantile may be infinite in both
        whole = difference(slice(None))
        drawn = np.array([difference(rng.integers(0, n, n)) for _ in range(RESAMPLES)])
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return {q: (float(whole[k]), float(low[k]), float(high[k])) for k, q in enumerate(QUANTILES)}


def paired_table(entries: list[Entry]) -> list[Table]:
    """Return the table that compares each attacked epoch with the one before it, and the last with the first."""
    rows = []
    for entry in entries:
        run = entry.run
        eids = sorted(run.raw)
        for before, after in [*itertools.pairwise(eids), *([(eids[0], eids[-1])] if len(eids) > 2 else [])]:
            first, second = (run.distances(run.raw[eid]) for eid in (before, after))  # of the same images
            moved = float((second > first).mean())
            cells = [
                [number(d, "+.4f"), f" ({low:+.4f} to {high:+.4f})"] if np.isfinite((d, low, high)).all() else None
                for d, low, high in paired(first, second).values()
            ]
            rows.append([[entry, f" epoch {after} less epoch {before}"], *cells, percent(moved)])
    if not rows:
        return []
    head = ["attack", *("nearest" if q == 0 else "median" if q == 0.5 else f"nearest {q:.0%}" for q in QUANTILES)]
    caption = "Distances on the same images: difference of two epochs, with its 95 % bootstrap interval"
    return [Table(caption, [*head, "images that moved further away"], rows, entries)]


HEADLINE = ("log10 loss", "margin q_min/ρᴸ", "fooled", "nearest", "nearest 1 %", "nearest 10 %", "median")


def table(entries: list[Entry]) -> list[Table]:
    """Return the tables of all attacked epochs, for attacks in one norm: the headline, and all numbers."""
    lines = [(entry, eid, found) for entry in entries for eid, found in _summary(entry.run).items()]
    tail = sorted({k for _, _, found in lines for k, v in found["tail"].items() if v is not None}, key=float)
    eps = sorted({e for _, _, found in lines for e in found["robust_acc"]}, key=float)
    method = entries[0].run.method
    shown = {"median": "median", "mean": "mean of those found", "certified_median": "certified, median"}
    all_of_them = [
        {
            "images": [number(found["n"]), f" of the {entry.run.flags['attack_set']}ing set"],
            "log10 loss": number(None if found["log_loss"] is None else found["log_loss"] / style.LN10),
            "margin q_min/ρᴸ": number(found["q_bar_min"]),
            "accuracy": percent(found["clean_acc"]),
            "fooled": percent(found["success"]),
            **{f"nearest {k} %" if float(k) else "nearest": number(found["tail"].get(k), ".4f") for k in tail},
            **{name: number(found[key], ".4f") for key, name in shown.items()},
            **{f"robust at ε = {e}": percent(found["robust_acc"].get(e)) for e in eps},
        }
        for entry, _, found in lines
    ]
    norm = method.norm.replace("Linf", "L-infinity")
    caption = f"{norm} distances to the nearest adversarial example found"
    if method.eps_grid:
        caption = f"The smallest eps of a list, in {norm}, with an adversarial example"
    short = [name for name in all_of_them[0] if name in HEADLINE]
    named = [[entry, f" epoch {eid}"] for entry, eid, _ in lines]
    rows = [[name, *(numbers[key] for key in short)] for name, numbers in zip(named, all_of_them, strict=True)]
    full = [[key, *(numbers[key] for numbers in all_of_them)] for key in all_of_them[0]]
    every = Table(f"{caption}: all numbers", ["number", *named], full, entries)
    return [compared(caption, ["attack", *short], rows), every, *paired_table(entries)]
