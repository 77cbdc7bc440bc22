"""Pictures of what experiments have left on the disk. Neither TensorFlow nor Core here.

    python figures.py <working directory> [more directories] [--out DIR]

What a directory is, its own flags say: a training run, an attack, a radius, a surface, a curvature. Each
kind has its figures, and directories of one kind come into the same ones, told apart by the flags in
which they differ. matplotlib is imported when something is drawn.

A panel is about as wide as a column of a two-column paper (3.3 inches), its smallest letters 7 points.
Curves differ in colour and in line style, so that they can be told apart without colours as well.
"""

import io
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import flags as flag_table
import results
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
}
DPI = 200  # of a PNG; in a PDF, of the parts that have too many points for vectors: RASTER_DPI
RASTER_DPI = 400
COLUMNS_PER_INCH = 300  # a curve of more points is thinned to what this resolution shows

SURFACE_CLIP = 3.5
SURFACE_VIEWS = {  # (elevation, azimuth) in degrees, by (data set, random labels); SPEC F3
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
    def task(self) -> str:
        return self.flags["task"]


def read(directory: Path | str) -> list[Run]:
    """What a working directory has to draw: one run, or one for each seed of a run of several.

    Raises: UserError when it is no run, damaged, of a kind without figures, or has no results yet.
    """
    path = results.check_run(directory)
    flags = _flags(path)
    if flags["task"] == "train_seeds":
        children = [p for p in sorted(path.glob("seed-*")) if (p / "flags.json").is_file()]
        runs = [Run(child, _flags(child), _raw(child, "train")) for child in children]
        runs = [run for run in runs if run.raw]
    elif flags["task"] in FIGURES:
        runs = [Run(path, flags, _raw(path, flags["task"]))]
    else:
        raise UserError(f"{path}: a {flags['task']}; of that there are no figures")
    if not any(run.raw for run in runs):
        raise UserError(f"{path}: has nothing to draw yet: {NOTHING_YET[flags['task']]}")
    return runs


def _flags(path: Path) -> dict:
    """A run's flags, flat; of flags that it did not know yet, the defaults."""
    stored = results.read_flags(path)
    if not isinstance(stored, dict):
        raise UserError(f"{path / 'flags.json'}: damaged (not a dict of flags)")
    return {flag.name: flag.default for flag in flag_table.FLAGS} | flag_table.flatten(stored)


NOTHING_YET = {
    "train": "no epoch was accepted",
    "train_seeds": "no epoch was accepted",
    "attack": "it is not finished (resume it with --resume)",
    "measure_radius": "it is not finished (resume it with --resume)",
    "make_points": "it is not finished (resume it with --resume)",
    "measure_curvature": "it is not finished (resume it with --resume)",
}


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
        missing = NEEDED[task] - set(part) if isinstance(part, dict) else NEEDED[task]
        if missing:
            raise UserError(
                f"{path / 'res'}: damaged, or not what a {task} leaves "
                f"(it has no {', '.join(sorted(missing))}); run it again"
            )
    return raw


NEEDED = {  # in `raw` itself or, where that is a dict of epochs or networks, in each of them
    "train": {"eid", "lr", "log_frame", "time", "stats"},
    "attack": {"errors", "success", "clean_correct"},
    "measure_radius": {"networks", "row"},
    "make_points": {"X", "Y", "Z", "networks"},
    "measure_curvature": {"eigenvalues", "trace", "log_frame", "log_loss"},
}


# How runs are told apart

NOT_SAID = {  # where and how a run ran, but not what it computed
    *("task", "data_dir", "load_dir", "logs_dir", "resume", "source", "gpu", "checkpoint_every", "archive"),
    *("deterministic", "include_all_rt_loss_in_res", "early_reject", "seeds", "eid", "attack_B", "method"),
    *("random", "figures", "tensorboard", "stats_every", "E"),
}
BIASES = {"NONE": "no bias", "FIRST_LAYER": "bias in first layer", "ALL": "bias in all layers"}
SCHEDULERS = {"loss-based-v1": "loss-based lr", "const-lr-and-loss-based-lr": "lr constant, then loss-based"}


def say(name: str, value: Any) -> str:
    """A flag's value as a legend has it: 'lr 0.01', 'loss-based lr', 'bias in all layers'."""
    match name, value:
        case "lr", [scheduler, *_]:
            return SCHEDULERS.get(scheduler, f"{scheduler} lr")
        case "lr", _:
            return f"lr {value:g}"
        case "model.bias_mode", _:
            return BIASES.get(value, str(value))
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
        case _, float():
            return f"{name.removeprefix('model.')} {value:g}"
    return f"{name.removeprefix('model.')} {value}"


def label(runs: list[Run]) -> list[Run]:
    """Give each run its label: the flags in which they differ; where these do not tell, its directory."""
    flats = [{k: _hashable(v) for k, v in run.flags.items()} for run in runs]
    names = ["dataset", "lr", "model.bias_mode"]
    names += [flag.name for flag in flag_table.FLAGS if flag.name not in names]
    differing = [n for n in names if len({flat[n] for flat in flats}) > 1]
    said = [n for n in differing if n not in NOT_SAID] or [n for n in differing if n == "E"]
    for run in runs:
        run.label = ", ".join(say(n, run.flags[n]) for n in said)
    for same in _groups(runs, lambda run: run.label).values():
        full = [n for n in said if len({_hashable(run.flags[n]) for run in same}) > 1]
        for run in same if len(same) > 1 else ():
            more = [f"{n} {_plain(run.flags[n])}" for n in full] or [run.path.resolve().name]
            run.label = ", ".join([*filter(None, [run.label]), *more])
    return runs


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else repr(value)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
        if len({_hashable(run.flags[name]) for run in runs}) == 1
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


def training_figures(runs: list[Run]) -> dict[str, "Figure"]:
    return {
        "loss_margin": _loss_margin(runs),
        "margins": _margins(runs),
        "accuracy": _accuracy(runs),
        "norms": _norms(runs),
        "steps": _steps(runs),
    }


MARGINS = {
    "q_bar_min": r"$q_{\min}/\rho^L$",
    "q_bar2_min": r"$q_{\min}/(\rho_1 \cdots \rho_L)$",
}


def _loss_margin(runs: list[Run]) -> "Figure":
    """As figure 1 of arXiv 1906.05890: training loss and normalized margin against epoch."""
    figure, (left, right) = _panels(1, 2, title(runs))
    for run, style in zip(runs, _styles(runs), strict=True):
        eid, log_loss = columns(run, "eid", "log_loss")
        left.plot(eid, log_loss / LN10, **style)
        right.plot(*columns(run, "eid", "q_bar_min"), **style)
    left.set(xlabel="epoch", ylabel="log₁₀ training loss")
    right.set(xlabel="epoch", ylabel=f"normalized margin {MARGINS['q_bar_min']}")
    for axes in (left, right):
        axes.set_xlim(0, None)
    _show_the_rise(right)
    return _with_legend(figure, left)


def _margins(runs: list[Run]) -> "Figure":
    """Both normalized margins against epoch and against the loss, on axes that show every decade."""
    figure, axes = _panels(2, 2, title(runs), sharex="col", sharey="row")
    for (name, formula), row in zip(MARGINS.items(), axes, strict=True):
        for run, style in zip(runs, _styles(runs), strict=True):
            eid, log_loss, margin = columns(run, "eid", "log_loss", name)
            row[0].plot(eid, margin, **style)
            row[1].plot(log_loss / LN10, margin, **style)
        row[0].set_ylabel(f"normalized margin {formula}")
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
    if 0 < top < math.inf:
        axes.set_ylim(max(1.05 * bottom, -0.08 * top) if bottom < 0 else 0, 1.05 * top)


LOSS_TICKS = (3, 1, 0, -1, -3, -10, -30, -100, -300, -1000, -3000)


def _loss_axis(axes: "Axes") -> None:
    """x: log10 of the training loss, falling to the right; from -1 on itself on a logarithmic scale."""
    low, high = axes.dataLim.intervalx
    if low < -3:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        ticks = [tick for tick in LOSS_TICKS if low <= tick <= high]
        axes.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.margins(x=0.01)
    axes.xaxis.set_inverted(True)
    axes.set_xlabel("log₁₀ training loss")


ACCURACY_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 100)


def _accuracy(runs: list[Run]) -> "Figure":
    """Training and test accuracy, on an axis that is stretched towards 100 %."""
    figure, (left, right) = _panels(1, 2, title(runs), sharey=True)
    for axes, name in ((left, "acc"), (right, "test_acc")):
        for run, style in zip(runs, _styles(runs), strict=True):
            eid, accuracy = columns(run, "eid", name)
            axes.plot(eid, 100 * accuracy, **style)
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
    """Each layer's norm, and how much its square has grown: under gradient flow, as much in every
    layer of a homogeneous network (Du, Hu and Lee, arXiv 1806.00900). A row a run."""
    names = [
        sorted((k for k in _stats_keys(run) if k[:4] == "rho_"), key=lambda k: int(k[4:])) for run in runs
    ]
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
        left.set_ylabel(r"norm of a layer $\rho_k$")
        right.set_ylabel(r"growth of $\rho_k^2$")
        for panel in (left, right):
            panel.set_title(run.label)
    for panel in axes.reshape(-1, 2)[-1]:
        _epochs_by_decade(panel)
    return _with_legend(figure, axes.reshape(-1, 2)[names.index(longest), 0])


def _stats_keys(run: Run) -> set[str]:
    return set().union(*(info["stats"] for info in run.raw.values()))


def _steps(runs: list[Run]) -> "Figure":
    """Learning rates in the frame and as they are, attempts and time of each epoch."""
    figure, axes = _panels(2, 2, title(runs), sharex=True)
    (relative, true), (attempts, seconds) = axes
    for run, style in zip(runs, _styles(runs), strict=True):
        eid, lr, log_frame = columns(run, "eid", "lr", "log_frame")
        relative.plot(eid, lr, **style)
        true.plot(eid, np.log10(lr) - log_frame / LN10, **style)
        for panel, name in ((attempts, "attempts"), (seconds, "time")):
            eid, value = columns(run, "eid", name)
            width = max(1, len(value) // 50)
            panel.plot(eid, _running_mean(value, width), **style)
    relative.set(ylabel="lr in the frame", yscale="log")
    true.set(ylabel="log₁₀ lr")
    mean = ", running mean" if max(len(run.raw) for run in runs) >= 100 else ""
    attempts.set(ylabel=f"attempts an epoch{mean}", xlabel="epoch", ylim=(0, None))
    seconds.set(ylabel=f"seconds an epoch{mean}", xlabel="epoch", ylim=(0, None))
    attempts.set_xlim(0, None)
    return _with_legend(figure, relative)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the `width` values around each; near the ends, of those that there are."""
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


# Attacks


def attack_figures(runs: list[Run]) -> dict[str, "Figure"]:
    linf = [run for run in runs if run.flags["attack_method"] == "pgd"]
    l2 = [run for run in runs if run.flags["attack_method"] != "pgd"]
    drawn = {}
    if l2:
        drawn["attack_l2"] = _attack_l2(l2)
    if linf:
        drawn["attack_linf"] = _attack_linf(linf)
    return drawn


def _curves(runs: list[Run]) -> list[tuple[Run, dict, dict]]:
    """(run, the results of an epoch, style) of every epoch of every attack."""
    found = [(run, eid, run.raw[eid]) for run in runs for eid in sorted(run.raw)]
    if len(runs) == 1 and len(found) > len(COLOURS):  # epochs, in their order: from dark to light
        from matplotlib import colormaps

        shades = colormaps["cividis"](np.linspace(0, 0.95, len(found)))
        styles = [{"color": shade, "linestyle": "-"} for shade in shades]
    else:
        styles = _cycle(len(found))
    named = (
        set(np.linspace(0, len(found) - 1, 8).round().astype(int)) if len(found) > 12 else range(len(found))
    )
    return [
        (
            run,
            res,
            style | {"label": ", ".join(filter(None, [run.label, f"epoch {eid}"])) if k in named else None},
        )
        for k, ((run, eid, res), style) in enumerate(zip(found, styles, strict=True))
    ]


def _attack_l2(runs: list[Run]) -> "Figure":
    """Distribution of the distances, and robust accuracy at every eps: one curve per epoch."""
    figure, (left, right) = _panels(1, 2, title(runs, "dataset", "attack_method", "attack_set"))
    curves = _curves(runs)
    distances = [np.sqrt(res["errors"][res["success"] & res["clean_correct"]]) for _, res, _ in curves]
    everything = np.concatenate(distances)
    far = 1.05 * np.quantile(everything, 0.999) if len(everything) else 1.0
    bins = np.linspace(0, far, int(np.clip(np.sqrt(min(map(len, distances))), 10, 60)) + 1)
    for (_, res, style), found in zip(curves, distances, strict=True):
        shares = np.histogram(found, bins)[0] / max(len(found), 1) / np.diff(bins)
        left.stairs(shares, bins, **_as_patch(style))
        right.plot(*robust_accuracy(res), drawstyle="steps-post", **style)
    left.set(xlabel=r"$L_2$ distance of an adversarial example", ylabel="density", ylim=(0, None))
    right.set(xlabel=r"$\varepsilon$ ($L_2$)", ylabel="robust accuracy, %", ylim=(0, 102))
    for axes in (left, right):
        axes.set_xlim(0, far)
    return _with_legend(figure, right)


def _as_patch(style: dict) -> dict:
    return {{"color": "edgecolor"}.get(key, key): value for key, value in style.items()}


def robust_accuracy(res: dict) -> tuple[np.ndarray, np.ndarray]:
    """(eps [n + 1], percent of all images that are classified right and have no example within eps).

    The steps of a curve that is constant between two eps. An image without an example never falls.
    """
    right = res["clean_correct"]
    fallen = np.sort(np.sqrt(res["errors"][right & res["success"]]))
    eps = np.concatenate([[0.0], fallen])
    return eps, 100 * (right.sum() - np.arange(len(eps))) / len(right)


def _attack_linf(runs: list[Run]) -> "Figure":
    """At which eps of the list images fall, and robust accuracy at each: one curve per epoch."""
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
    left.set(xlabel=r"smallest $\varepsilon$ with an example", ylabel="images, %", ylim=(0, None))
    right.set(xlabel=r"$\varepsilon$ ($L_\infty$)", ylabel="robust accuracy, %", ylim=(0, 102))
    left.set_xlim(0, 1.05 * eps_list[-1])
    right.set_xlim(0, 1.05 * eps_list[-1])
    return _with_legend(figure, right)


# Flatness


def radius_figures(runs: list[Run]) -> dict[str, "Figure"]:
    return {"profiles": _profiles(runs), "radii": _radii(runs)}


def _profiles(runs: list[Run]) -> "Figure":
    """The loss along each random direction up to the radius, a panel a measurement (SPEC F4)."""
    n_columns = min(len(runs), 2)
    figure, axes = _panels(math.ceil(len(runs) / n_columns), n_columns, title(runs, "dataset"))
    panels = np.atleast_1d(axes).ravel()
    for run, panel in zip(runs, panels, strict=False):
        networks = run.raw["networks"]
        styles = _cycle(len(networks))
        for (name, found), style in zip(networks.items(), styles, strict=True):
            for profile in found["profiles"]:
                walked = run.flags["step"] * np.arange(len(profile))
                change = np.asarray(profile) - found["I"]
                panel.plot(walked, change, **style | {"linewidth": 0.5, "alpha": 0.45})
                panel.plot(walked[-1], change[-1], ".", color=style["color"], markersize=2.5)
            panel.plot([], [], **style, label=name)
        threshold = run.flags["threshold"]
        panel.axhline(threshold, color="0.3", linewidth=0.7, linestyle="--")
        panel.set(xlabel="distance walked", ylabel=r"change of the loss $I$", title=run.label)
        panel.set_xlim(0, None)
        panel.set_ylim(None, 1.15 * threshold)
        panel.legend(loc="upper left", bbox_to_anchor=(0, 0.86))
    for panel in panels[len(runs) :]:
        panel.set_axis_off()
    return figure


def _radii(runs: list[Run]) -> "Figure":
    """Every direction's radius, each network's mean, and the published mean ± standard deviation."""
    figure, axes = _panels(1, 1, title(runs, "dataset"), width=max(1, 0.35 * len(runs)))
    drawn = False
    for k, run in enumerate(runs):
        networks, row = run.raw["networks"], run.raw["row"]
        offsets = np.linspace(-0.22, 0.22, len(networks)) if len(networks) > 1 else [0.0]
        for offset, found, style in zip(offsets, networks.values(), _cycle(len(networks)), strict=True):
            radii, counts = np.unique(found["radii"], return_counts=True)
            axes.scatter(
                np.full(len(radii), k + offset), radii, s=4 + 5 * counts, alpha=0.5, linewidth=0,
                color=style["color"], label=None if drawn else "directions (area: how many)",
            )  # fmt: skip
            axes.plot(
                k + offset + np.array([-0.09, 0.09]), [found["mean"]] * 2, color=style["color"],
                label=None if drawn else "mean of a network",
            )  # fmt: skip
            drawn = True
        if row.get("published"):
            mean, sd = row["published"]
            axes.errorbar(
                k + 0.38, mean, sd, fmt="D", color="k", markersize=3, capsize=2, linewidth=0.8,
                label="published, mean ± sd" if k == 0 else None,
            )  # fmt: skip
    axes.set_xticks(
        range(len(runs)),
        [(run.label or say("params", run.flags["params"])).replace(", ", "\n") for run in runs],
    )
    axes.set(xlim=(-0.5, len(runs) - 0.4), ylabel="flatness radius")
    axes.set_ylim(0, None)
    return _with_legend(figure, axes)


def surface_figures(runs: list[Run]) -> dict[str, "Figure"]:
    return {"surface": _surfaces(runs)}


def _surfaces(runs: list[Run]) -> "Figure":
    """The loss in the plane of three networks: as the paper draws it, and as a map; a row a surface."""
    figure = _blank(2 * PANEL[0], 2.6 * len(runs), title(runs, "dataset"))
    for k, run in enumerate(runs):
        X, Y, Z = (np.asarray(run.raw[name]) for name in "XYZ")
        side = figure.add_subplot(len(runs), 2, 2 * k + 1, projection="3d")
        _plot_surface(side, X, Y, Z, view_of(run), zoom=1.3)
        chart = figure.add_subplot(len(runs), 2, 2 * k + 2)
        clipped = _clipped(Z)
        levels = np.linspace(0, max(clipped.max(), 1e-12), 15)
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
        bar = figure.colorbar(filled, ax=chart, ticks=np.arange(0, SURFACE_CLIP + 0.1, 0.5), pad=0.02)
        bar.set_label("training loss" + (f" (cut at {SURFACE_CLIP})" if np.nanmax(Z) > SURFACE_CLIP else ""))
        chart.set_title(run.label)
    return figure


def view_of(run: Run) -> tuple[int, int]:
    """Elevation and azimuth from which the paper looks at such a surface."""
    random = run.flags["random_labels"] is not None
    return SURFACE_VIEWS.get((run.flags["dataset"], random), SURFACE_VIEWS["mnist", random])


def _clipped(Z: np.ndarray) -> np.ndarray:
    return np.minimum(np.nan_to_num(Z, nan=SURFACE_CLIP, posinf=SURFACE_CLIP), SURFACE_CLIP)


def _plot_surface(
    axes: "Axes", X: np.ndarray, Y: np.ndarray, Z: np.ndarray, view: tuple[int, int], zoom: float = 1
) -> None:
    drawn = axes.plot_surface(
        X, Y, _clipped(Z), cmap="coolwarm", rcount=len(X), ccount=len(X), linewidth=0, antialiased=False
    )
    drawn.set(rasterized=True, clip_on=False)
    axes.view_init(*view)
    axes.set_box_aspect(None, zoom=zoom)
    axes.set_axis_off()


def surface(
    X: np.ndarray, Y: np.ndarray, Z: np.ndarray, path: Path | str, view: tuple[int, int] = (60, 225)
) -> Path:
    """Draw the loss in the plane of three networks as the second paper does (SPEC F3), into a file.

    Args:
      X, Y, Z: [n, n]; Z is the loss. It is clipped at 3.5; a loss that is no number counts as that.
      path: of the picture; its suffix says the format.
      view: elevation and azimuth, degrees.

    Returns: path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    FigureCanvasAgg(figure)
    _plot_surface(figure.add_axes((0, 0, 1, 1), projection="3d"), X, Y, Z, view)
    figure.savefig(path, dpi=120)
    return Path(path)


def curvature_figures(runs: list[Run]) -> dict[str, "Figure"]:
    return {"curvature": _curvature(runs)}


def _curvature(runs: list[Run]) -> "Figure":
    """The Hessian's largest eigenvalues and its trace, and both over the loss, for each network."""
    figure, (left, right) = _panels(1, 2, title(runs, "dataset"))
    names = list(dict.fromkeys(name for run in runs for name in run.raw))
    for run, style in zip(runs, _styles(runs), strict=True):
        x = [names.index(name) for name in run.raw]
        for panel, log_unit in (
            (left, [found["log_frame"] for found in run.raw.values()]),
            (right, [found["log_frame"] - found["log_loss"] for found in run.raw.values()]),
        ):

            def logs(values, log_unit=log_unit):
                with np.errstate(divide="ignore", invalid="ignore"):
                    return np.log10(np.asarray(values, np.float64)) + np.asarray(log_unit) / LN10

            eigenvalues = np.array([found["eigenvalues"] for found in run.raw.values()]).T
            for k, values in enumerate(eigenvalues):
                own = style if k == 0 else style | {"label": None, "alpha": 0.5, "linewidth": 0.6}
                panel.plot(x, logs(values), marker="o", **own)
            trace = logs([found["trace"] for found in run.raw.values()])
            panel.plot(x, trace, **style | {"label": None, "linewidth": 0.6}, marker="^", markerfacecolor="w")
    for panel, what in ((left, ""), (right, " / loss")):
        panel.set_xticks(range(len(names)), names)
        panel.set_ylabel(f"log₁₀ eigenvalue (○), trace (△){what}")
    return _with_legend(figure, left)


# The look


def _blank(width: float, height: float, heading: str) -> "Figure":
    """An empty figure of so many inches, with a canvas, known to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(heading)
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


def _with_legend(figure: "Figure", axes: "Axes") -> "Figure":
    """A legend of what `axes` shows, above all panels, where it covers no data; none for a single curve."""
    handles, labels = axes.get_legend_handles_labels()
    if any(labels):
        columns = min(len(labels), max(1, int(figure.get_figwidth() * 16 / (6 + max(map(len, labels))))))
        heading = figure.get_suptitle()
        figure.suptitle("")  # else the legend would lie on it
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, title=heading)
    return figure


def _finish(figure: "Figure") -> None:
    """Thin the curves, write ticks as plain text (parsing formulas is slow), lay the panels out."""
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
    """Indices, ascending, of the first, last, highest and lowest point of each stretch in one column."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(columns)) + 1])
    stretch = np.repeat(np.arange(len(starts)), np.diff([*starts, len(y)]))
    by_height = np.lexsort((np.where(np.isfinite(y), y, 0), stretch))
    ends = np.concatenate([starts[1:], [len(y)]]) - 1
    return np.unique(np.concatenate([starts, ends, by_height[starts], by_height[ends]]))


# All of it

FIGURES = {
    "train": training_figures,
    "attack": attack_figures,
    "measure_radius": radius_figures,
    "make_points": surface_figures,
    "measure_curvature": curvature_figures,
}
DRAWN = (*FIGURES, "train_seeds")  # the tasks whose directories have figures


def build(directories: Iterable[Path | str]) -> dict[str, "Figure"]:
    """The figures of working directories, those of one kind in the same figures.

    Args:
      directories: of runs, attacks and measurements, in the order of their curves.

    Returns: {name: matplotlib Figure}, each with an Agg canvas and outside pyplot.

    Raises: UserError for a directory that is no run, damaged, or has nothing to draw.
    """
    import matplotlib

    paths = list(dict.fromkeys(results.check_run(d).resolve() for d in directories))
    runs = [run for path in paths for run in read(path)]
    drawn = {}
    with matplotlib.rc_context(STYLE):
        for task, own in _groups(runs, lambda run: run.task).items():
            drawn |= FIGURES[task](label(own))
        for figure in drawn.values():
            _finish(figure)
    return drawn


def draw(
    directories: Iterable[Path | str],
    out: Path | str | None = None,
    formats: tuple[str, ...] = ("png", "pdf"),
) -> dict[str, list[Path]]:
    """Draw working directories into files.

    Args:
      directories: as in `build`.
      out: a directory, made if it is not there; None: `figures` in the first of directories.
      formats: suffixes that matplotlib knows.

    Returns: {name of a figure: its files}. All are rendered before the first is written, and each
      replaces an older one at once: nobody finds half a picture.

    Raises: UserError as in `build`, and when the files cannot be written.
    """
    import matplotlib

    directories = [Path(d) for d in directories]
    out = directories[0] / "figures" if out is None else Path(out)
    drawn = build(directories)
    contents = {}
    with matplotlib.rc_context(STYLE):
        for name, figure in tqdm(drawn.items(), desc="figures", leave=False, disable=None):
            for suffix in formats:
                contents[name, suffix] = _rendered(figure, suffix)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for (name, suffix), content in contents.items():
            results.replace_atomically(
                out / f"{name}.{suffix}", lambda file, content=content: file.write(content)
            )
    except OSError as error:
        raise UserError(
            f"cannot write figures into {out}: {error.strerror}; "
            "make the place writable or choose another with --out"
        ) from None
    return {name: [out / f"{name}.{suffix}" for suffix in formats] for name in drawn}


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
        argv, "figures.py", about, ("DIR", "figures in the first directory"), show
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
