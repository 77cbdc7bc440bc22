"""Pictures of what experiments have left on the disk. Neither TensorFlow nor Core here.

    python figures.py <working directory> [more directories] [--out DIR]

What a directory is, its own flags say: a training run, an attack, a radius, a surface, a curvature. Each
kind has its figures, and directories of one kind come into the same ones, told apart by the flags in
which they differ. matplotlib is imported when something is drawn.

A panel is about as wide as a column of a two-column paper (3.3 inches), its smallest letters 7 points.
Curves differ in colour and in line style, so that they can be told apart without colours as well.
"""

import contextlib
import io
import itertools
import json
import math
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import flags as flag_table
import results
from models.architectures import ARCHITECTURES
from results import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LN10 = math.log(10)
PANEL = (3.3, 2.3)  # inches
# Okabe and Ito's palette, distinct to the colour-blind; without its yellow, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (3, 1, 1, 1, 1, 1)))
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "pdf.fonttype": 42,  # TrueType, embedded: many publishers refuse Type 3
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a $ in a data set's name is a $
}
DPI = 200  # of a PNG; in a PDF, of the parts that have too many points for vectors: RASTER_DPI
RASTER_DPI = 400
COLUMNS_PER_INCH = 300  # a curve of more points is thinned to what this resolution shows
LETTERS_PER_INCH = 16  # of a legend, about
MOST_NAMED = 8  # curves in a legend, where there are more that stand in an order
MOST_SAID = 3  # flags in a label, where runs can be told apart by their experiments' names

SURFACE_CLIP = 3.5
SURFACE_VIEWS = {  # (elevation, azimuth) in degrees, by (data set, random labels)
    ("mnist", False): (60, 225),
    ("mnist", True): (65, 225),
    ("cifar10", False): (50, 225),
    ("cifar10", True): (50, 225),
}


# What there is to draw


@dataclass
class Run:
    """One curve's worth of results.

    Attributes:
      path: the working directory.
      flags: of the run, flat ({'model.bias_mode': ...}).
      raw: of `res`; of a training run {eid: info}.
      label: what tells it from the others of its kind.
    """

    path: Path
    flags: dict
    raw: dict
    label: str = ""

    @property
    def kind(self) -> str:
        """Runs of one kind stand in the same figures: the task, and of an attack its norm."""
        if self.flags["task"] == "attack":
            return "attack_linf" if self.flags["attack_method"] == "pgd" else "attack_l2"
        return self.flags["task"]

    @property
    def experiment(self) -> str:
        """The name of the script that made it; '' where that is not recorded."""
        try:
            return str(results.read_about(self.path).get("experiment", ""))
        except UserError:
            return ""


DEFAULTS = {flag.name: flag.default for flag in flag_table.FLAGS}
NEEDED = {  # in `raw` itself or, where that is a dict of epochs or networks, in each of them
    "train": {"eid", "lr", "log_frame", "time", "stats", "log_loss"},
    "attack": {"errors", "success", "clean_correct"},
    "measure_radius": {"networks", "row"},
    "make_points": {"X", "Y", "Z", "networks"},
    "measure_curvature": {"eigenvalues", "trace", "trace_error", "log_frame", "log_loss"},
}
DRAWN = (*NEEDED, "train_seeds")  # the tasks whose directories have figures


def read(directories: Iterable[Path | str]) -> list[Run]:
    """What working directories have to draw, each run once; of a run of several seeds, a run a seed.

    Raises: UserError when one is no run, damaged, of a kind without figures, or has no results yet.
    """
    runs = {}
    for path in dict.fromkeys(results.check_run(d).resolve() for d in directories):
        task = _flags(path)["task"]
        if task not in DRAWN:
            raise UserError(f"{path}: a {task}; of that there are no figures")
        own = [path]
        if task == "train_seeds":
            own = [p.resolve() for p in sorted(path.glob("seed-*")) if (p / "flags.json").is_file()]
        for part in own:
            if part not in runs:
                flags = _flags(part)
                runs[part] = Run(part, flags, _raw(part, flags["task"]))
        if not any(runs[part].raw for part in own):
            why = "no epoch was accepted"
            if not task.startswith("train"):
                why = "it is not finished (resume it with --resume)"
            raise UserError(f"{path}: has nothing to draw yet: {why}")
    return [run for run in runs.values() if run.raw]


def _flags(path: Path) -> dict:
    """A run's flags, flat; of flags that it did not know yet, the defaults."""
    return DEFAULTS | flag_table.flatten(results.read_flags(path))


def _raw(path: Path, task: str) -> dict:
    """`raw` of a working directory's res; {} when there is none yet. Raises: UserError when damaged."""
    if task != "train" and not (path / "res").exists():
        return {}
    res = results.load(path)
    raw = res if task == "attack" else res.get("raw") if isinstance(res, dict) else None
    parts = list(raw.values()) if isinstance(raw, dict) else [None]
    if isinstance(raw, dict) and task in ("measure_radius", "make_points"):
        parts = [raw]
    for part in parts:
        stats = part.get("stats") if isinstance(part, dict) else None
        have = set().union(*(known for known in (part, stats) if isinstance(known, dict)))
        if missing := NEEDED[task] - have:
            raise UserError(
                f"{path / 'res'}: damaged, or not a result of the task {task} "
                f"(it has no {', '.join(sorted(missing))}); run it again"
            )
    return raw


# How runs are told apart

NOT_SAID = {  # where and how a run ran, but not what it computed
    *("task", "data_dir", "load_dir", "logs_dir", "resume", "source", "gpu", "checkpoint_every", "archive"),
    *("deterministic", "include_all_rt_loss_in_res", "early_reject", "seeds", "eid", "attack_B", "method"),
    *("random", "figures", "tensorboard", "stats_every", "E", "attack_certificate", "parts"),
}
BIASES = {"NONE": "no bias", "FIRST_LAYER": "bias in first layer", "ALL": "bias in all layers"}
SCHEDULERS = {"loss-based-v1": "loss-based lr", "const-lr-and-loss-based-lr": "lr constant, then loss-based"}


def say(name: str, value: Any) -> str:
    """A flag's value as a legend has it: 'lr 0.01', 'loss-based lr', 'bias in all layers'."""
    short = name.removeprefix("model.").removeprefix("attack_")
    match name, value:
        case "lr", [scheduler, *_]:
            return SCHEDULERS.get(scheduler, f"{scheduler} lr")
        case "lr", _:
            return f"lr {value:g}"
        case "model.bias_mode", _:
            return BIASES.get(value, str(value))
        case "model.description", _:
            return network(value)
        case "random_labels", _:
            return "natural labels" if value is None else "random labels"
        case "dataset", _:
            return Path(str(value)).stem
        case "params", _:
            return {"all": "all parameters", "top": "top layer"}.get(value, f"{value} parameters")
        case "attack_method", _:
            return str(value)
        case "attack_set", _:
            return "training images" if value == "train" else f"{value} images"
        case _, None:
            return f"default {short}"
    return f"{short} {plain(value, '.4g')}"


def network(description: list | None) -> str:
    """A layer description's name, 'CNN', or else its layers: 'C32 P F10'."""
    for name, known in ARCHITECTURES.items():
        if description == known:
            return name
    return " ".join("".join(map(str, layer[:2])) for layer in description or []) or "no network"


def label(runs: list[Run]) -> list[Run]:
    """Give each run its label: the flags in which they differ; where these are many, the experiments'
    names and the flags in which runs of one experiment differ; where that is not enough, these flags in
    full; where that is not either, the parts of their paths that differ. A single run has none."""
    flats = [{k: json.dumps(v) for k, v in run.flags.items()} for run in runs]
    names = ["dataset", "lr", "model.bias_mode"]
    names += [flag.name for flag in flag_table.FLAGS if flag.name not in names]
    differing = [n for n in names if len({flat[n] for flat in flats}) > 1]
    said = [n for n in differing if n not in NOT_SAID] or [n for n in differing if n == "E"]
    if len(said) > MOST_SAID:
        by_experiment = _groups(runs, lambda run: run.experiment)
        if len(by_experiment) > 1:
            for name, own in by_experiment.items():
                for run in label(own):
                    run.label = ", ".join(filter(None, [name, run.label]))
            return runs
    for run in runs:
        given = [n for n in said if run.flags[n] is not None or n == "random_labels"]
        run.label = ", ".join(say(n, run.flags[n]) for n in given or said)

    def in_full(same):
        own = [n for n in said if len({json.dumps(run.flags[n]) for run in same}) > 1]
        return [[f"{n} {plain(run.flags[n], '.4g')}" for n in own] for run in same]

    for more in (in_full, _differing_parts):
        for same in _groups(runs, lambda run: run.label).values():
            for run, words in zip(same, more(same), strict=True) if len(same) > 1 else ():
                run.label = ", ".join(filter(None, [run.label, *words]))
    return runs


def _differing_parts(runs: list[Run]) -> list[list[str]]:
    """Of each run's path what is left without the parts that all begin with, or all end with."""
    paths = [list(run.path.resolve().parts) for run in runs]
    for end in (0, -1):
        while all(len(parts) > 1 for parts in paths) and len({parts[end] for parts in paths}) == 1:
            for parts in paths:
                parts.pop(end)
    return [["/".join(parts)] for parts in paths]


def plain(value: Any, shown: str = "") -> str:
    """A flag's value as it is typed; its floats in the format `shown`, '' for all digits."""
    if isinstance(value, list | tuple) and not any(isinstance(v, list | tuple | dict) for v in value):
        return ",".join(plain(v, shown) for v in value)
    return format(value, shown) if isinstance(value, float) else str(value)


def _groups(things: Iterable, key: Callable) -> dict:
    groups = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def title(runs: list[Run], *names: str) -> str:
    """What the runs have in common, of the flags with these names."""
    common = [
        say(name, runs[0].flags[name])
        for name in names or ("dataset", "lr", "model.bias_mode")
        if len({json.dumps(run.flags[name]) for run in runs}) == 1
    ]
    return ", ".join(common)


# Training runs


def columns(run: Run, *names: str) -> np.ndarray:
    """Numbers of the epochs that have all of them, by ascending epoch: float64 [len(names), epochs].

    Args:
      names: 'eid', 'lr', 'log_frame', 'time' of the info, or a key of its stats. (With the flag
        stats_every only some epochs have all stats.)
    """
    rows = []
    for eid in sorted(run.raw):
        known = run.raw[eid]["stats"] | run.raw[eid]
        if all(name in known for name in names):
            rows.append([known[name] for name in names])
    return np.array(rows, np.float64).reshape(-1, len(names)).T


def _plot(axes: "Axes", runs: list[Run], *names: str, to: Callable = lambda *values: values) -> None:
    """A curve a run: what `to` makes of the numbers with these names."""
    for run, style in zip(runs, _styles(runs), strict=True):
        axes.plot(*to(*columns(run, *names)), **style)


MARGINS = {
    "q_bar_min": "normalized margin\nq_bar_min = q_min/ρᴸ",
    "q_bar2_min": "normalized margin\nq_bar2_min = q_min/(ρ₁⋯ρ_L)",
}


def _loss_margin(runs: list[Run]) -> "Figure":
    """Training loss and normalized margin against epoch.

    As figure 1 of arXiv 1906.05890.
    """
    figure, (left, right) = _panels(1, 2, title(runs))
    _plot(left, runs, "eid", "log_loss", to=lambda eid, log_loss: (eid, log_loss / LN10))
    _plot(right, runs, "eid", "q_bar_min")
    left.set(xlabel="epoch", ylabel="log₁₀ training loss")
    right.set(xlabel="epoch", ylabel=MARGINS["q_bar_min"])
    for axes in (left, right):
        axes.set_xlim(0, None)
    _show_the_rise(right)
    return _with_legend(figure, left)


def _margins(runs: list[Run]) -> "Figure":
    """Both normalized margins against epoch and against the loss, on axes that show every decade."""
    figure, axes = _panels(2, 2, title(runs), sharex="col", sharey="row")
    for (name, shown), row in zip(MARGINS.items(), axes, strict=True):
        _plot(row[0], runs, "eid", name)
        _plot(row[1], runs, "log_loss", name, to=lambda log_loss, margin: (log_loss / LN10, margin))
        row[0].set_ylabel(shown)
    _epochs_by_decade(axes[1, 0])
    _loss_axis(axes[1, 1])
    for panel in axes.flat:
        _show_the_rise(panel)
    return _with_legend(figure, axes[0, 0])


def _epochs_by_decade(axes: "Axes") -> None:
    axes.set_xscale("log")
    axes.margins(x=0.01)
    axes.set_xlabel("epoch")


def _show_the_rise(axes: "Axes") -> None:
    """Let the margin's axis begin at 0, of what lies below only the end: until all examples are
    classified right the margin is negative, and by its size it would hide the rise."""
    bottom, top = axes.dataLim.intervaly
    axes.axhline(0, color="0.4", linewidth=0.6, zorder=1)
    if not 0 < top < math.inf:
        return
    lowest = max(1.05 * bottom, -0.08 * top) if bottom < 0 else 0
    axes.set_ylim(lowest, 1.05 * top)
    curves = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    hidden = [line.get_label() for line in curves if np.nanmax(line.get_ydata(), initial=-np.inf) < lowest]
    if hidden:
        which = "; ".join(hidden) if len(hidden) <= 2 else f"{len(hidden)} other curves"
        said = _wrapped(f"below what is shown: {which}", 0.9 * PANEL[0])
        axes.text(0.02, 0.97, said, transform=axes.transAxes, va="top", fontsize=7)  # where no curve rises


def _loss_axis(axes: "Axes") -> None:
    """x: log10 of the training loss, falling to the right; from -1 on itself on a logarithmic scale."""
    low, high = axes.dataLim.intervalx
    if low < -3:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        steps = (1, 2, 3, 4, 5) if low > -6 else (1, 2, 5) if low > -50 else (1, 3)
        ticks = [k * 10**n for n in range(4) for k in steps]
        ticks = [tick for tick in (*ticks, 0, *(-tick for tick in ticks)) if low <= tick <= high]
        axes.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
        minor = [-k * 10**n for n in range(4) for k in range(2, 10) if -k * 10**n >= low]
        axes.set_xticks([tick for tick in minor if tick not in ticks], minor=True)
    elif high - low < 0.1:  # a single epoch, or one that hardly moved: nothing a tick could tell apart
        axes.set_xlim(low - 0.5, high + 0.5)
    axes.margins(x=0.01)
    axes.xaxis.set_inverted(True)
    axes.set_xlabel("log₁₀ training loss")


ACCURACY_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 100)


def _accuracy(runs: list[Run]) -> "Figure":
    """Training and test accuracy, on an axis that is stretched towards 100 %."""
    figure, (left, right) = _panels(1, 2, title(runs), sharey=True)
    for axes, name in ((left, "acc"), (right, "test_acc")):
        _plot(axes, runs, "eid", name, to=lambda eid, accuracy: (eid, 100 * accuracy))
        _epochs_by_decade(axes)
    lowest = min(left.dataLim.y0, right.dataLim.y0)
    nearest = 0.2  # percent: how much of the last stretch before 100 % is shown
    left.set_yscale(
        "function",
        functions=(
            lambda a: -np.log10(np.maximum(100 + nearest - a, 1e-3)),
            lambda t: 100 + nearest - 10.0**-t,
        ),
    )
    left.set_yticks(ACCURACY_TICKS, [f"{tick:g}" for tick in ACCURACY_TICKS])
    left.set_ylim(max(0, min(lowest - 2, 98)), 100 + nearest / 3)
    left.set_ylabel("training accuracy, %")
    right.set_ylabel("test accuracy, %")
    right.tick_params(labelleft=True)
    return _with_legend(figure, left)


def _norms(runs: list[Run]) -> "Figure":
    """Each layer's norm, and how much its square has grown, a row a run.

    Under gradient flow it grows as much in every layer of a homogeneous network (Du, Hu and Lee,
    arXiv 1806.00900).
    """
    keys = [set().union(*(info["stats"] for info in run.raw.values())) for run in runs]
    names = [sorted((k for k in own if k[:4] == "rho_"), key=lambda k: int(k[4:])) for own in keys]
    longest = max(names, key=len)
    styles = dict(zip(longest, _cycle(len(longest)), strict=True))
    figure, axes = _panels(len(runs), 2, title(runs), sharex=True)
    for run, own, (left, right) in zip(runs, names, axes.reshape(-1, 2), strict=True):
        for name in own:
            eid, rho = columns(run, "eid", name)
            look = styles[name] | {"label": f"layer {int(name[4:]) + 1}"}
            left.plot(eid, rho, **look)
            right.plot(eid, rho**2 - rho[:1] ** 2, **look)
        left.set_yscale("log")
        left.set_ylabel("norm of a layer ρₖ")
        right.set_ylabel("growth of ρₖ²")
        for panel in (left, right):
            panel.set_title(_wrapped(run.label, PANEL[0]))
    for panel in axes.reshape(-1, 2)[-1]:
        _epochs_by_decade(panel)
    return _with_legend(figure, axes.reshape(-1, 2)[names.index(longest), 0])


def _steps(runs: list[Run]) -> "Figure":
    """Learning rates in the frame and as they are, attempts and time of each epoch."""
    figure, axes = _panels(2, 2, title(runs), sharex=True)
    (relative, true), (attempts, seconds) = axes
    _plot(relative, runs, "eid", "lr")
    _plot(true, runs, "eid", "lr", "log_frame", to=lambda eid, lr, frame: (eid, np.log10(lr) - frame / LN10))
    for panel, name in ((attempts, "attempts"), (seconds, "time")):
        _plot(panel, runs, "eid", name, to=lambda eid, value: (eid, _smoothed(value)))
    relative.set(ylabel="lr in the frame", yscale="log")
    true.set(ylabel="log₁₀ lr")
    mean = ", running mean" if max(len(run.raw) for run in runs) >= 100 else ""
    attempts.set(ylabel=f"attempts an epoch{mean}", xlabel="epoch", ylim=(0, None))
    seconds.set(ylabel=f"seconds an epoch{mean}", xlabel="epoch", ylim=(0, None))
    attempts.set_xlim(0, None)
    return _with_legend(figure, relative)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean of the fiftieth part of all values that lies around each; near the ends, of those there are."""
    ones = np.ones(max(1, len(values) // 50))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


# Attacks


def _curves(runs: list[Run]) -> list[tuple[Run, dict, dict]]:
    """(run, the results of an epoch, style) of every epoch of every attack."""
    found = [(run, eid) for run in runs for eid in sorted(run.raw)]
    labels = [", ".join(filter(None, [run.label, f"epoch {eid}"])) for run, eid in found]
    styles = _series(labels, in_order=len(runs) == 1)
    return [(run, run.raw[eid], style) for (run, eid), style in zip(found, styles, strict=True)]


def _attack_l2(runs: list[Run]) -> "Figure":
    """L2 distances of adversarial examples, and robust accuracy at every eps, a curve an epoch."""
    figure, (left, right) = _panels(1, 2, title(runs, "dataset", "attack_method", "attack_set"))
    curves = _curves(runs)
    distances = [np.sqrt(res["errors"][res["success"] & res["clean_correct"]]) for _, res, _ in curves]
    everything = np.concatenate(distances)
    far = 1.05 * np.quantile(everything, 0.999) if len(everything) else 1.0
    bins = np.linspace(0, far, int(np.clip(np.sqrt(min(map(len, distances))), 10, 60)) + 1)
    for (_, res, style), found in zip(curves, distances, strict=True):
        shares = np.histogram(found, bins)[0] / max(len(found), 1) / np.diff(bins)
        left.stairs(shares, bins, **style)
        eps, robust = robust_accuracy(res)
        # No image falls after the last, so the curve goes on to the panel's edge.
        right.plot([*eps, max(1.02 * far, eps[-1])], [*robust, robust[-1]], drawstyle="steps-post", **style)
    left.set(xlabel="L₂ distance of an adversarial example", ylabel="density", ylim=(0, None))
    right.set(xlabel="ε (L₂)", ylabel="robust accuracy, %", ylim=(0, 102))
    for axes in (left, right):
        axes.set_xlim(0, 1.02 * far)  # with room for the last bin's edge
    return _with_legend(figure, right)


def robust_accuracy(res: dict) -> tuple[np.ndarray, np.ndarray]:
    """(eps [n + 1], percent of all images that are classified right and have no example within eps).

    The steps of a curve that is constant between two eps. An image without an example never falls.
    """
    right = res["clean_correct"]
    fallen = np.sort(np.sqrt(res["errors"][right & res["success"]]))
    eps = np.concatenate([[0.0], fallen])
    return eps, 100 * (right.sum() - np.arange(len(eps))) / len(right)


def _attack_linf(runs: list[Run]) -> "Figure":
    """At which eps (L-infinity) images fall, and robust accuracy at each eps, a curve an epoch."""
    figure, (left, right) = _panels(1, 2, title(runs, "dataset", "attack_method", "attack_set"))
    eps_list = sorted({eps for run in runs for eps in run.flags["attack_eps_list"]})
    for run, res, style in _curves(runs):
        eps = np.sort(np.asarray(run.flags["attack_eps_list"], np.float64))
        right_before, n = res["clean_correct"], len(res["success"])
        fell = right_before & res["success"]
        first = [100 * (fell & np.isclose(res["errors"], e)).sum() / n for e in eps]
        stood = [100 * (right_before & ~(fell & (res["errors"] <= e + 1e-9))).sum() / n for e in eps]
        left.plot(eps, first, marker="o", **style)
        right.plot([0, *eps], [100 * right_before.mean(), *stood], marker="o", **style)
    left.set(xlabel="smallest ε with an example", ylabel="images, %", ylim=(0, None))
    right.set(xlabel="ε (L∞)", ylabel="robust accuracy, %", ylim=(0, 102))
    left.set_xlim(0, 1.05 * eps_list[-1])
    right.set_xlim(0, 1.05 * eps_list[-1])
    return _with_legend(figure, right)


# Flatness


def are_epochs(networks: Iterable[str]) -> bool:
    """Whether networks, by their names in a measurement's `raw`, are several epochs of one run."""
    names = list(networks)
    return len(names) > 1 and all(re.fullmatch(r"epoch \d+", name) for name in names)


def _places(measured: Iterable[Iterable[str]]) -> tuple[dict[str, int], bool]:
    """Where each of several runs' networks stands on an axis, and whether that is its epoch.

    Networks that are no epochs, and a single one, stand side by side.
    """
    names = list(dict.fromkeys(name for networks in measured for name in networks))
    if are_epochs(names):
        epochs = {name: int(name[6:]) for name in names}
        return dict(sorted(epochs.items(), key=lambda item: item[1])), True
    return {name: k for k, name in enumerate(names)}, False


def _epochs(axes: "Axes") -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _profiles(runs: list[Run]) -> "Figure":
    """The loss along each random direction up to the radius, a panel a measurement.

    The walks to the flatness radius (arXiv 1801.02254, section IV).
    """
    n_columns = min(len(runs), 2)
    figure, axes = _panels(
        math.ceil(len(runs) / n_columns), n_columns, title(runs, "dataset", "random_labels")
    )
    panels = np.atleast_1d(axes).ravel()
    names = list(_places(run.raw["networks"] for run in runs)[0])
    styles = dict(zip(names, _series(names), strict=True))
    for run, panel in zip(runs, panels, strict=False):
        for name, found in run.raw["networks"].items():
            look = styles[name] | {"label": None}
            for profile in found["profiles"]:
                walked = run.flags["step"] * np.arange(len(profile))
                change = np.asarray(profile) - found["I"]
                panel.plot(walked, change, **look | {"linewidth": 0.5, "alpha": 0.45})
                panel.plot(walked[-1], change[-1], ".", color=look["color"], markersize=2.5)
        threshold = run.flags["threshold"]
        panel.axhline(threshold, color="0.3", linewidth=0.7, linestyle="--")
        panel.set(xlabel="distance walked", ylabel="change of the loss I")
        panel.set_title(_wrapped(run.label, PANEL[0]))
        panel.set_xlim(0, None)
        panel.set_ylim(None, 1.15 * threshold)
    for style in styles.values():
        panels[0].plot([], [], **style)
    for panel in panels[len(runs) :]:
        panel.set_axis_off()
    return _with_legend(figure, panels[0])


def _radii(runs: list[Run]) -> "Figure":
    """Every direction's radius, each network's mean, and the published mean ± standard deviation.

    Epochs of a run stand at their numbers; other networks side by side, a group a measurement.
    """
    figure, axes = _panels(1, 1, title(runs, "dataset", "random_labels"), width=max(1, 0.47 * len(runs)))
    places, in_time = _places(run.raw["networks"] for run in runs)
    of_runs, of_networks = _styles(runs), dict(zip(places, _series(list(places)), strict=True))
    for k, run in enumerate(runs):
        networks = run.raw["networks"]
        at = [places[name] for name in networks]
        if not in_time:
            at = k + (np.linspace(-0.22, 0.22, len(networks)) if len(networks) > 1 else np.zeros(1))
        for x, (name, found) in zip(at, networks.items(), strict=True):
            style = of_runs[k] if in_time else of_networks[name]
            radii, counts = np.unique(found["radii"], return_counts=True)
            axes.scatter(
                np.full(len(radii), x), radii, 4 + 5 * counts, color=style["color"], alpha=0.5, linewidth=0
            )
            if not in_time:
                width = min(0.09, 0.3 / len(networks))
                look = style | {"linestyle": "-"}
                axes.plot([x - width, x + width], [found["mean"]] * 2, **look)
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
        lines = ["\n".join(_wrapped(part, inches, 0) for part in text.split(", ")) for text in said]
        axes.set_xticks(range(len(runs)), lines)
        axes.set_xlim(-0.5, len(runs) - 0.4)
    axes.set_ylabel("flatness radius (•), mean (–)")
    axes.set_ylim(0, None)
    return _with_legend(figure, axes)


def _surfaces(runs: list[Run]) -> "Figure":
    """The loss in the plane of three networks, as the paper draws it and as a map, a row a surface."""
    from matplotlib.ticker import MaxNLocator

    figure = _blank(2 * PANEL[0], 2.6 * len(runs), title(runs, "dataset", "random_labels"))
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
        bar.set_label("training loss" + (f" (cut at {SURFACE_CLIP})" if np.nanmax(Z) > SURFACE_CLIP else ""))
        chart.set_title(_wrapped(run.label, PANEL[0]))
    return figure


def view_of(run: Run) -> tuple[int, int]:
    """Elevation and azimuth from which the paper looks at such a surface."""
    random = run.flags["random_labels"] is not None
    return SURFACE_VIEWS.get((run.flags["dataset"], random), SURFACE_VIEWS["mnist", random])


def _clipped(Z: np.ndarray) -> np.ndarray:
    return np.minimum(np.nan_to_num(Z, nan=SURFACE_CLIP, posinf=SURFACE_CLIP), SURFACE_CLIP)


def _colour_range(clipped: np.ndarray) -> tuple[float, float]:
    """The losses at the two ends of the colours, the same in the map and the picture beside it."""
    return clipped.min(), max(clipped.max(), clipped.min() + 1e-12)


def plot_surface(
    axes: "Axes", X: np.ndarray, Y: np.ndarray, Z: np.ndarray, view: tuple[int, int], zoom: float = 1
) -> None:
    """Draw the loss in the plane of three networks as arXiv 1801.02254 does, section IV.

    Args:
      axes: with projection='3d'.
      X, Y, Z: [n, n]; Z is the loss. It is cut at 3.5; a loss that is no number counts as that.
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


def _curvature(runs: list[Run]) -> "Figure":
    """The Hessian's largest eigenvalues and its trace, and both over the loss, of each network."""
    figure, (left, right) = _panels(1, 2, title(runs, "dataset"))
    places, in_time = _places(run.raw for run in runs)
    for run, style in zip(runs, _styles(runs), strict=True):
        networks = list(run.raw.values())
        values = [*zip(*(found["eigenvalues"] for found in networks), strict=True)]
        values += [[found["trace"] for found in networks]]
        frame, loss = (np.array([found[k] for found in networks]) / LN10 for k in ("log_frame", "log_loss"))
        with np.errstate(divide="ignore", invalid="ignore"):
            *logs, trace = np.log10(np.array(values, np.float64)) + frame
            error = np.array([found["trace_error"] for found in networks]) / np.array(values[-1])
            bars = np.abs([np.log10(np.maximum(1 - error, 0.01)), np.log10(1 + error)])  # no axis reaches 0
            bars[:, ~np.isfinite(trace)] = 0  # nor a trace below it
        faint = style | {"label": None, "linewidth": 0.6}
        x = [places[name] for name in run.raw]
        for panel, unit in ((left, 0), (right, loss)):
            for k, largest in enumerate(logs):
                panel.plot(x, largest - unit, marker="o", **(faint | {"alpha": 0.5} if k else style))
            panel.errorbar(x, trace - unit, bars, capsize=2, marker="^", markerfacecolor="w", **faint)
    for panel, what in ((left, ""), (right, " / loss")):
        if in_time:
            _epochs(panel)
        else:
            every = math.ceil(len(places) / 5)  # as many labels as there is room for
            names = [name.replace(" epoch", "\nepoch") for name in places]
            panel.set_xticks(range(0, len(names), every), names[::every])
        panel.set_ylabel(f"log₁₀ eigenvalue (○), trace (△){what}")
    return _with_legend(figure, left)


# The look


def _blank(width: float, height: float, heading: str) -> "Figure":
    """An empty figure of so many inches, with a canvas, known to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(_wrapped(heading, width))
    return figure


def _panels(n_rows: int, n_columns: int, heading: str, width: float = 1, **options) -> tuple["Figure", Any]:
    figure = _blank(width * n_columns * PANEL[0], n_rows * PANEL[1] + 0.25, heading)
    return figure, figure.subplots(n_rows, n_columns, **options)


def _cycle(n: int) -> list[dict]:
    """n line styles, no two the same (up to 35)."""
    pairs = zip(itertools.cycle(COLOURS), itertools.cycle(DASHES), strict=False)
    return [{"color": colour, "linestyle": dash} for colour, dash in itertools.islice(pairs, n)]


def _styles(runs: list[Run]) -> list[dict]:
    return [style | {"label": run.label} for run, style in zip(runs, _cycle(len(runs)), strict=True)]


def _series(labels: list[str], in_order: bool = True) -> list[dict]:
    """A style for each; many that stand in an order go from dark to light. At most eight are named."""
    styles = _cycle(len(labels))
    if in_order and len(labels) > len(COLOURS):
        from matplotlib import colormaps

        shades = colormaps["cividis"](np.linspace(0, 0.95, len(labels)))
        styles = [{"color": shade, "linestyle": "-"} for shade in shades]
    named = set(np.linspace(0, len(labels) - 1, min(len(labels), MOST_NAMED)).round().astype(int))
    return [style | {"label": labels[k] if k in named else None} for k, style in enumerate(styles)]


def _wrapped(text: str, inches: float, beside: int = 6) -> str:
    """In lines that fit into so many inches, with a legend's handle, or so many letters, beside them."""
    return textwrap.fill(text, int(LETTERS_PER_INCH * inches) - beside)


def _with_legend(figure: "Figure", axes: "Axes") -> "Figure":
    """A legend of what `axes` shows, above all panels, where it covers no data; none for a single curve."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        names = [_wrapped(label, figure.get_figwidth()) for label in unique]
        heading = figure.get_suptitle()
        figure.suptitle("")  # else the legend would lie on it
        for rows in range(1, len(names) + 1):
            legend = figure.legend(
                unique.values(), names, loc="outside upper center", title=heading,
                ncols=math.ceil(len(names) / rows),
            )  # fmt: skip
            box = legend.get_window_extent()
            if box.width <= 0.97 * figure.bbox.width or rows == len(names):
                break
            legend.remove()
        # The panels keep their height; figures have room for a heading and one row.
        figure.set_figheight(figure.get_figheight() + max(0, box.height / figure.dpi - 0.4))
    return figure


def _finish(figure: "Figure") -> None:
    """Thin the curves, mark those of a single point, write ticks as plain text (formulas are not parsed),
    lay the panels out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

    class Scalar(ScalarFormatter):
        def get_offset(self):
            power = super().get_offset().replace("\N{MINUS SIGN}", "-").removeprefix("1e")
            return f"×{power_of_ten(int(power))}" if power.lstrip("-").isdigit() else power

    for axes in figure.axes:
        for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
            low, high = sorted(axis.get_view_interval())
            if scale == "log":
                axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(math.log10(value))))
                axis.set_minor_formatter(NullFormatter())
                if high < 100 * low:
                    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            elif type(axis.get_major_formatter()) is ScalarFormatter:
                axis.set_major_formatter(Scalar())
        for line in axes.lines:
            if line.get_marker() in (None, "None", "") and np.isfinite(line.get_xydata()).all(1).sum() == 1:
                line.set_marker("o")  # else it would not be seen
    thin(figure)
    figure.draw_without_rendering()  # once; every format would do it again
    figure.set_layout_engine("none")


def power_of_ten(exponent: float) -> str:
    """'0.01', '2', '1000', '10⁻⁶': a number as an axis has it, given its log10."""
    if -3 < exponent < 3.5 or exponent != round(exponent):
        return f"{10**exponent:.4g}"
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def thin(figure: "Figure") -> None:
    """Leave out of every long curve what cannot be seen: in each column of 1/300 inch that a curve
    passes it keeps the points where it enters, leaves, is highest and is lowest."""
    for axes in figure.axes:
        axes.autoscale_view()
        width = axes.get_window_extent().width / figure.dpi * COLUMNS_PER_INCH
        for line in axes.lines:
            xy = np.asarray(line.get_xydata())
            if len(xy) > 4 * width:
                place = axes.transAxes.inverted().transform(axes.transData.transform(xy))
                keep = visible(np.floor(width * place[:, 0]), place[:, 1])
                line.set_data(*xy[keep].T)


def visible(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the first, last, highest and lowest point of each stretch in one column.

    Args:
      columns: of each point, [n]; y: its height, [n].
    """
    starts = np.concatenate([[0], np.flatnonzero(np.diff(columns)) + 1])
    stretch = np.repeat(np.arange(len(starts)), np.diff([*starts, len(y)]))
    by_height = np.lexsort((np.where(np.isfinite(y), y, 0), stretch))
    ends = np.concatenate([starts[1:], [len(y)]]) - 1
    return np.unique(np.concatenate([starts, ends, by_height[starts], by_height[ends]]))


# All of it

FIGURES = {  # {kind: {name of a figure: its function, which begins with its caption}}
    "train": {
        "loss_margin": _loss_margin,
        "margins": _margins,
        "accuracy": _accuracy,
        "norms": _norms,
        "steps": _steps,
    },
    "attack_l2": {"attack_l2": _attack_l2},
    "attack_linf": {"attack_linf": _attack_linf},
    "measure_radius": {"profiles": _profiles, "radii": _radii},
    "make_points": {"surface": _surfaces},
    "measure_curvature": {"curvature": _curvature},
}


def drawn(runs: list[Run]) -> dict[str, "Figure"]:
    """The figures of runs, those of one kind in the same figures.

    Args:
      runs: as `read` gives them, in the order of their curves; they get their labels here.

    Returns: {name: matplotlib Figure}, each with an Agg canvas and outside pyplot.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        made = {}
        for kind, own in _groups(runs, lambda run: run.kind).items():
            label(own)
            made |= {name: function(own) for name, function in FIGURES[kind].items()}
        for figure in made.values():
            _finish(figure)
    return made


def build(directories: Iterable[Path | str]) -> dict[str, "Figure"]:
    """The figures of working directories: `drawn` of what `read` finds there, and raises as that."""
    return drawn(read(directories))


def draw(
    directories: Iterable[Path | str],
    out: Path | str | None = None,
    formats: tuple[str, ...] = ("png", "pdf"),
) -> dict[str, list[Path]]:
    """Draw working directories into files.

    Args:
      directories: as in `read`.
      out: a directory, made if it is not there; None: `figures` in the directory, and of several
        directories `figures` in the current one.
      formats: suffixes that matplotlib knows.

    Returns: {name of a figure: its files}. All are rendered before the first is written, and each
      replaces an older one at once: nobody finds half a picture.

    Raises: UserError as in `read`, and when the files cannot be written.
    """
    import matplotlib

    paths = list(dict.fromkeys(Path(d).resolve() for d in directories))
    runs = read(paths)
    out = Path(out) if out is not None else paths[0] / "figures" if len(paths) == 1 else Path("figures")
    with _writing_into(out):  # what cannot be written is said now, not after seconds of drawing
        there = next(place for place in (out, *out.resolve().parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
    contents = {}
    with matplotlib.rc_context(STYLE):
        for name, figure in tqdm(drawn(runs).items(), desc="figures", leave=False, disable=None):
            for suffix in formats:
                contents[name, suffix] = _rendered(figure, suffix)
    files = {}
    with _writing_into(out):
        out.mkdir(parents=True, exist_ok=True)
        for (name, suffix), content in contents.items():
            files.setdefault(name, []).append(out / f"{name}.{suffix}")
            results.replace_atomically(files[name][-1], lambda file, content=content: file.write(content))
    return files


@contextlib.contextmanager
def _writing_into(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write figures into {out}: {error.strerror}; "
            "make the place writable or choose another with --out"
        ) from None


def _rendered(figure: "Figure", suffix: str) -> bytes:
    """The figure as a file; the same figure gives the same bytes."""
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    file = io.BytesIO()
    dpi = DPI if suffix == "png" else RASTER_DPI
    figure.savefig(file, format=suffix, dpi=dpi, metadata=undated.get(suffix))
    return file.getvalue()


def main(argv: list[str]) -> int:
    """The command line; returns the exit status."""

    def show(directories, out):
        for files in draw(directories, out).values():
            print(*files)

    about = "Draw what runs have left."
    return flag_table.on_directories(
        argv, "figures.py", about, ("DIR", "figures in the directory; of several, ./figures"), show
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
