"""A run as used by figures and reports, and the labels that distinguish runs."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catalogue.attacks import METHODS, Method
from catalogue.tasks import TRAINING
from flags.table import FLAGS, TASKS_OF
from models.architectures import name_of
from reporting import style

MOST_FLAGS = 3  # flags in a label, when experiment names also distinguish the runs


@dataclass
class Run:
    """The results behind one curve.

    Attributes:
      path: the working directory.
      flags: of the run, flat ({'model.bias_mode': ...}).
      raw: of `res`; of a training run {eid: info}.
      about: of about.json; empty where that is missing.
      label: distinguishes it from the others of its kind.
    """

    path: Path
    flags: dict
    raw: dict
    about: dict = field(default_factory=dict)
    label: str = ""

    @property
    def kind(self) -> str:
        """Runs of one kind share figures: the task, and for an attack its norm, or "grid"."""
        if self.flags["task"] == "attack":
            return f"attack_{'grid' if self.method.eps_grid else self.method.norm.lower()}"
        return self.flags["task"]

    @property
    def method(self) -> Method:
        """The catalogue's row of an attack's method."""
        return METHODS[self.flags["attack_method"]]

    def distances(self, found: dict) -> np.ndarray:
        """`Method.distances` of an epoch's results of an attack, [N]."""
        return self.method.distances(found["errors"], found["clean_correct"], self.flags["attack_target"])

    @property
    def meant(self) -> dict:
        """The flags that its task or a training reads; those of other tasks have no meaning."""
        tasks = {self.flags["task"], *TRAINING}
        return {name: value for name, value in self.flags.items() if tasks.intersection(TASKS_OF[name])}

    @property
    def experiment(self) -> str:
        """The name of its script; '' where that is not recorded."""
        return str(self.about.get("experiment", ""))

    @property
    def measured(self) -> dict[str, int]:
        """For a measurement: {network: its epoch}; empty where that is not recorded."""
        return self.about.get("measured", {})


# Labels

UNLABELLED = {  # where and how a run ran, but not what it computed
    *("task", "data_dir", "load_dir", "logs_dir", "resume", "measured_experiment", "gpu", "checkpoint_every"),
    *("archive", "deterministic", "include_all_rt_loss_in_res", "early_reject", "seeds", "eid", "attack_B", "method"),
    *("on_random_labels", "figures", "tensorboard", "stats_every", "E", "attack_certificate", "parts", "threads"),
    *("xla", "cluster", "speculate", "axes"),
}
BIASES = {"NONE": "no bias", "FIRST_LAYER": "bias in first layer", "ALL": "bias in all layers"}
SCHEDULERS = {"loss-based-v1": "loss-based lr", "const-lr-and-loss-based-lr": "lr constant, then loss-based"}


def say(name: str, value: Any) -> str:
    """Return a flag's value for a legend: 'lr 0.01', 'loss-based lr', 'bias in all layers'."""
    short = name.removeprefix("model.").removeprefix("attack_")
    match name, value:
        case "lr", (str() as scheduler) | [scheduler, *_]:
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
        case "train_N" | "attack_N", int():
            return f"{value} {'training ' if name == 'train_N' else ''}images"
        case "attack_method", _:
            return str(value)
        case "attack_set", _:
            return "training images" if value == "train" else f"{value} images"
        case _, None:
            return f"default {short}"
    return f"{short} {plain(value, '.4g')}"


def network(description: list | None) -> str:
    """Return a layer description's name, 'CNN', or else its layers: 'C32 P F10'."""
    layers = " ".join("".join(map(str, layer[:2])) for layer in description or [])
    return (name_of(description) if description else None) or layers or "no network"


def label(runs: list[Run]) -> list[Run]:
    """Give each run its label: the flags in which they differ; where these are many, the experiments'
    names and the flags in which runs of one experiment differ; where that is not enough, these flags in
    full; where that is not either, the parts of their paths that differ. A single run has none."""
    flats = [{k: json.dumps(v) for k, v in run.meant.items()} for run in runs]
    names = ["dataset", "lr", "model.bias_mode"]
    names += [flag.name for flag in FLAGS if flag.name not in names]
    differing = [n for n in names if len({flat.get(n) for flat in flats}) > 1]
    shown = [n for n in differing if n not in UNLABELLED] or [n for n in differing if n == "E"]
    if len(shown) > MOST_FLAGS:
        by_experiment = groups(runs, lambda run: run.experiment)
        if len(by_experiment) > 1:
            for name, own in by_experiment.items():
                for run in label(own):
                    run.label = ", ".join(filter(None, [name, run.label]))
            return runs
    for run in runs:
        given = [n for n in shown if run.flags[n] is not None or n == "random_labels"]
        run.label = ", ".join(say(n, run.flags[n]) for n in given or shown)

    def in_full(same):
        own = [n for n in shown if len({json.dumps(run.flags[n]) for run in same}) > 1]
        return [[f"{n} {plain(run.flags[n], '.4g')}" for n in own] for run in same]

    for more in (in_full, _differing_parts):
        for same in groups(runs, lambda run: run.label).values():
            for run, words in zip(same, more(same), strict=True) if len(same) > 1 else ():
                run.label = ", ".join(filter(None, [run.label, *words]))
    return runs


def _differing_parts(runs: list[Run]) -> list[list[str]]:
    """Return each run's path, without the parts that all paths begin or end with."""
    paths = [list(run.path.resolve().parts) for run in runs]
    for end in (0, -1):
        while all(len(parts) > 1 for parts in paths) and len({parts[end] for parts in paths}) == 1:
            for parts in paths:
                parts.pop(end)
    return [["/".join(parts)] for parts in paths]


def plain(value: Any, shown: str = "") -> str:
    """Return a flag's value as it is typed; its floats in the format `shown`, '' for all digits."""
    if isinstance(value, list | tuple) and not any(isinstance(v, list | tuple | dict) for v in value):
        return ",".join(plain(v, shown) for v in value)
    return format(value, shown) if isinstance(value, float) else str(value)


def groups(things: Iterable, key: Callable) -> dict:
    groups: dict = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def title(runs: list[Run], *names: str) -> str:
    """Return the values that all runs share, of the flags with these names."""
    chosen = list(names or ("dataset", "lr", "model.bias_mode"))
    if chosen[0] == "dataset":  # which part of it
        chosen[1:1] = [name for name in ("classes", "train_N") if runs[0].flags[name] not in (None, "all")]
    common = [
        say(name, runs[0].flags[name]) for name in chosen if len({json.dumps(run.flags[name]) for run in runs}) == 1
    ]
    return ", ".join(common)


def columns(run: Run, *names: str) -> np.ndarray:
    """Return numbers of the epochs that have all of them, by ascending epoch: float64 [len(names), epochs].

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


def styles(runs: list[Run]) -> list[dict]:
    """Return a line style for each run, with its label."""
    return [look | {"label": run.label} for run, look in zip(runs, style.cycle(len(runs)), strict=True)]
