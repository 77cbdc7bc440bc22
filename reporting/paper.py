"""Figures 1, 3 and 5 to 8 of arXiv 1906.05890, in the paper's form, from any suitable runs.

The place of a run follows from its flags: the scheduler (constant or loss-based), the biases, the data (CIFAR-10 or
another), an attack's norm and images. Runs that share a place, such as several seeds, are drawn together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reporting import style
from reporting.attacks import robust_accuracy
from reporting.runs import SCHEDULERS, Run, columns, title
from reporting.training import MARGINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONSTANT, LOSS_BASED = "constant lr", "loss-based lr"
BIASES = {"without bias": ("NONE", "FIRST_LAYER"), "with bias": ("ALL",)}
SETS = {"train": "training set", "test": "test set"}
SHOWN = {"log_loss": "log₁₀ training loss", **MARGINS, "acc": "training accuracy, %", "test_acc": "test accuracy, %"}
SCALE = {"log_loss": 1 / style.LN10, "acc": 100, "test_acc": 100}


@dataclass(frozen=True)
class Training:
    """A figure of training runs: one row per scheduler, one column per quantity, curves with and without bias."""

    cifar: bool
    rows: tuple[str, ...]
    keys: tuple[str, ...]


FIGURES = {
    1: Training(False, (CONSTANT, LOSS_BASED), ("log_loss", "q_bar2_min")),
    3: Training(False, (CONSTANT, LOSS_BASED), ("log_loss", "q_bar_min")),
    5: Training(True, (CONSTANT,), ("log_loss", "q_bar2_min")),
    6: Training(True, (LOSS_BASED,), ("log_loss", "q_bar2_min")),
    7: Training(False, (CONSTANT, LOSS_BASED), ("acc", "test_acc")),
}


def make_figures(runs: list[Run]) -> tuple[dict[str, "Figure"], list[str]]:
    """Return the paper's figures from these runs.

    Returns: {name: figure}, and one line for each thing that a figure lacks. Figures without any run are omitted.
    """
    figures, missing = {}, []
    for number, form in FIGURES.items():
        figure, lacks = _training(runs, form)
        if figure is not None:
            figures[f"paper-figure-{number}"] = figure
        missing += [f"figure {number}: {line}" for line in lacks]
    figure, lacks = _robustness(runs)
    if figure is not None:
        figures["paper-figure-8"] = figure
    return figures, missing + [f"figure 8: {line}" for line in lacks]


def _is_cifar(run: Run) -> bool:
    return Path(str(run.flags["dataset"])).stem == "cifar10"


def _scheduler(run: Run) -> str | None:
    """Return the row of a run; None for a scheduler that the paper does not have."""
    lr = run.flags["lr"]
    if isinstance(lr, float):
        return CONSTANT
    return LOSS_BASED if (lr if isinstance(lr, str) else lr[0]) in SCHEDULERS else None


def _training(runs: list[Run], form: Training) -> tuple["Figure | None", list[str]]:
    own = [run for run in runs if run.flags["task"] == "train" and _is_cifar(run) == form.cifar]
    own = [run for run in own if _scheduler(run) in form.rows]
    data = "CIFAR-10" if form.cifar else "MNIST or other data than CIFAR-10"
    if not own:
        return None, [f"not drawn: no training run on {data} with {' or '.join(form.rows)}"]
    rows = [row for row in form.rows if any(_scheduler(run) == row for run in own)]
    figure, axes = style.panels(len(rows), 2, title(own, "dataset"), squeeze=False)
    lacks = [f"no run at {row}" for row in form.rows if row not in rows]
    looks = dict(zip(BIASES, style.cycle(len(BIASES)), strict=True))
    for row, panels in zip(rows, axes, strict=True):
        for bias, modes in BIASES.items():
            there = [r for r in own if _scheduler(r) == row and r.flags["model.bias_mode"] in modes]
            lacks += [] if there else [f"no run {bias} at {row}"]
            for run in there:
                for key, panel in zip(form.keys, panels, strict=True):
                    eid, value = columns(run, "eid", key)
                    panel.plot(eid, value * SCALE.get(key, 1), **looks[bias] | {"label": bias})
        for key, panel in zip(form.keys, panels, strict=True):
            panel.set(xlabel="epoch", ylabel=SHOWN[key], title=row)
            panel.set_xlim(0, None)
            if key in MARGINS and panel.lines:
                style.show_the_rise(panel)
    return style.with_legend(figure, _fullest(axes.flat)), lacks


def _fullest(axes) -> "Axes":
    """Return the panel with the most named curves: its legend is the figure's."""
    return max(axes, key=lambda panel: len(set(panel.get_legend_handles_labels()[1])))


def _robustness(runs: list[Run]) -> tuple["Figure | None", list[str]]:
    """Draw figure 8: L2 robust accuracy against eps, for models of one run, on the training and the test set.

    Below it, the nearest images on a logarithmic axis: there the models of different margins differ.
    """
    own = [run for run in runs if run.kind == "attack_l2"]
    if not own:
        return None, ["not drawn: no L2 attack"]
    lacks = [f"no L2 attack on the {name}" for which, name in SETS.items() if not _attacks(own, which)]
    figure, (panels, tails) = style.panels(2, 2, title(own, "dataset", "attack_method"), sharey="row")
    eids = sorted({eid for run in own for eid in run.raw})
    looks = dict(zip(eids, style.series([f"epoch {eid}" for eid in eids]), strict=True))
    for (which, name), panel, tail in zip(SETS.items(), panels, tails, strict=True):
        for run in _attacks(own, which):
            for eid, found in sorted(run.raw.items()):
                eps, robust = robust_accuracy(run, found)
                panel.plot(eps, robust, drawstyle="steps-post", **looks[eid])
                tail.plot(eps[1:], robust[0] - robust[1:], drawstyle="steps-post", **looks[eid])
        panel.set(xlabel="ε (L₂)", title=name, ylim=(0, 102))
        panel.set_xlim(0, None)
        near = [line.get_xdata()[line.get_ydata() <= 10] for line in tail.lines]
        if any(map(len, near)):
            tail.set(xlabel="ε (L₂)", yscale="log", ylim=(None, 10))
            tail.set_xlim(0.9 * min(x.min() for x in near if len(x)), 1.02 * max(x.max() for x in near if len(x)))
    panels[0].set_ylabel("robust accuracy, %")
    tails[0].set_ylabel("fooled within ε, %")
    return style.with_legend(figure, _fullest(panels)), lacks


def _attacks(runs: list[Run], which: str) -> list[Run]:
    return [run for run in runs if run.flags["attack_set"] == which]
