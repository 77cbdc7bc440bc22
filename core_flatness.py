"""The flatness experiments (arXiv 1801.02254, section IV) as tasks of a Core.

A script's last line calls `main`. A run of several seeds is a working directory with one working
directory for each seed, seed-<n>, in it; what measures it puts its own beside those.
"""

import sys
from types import SimpleNamespace

import core
import datasets
import results
from core import Core, Stopped, build_model, log, logging_to, shown_path
from pathlib import Path
from results import UserError


class FlatnessCore(Core):
    """Core with the tasks of the flatness experiments."""

    def __init__(self, flags: dict, name: str = "unnamed"):
        if flags["task"] == "make_random_labels":  # needs no network
            self.flags, self.f, self.name = flags, SimpleNamespace(**flags), name
        else:
            super().__init__(flags, name)

    def tasks(self):
        return super().tasks() | {
            "make_random_labels": self.make_random_labels,
            "train_seeds": self.train_seeds,
        }

    def make_random_labels(self) -> Path:
        """Store random labels for the data set, once (SPEC F2); returns the file's path."""
        path = self.random_labels_path()
        if path.exists():
            log.info("%s is there already and stays; delete it to draw anew", shown_path(path))
            return path
        f = self.f
        dataset = datasets.load(f.dataset, f.data_dir, None if f.train_N == "all" else f.train_N)
        (_, labels), _ = dataset
        drawn = datasets.draw_random_labels(labels, dataset.n_classes, f.seed)
        datasets.save_random_labels(path, drawn, f.seed)
        log.info("%d labels, %.2f%% changed, in %s", len(drawn), 100 * (drawn != labels).mean(), shown_path(path))
        return path

    def train_seeds(self) -> Path:
        """Train one network for each of `seeds`; the run's directory has a working directory for each."""
        flags = self.flags
        if flags["resume"]:
            parent = results.check_run(flags["resume"])
        else:
            parent = results.create(self.logs_dir(), self.name)
            results.WorkDir(parent).write_json("about.json", self.about())
        work_dir = results.WorkDir(parent)
        work_dir.write_json("flags.json", flags)
        children = []
        for seed in flags["seeds"]:
            child = flags | {"task": "train", "seed": seed, "seeds": None, "resume": str(parent / f"seed-{seed}")}
            children.append(child)
            self._prepare(Path(child["resume"]), child)
        for child in children:
            self.flags, self.f = child, SimpleNamespace(**child)
            self.model = build_model(self.f.model, self.dataset, self.f.seed)
            self.train()
        return parent

    def _prepare(self, path: Path, flags: dict) -> None:
        """Make a seed's working directory as if its run had been stopped before its first epoch."""
        if not (path / "flags.json").exists():
            path.mkdir(exist_ok=True)
            work_dir = results.WorkDir(path)
            work_dir.write_json("about.json", self.about())
            work_dir.write_json("flags.json", flags | {"resume": None})


def main(script: str, flags: dict, about: str | None = None) -> None:
    """As `core.main`, for a script of the flatness experiments."""
    core.main(script, flags, about, FlatnessCore)
