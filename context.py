"""Context: what every task is given. It knows no task.

Data, device and network are made when they are first asked for. So a mistake in the flags is said before
TensorFlow is loaded, and a task pays for what it uses.
"""

import contextlib
import copy
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import datasets
import flags as flag_table
import results
from device import choose_parts, choose_xla, cores, import_tensorflow, set_threads, set_up_device
from errors import UserError
from flags.table import TRAINING
from results import ROOT
from screen import log, logging_to, shown_path


class _Values(SimpleNamespace):
    """Flags as attributes, to be read only."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"flags are read-only; Context.changed({name}=...) gives a Context with another {name}")


class Context:
    """The flags of one task, and what follows from them.

    Args:
      flags: nested; what is left out has its default.
      name: the experiment's; its working directories are below logs/<name>.
      stop_if_asked: called about once a second; raises Stopped to end the task.

    Attributes:
      f: the flags as attributes.
      published: {name: weights} that units of work refer to (`execution`).
      say: shows how far a piece of work is.

    Raises: UserError for flags, here and when data or network are asked for.
    """

    def __init__(self, flags: dict, name: str = "unnamed", stop_if_asked: Callable[[], None] = lambda: None):
        self._flags = flag_table.complete(flags)
        self.f = _Values(**self._flags)
        self.name, self.stop_if_asked = name, stop_if_asked
        self.published: dict[str, Any] = {}
        self.say: Callable[[str], None] = lambda text: None
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._lock = threading.RLock()

    @property
    def flags(self) -> dict:
        """A copy of all flags, nested, as flags.json and `res` hold them."""
        return copy.deepcopy(self._flags)

    def changed(self, **changes: Any) -> "Context":
        """Other flags, and the data, device and network of this Context, which must not depend on them."""
        other = Context(self._flags | changes, self.name, self.stop_if_asked)
        shared = ("dataset", "fingerprint", "device", "threads", "parts", "xla", "model", "train_set", "test_set")
        vars(other).update({name: vars(self)[name] for name in shared if name in vars(self)})
        return other

    def kept(self, slot: str, key: Any, make: Callable[[], Any]) -> Any:
        """The value of make(). It is made once, and kept in its slot until another key comes. Safe in threads."""
        with self._lock:
            if slot not in self._kept or self._kept[slot][0] != key:
                self._kept[slot] = key, make()
            return self._kept[slot][1]

    # Data

    @cached_property
    def natural_dataset(self) -> datasets.Dataset:
        """The data set with its own labels."""
        train_N, test_N = (None if n == "all" else n for n in (self.f.train_N, self.f.test_N))
        return datasets.load(self.f.dataset, self.f.data_dir, train_N, test_N, self.f.classes, self.f.subset_seed)

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """The data set with the labels that are learned."""
        if self.f.random_labels is None:
            return self.natural_dataset
        return datasets.with_labels_of(self.natural_dataset, self.random_labels_path)

    @property
    def random_labels_path(self) -> Path:
        """The file that the flag random_labels means."""
        if self.f.random_labels not in (None, "default"):
            return Path(self.f.random_labels)
        part = "" if self.f.classes is None else "-classes-" + "-".join(map(str, self.f.classes))
        if self.f.train_N != "all":
            part += (
                f"-first-{self.f.train_N}"
                if self.f.subset_seed is None
                else f"-{self.f.train_N}-of-{self.f.subset_seed}"
            )
        return ROOT / "random_labels" / f"{Path(self.f.dataset).stem}{part}.npz"

    @cached_property
    def fingerprint(self) -> int:
        """CRC-32 of all images and labels."""
        crc = 0
        for x, y in self.dataset:
            crc = zlib.crc32(y, zlib.crc32(x, crc))
        return crc

    @cached_property
    def train_set(self) -> tuple:
        """(images, labels) of the training set on the device."""
        return self._on_device(self.dataset[0])

    @cached_property
    def test_set(self) -> tuple:
        """(images, labels) of the test set on the device."""
        return self._on_device(self.dataset[1])

    def _on_device(self, part: tuple) -> tuple:
        import_tensorflow()
        from models.network import on_device

        return on_device(*part)

    # Device and network

    @cached_property
    def device(self) -> str:
        """The device that everything is computed on, chosen now."""
        return set_up_device(self.f.gpu, self.f.tf32, self.f.deterministic)

    @cached_property
    def _began_with(self) -> dict:
        """Threads, parts, xla that the run to resume began with; empty where that is not known."""
        if not self.f.resume:
            return {}
        about = results.read_about(self.f.resume)
        began = about.get("threads", {}) | {"xla": about.get("xla")}
        # A GPU's way is no CPU's way.
        return began if str(about.get("device")).startswith("CPU") == self.device.startswith("CPU") else {}

    @cached_property
    def threads(self) -> int:
        """How many threads compute, in this process or in each worker.

        The flag, or those that a resumed run began with, or one a core.
        """
        if self.f.threads != "auto":
            return self.f.threads
        share = cores()
        if self.f.cluster is not None:  # a worker's: of those on this machine each has its share of the cores
            share = max(cores() // self.f.cluster, 1) if isinstance(self.f.cluster, int) else 1
        return int(self._began_with.get("threads", share))

    @cached_property
    def parts(self) -> int:
        """Into how many slices batches are cut (`models.network.Network`).

        Attacks and measurements have large batches: all cores share each op.
        """
        if self.f.task not in TRAINING:
            return 1
        wanted = self.f.parts
        if wanted == "auto" and self.f.threads == "auto":
            wanted = self._began_with.get("parts", "auto")
        shape = self.dataset[0][0].shape[1:]
        return choose_parts(wanted, self.f.model["description"], shape, self.f.B, self.device, self.threads)

    @cached_property
    def xla(self) -> bool:
        """Whether XLA compiles the training turn."""
        if self.f.task not in TRAINING:
            return False
        wanted = self.f.xla
        if wanted == "auto" and self._began_with.get("xla") is not None:
            wanted = self._began_with["xla"]
        return choose_xla(wanted, self.device)

    @cached_property
    def model(self) -> Any:
        """The network, with the initial weights of the flag seed. Raises: UserError where it does not fit."""
        (x_train, _), _ = self.dataset
        if len(x_train) < self.f.B:
            raise UserError(
                f"--B {self.f.B}: larger than the training set of {len(x_train)} examples; give at most that"
            )
        set_threads(self.threads, self.parts)  # before TensorFlow computes anything; `parts` needs the device
        self.device  # noqa: B018 (chosen before the first variable is made)
        return build_network(self.f.model, self.dataset, self.f.seed, self.parts, self.xla)

    def check_weights(self, weights: list[tuple[str, np.ndarray]], where: str) -> list[np.ndarray]:
        """The arrays of stored weights. Raises: UserError when they are another network's."""
        arrays = [array for _, array in weights]
        try:
            self.model.check_weights(arrays)
        except ValueError as error:
            raise UserError(f"{where}: holds another network ({error})") from None
        return arrays

    def stored_weights(self, directory: Path | str, eid: int) -> list[np.ndarray]:
        """The weights of a stored epoch. Raises: UserError where they are missing or another network's."""
        return self.check_weights(results.load_weights(directory, eid), f"epoch {eid} of {directory}")

    # Going on with a run, or looking at one

    def check_resumed(self, command: str = "./run.sh") -> Path:
        """The directory to resume. Raises: UserError when it is no run, or one of another experiment."""
        path = results.check_run(self.f.resume)
        name = results.read_about(path).get("experiment")
        if name != self.name:
            raise UserError(
                f"--resume {path}: a run of {name}, not of {self.name}; use {command} {name} --resume {path}"
            )
        return path

    def check_data(self, path: Path) -> None:
        """Raises: UserError when a run was on other data or labels than those loaded now."""
        if results.read_about(path).get("data", {}).get("crc32") != self.fingerprint:
            raise UserError(
                f"{path}: was run on other data or labels than those found now; give the same with --data_dir"
            )

    # What a run says of itself

    @property
    def logs_dir(self) -> Path:
        """The folder of all experiments' working directories."""
        return Path(self.f.logs_dir) if self.f.logs_dir else ROOT / "logs"

    def first_files(self, **more: Any) -> dict[str, dict]:
        """The files that a working directory begins with; `more` goes into about.json."""
        return {"about.json": self.about() | more, "flags.json": self.flags}

    def about(self) -> dict:
        """Where, when and with what a run was begun: goes into about.json."""
        (x, _), (x_test, _) = self.dataset
        return {
            "experiment": self.name,
            "command": shlex.join(map(_lasting, sys.argv)),
            "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "git": git_revision(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("tensorflow", "numpy")},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "device": self.device,
            "threads": {"threads": self.threads, "parts": self.parts},
            "xla": self.xla,
            "cluster": self.f.cluster,
            "data": {
                "train": len(x),
                "test": len(x_test),
                "classes": self.model.n_classes,
                "crc32": self.fingerprint,
            },
        }

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """While this lasts, the working directory is locked, and its file stdout gets the log, flags and data first.

        Raises: UserError when another process writes there.
        """
        (x, _), (x_test, _) = self.dataset
        with results.locked(path), logging_to(path / "stdout"):
            log.info("experiment: %s", self.name)
            for name, value in flag_table.flatten(self._flags).items():
                log.info("  --%s %s", name, value)
            parts = f", batches in {self.parts} parts" if self.parts > 1 else ""
            compiled = ", turns compiled by XLA" if self.xla else ""
            log.info("device: %s, %d threads%s%s", self.device, self.threads, parts, compiled)
            began = self._began_with.get("threads", self.threads), self._began_with.get("parts", self.parts)
            if began != (self.threads, self.parts):
                log.info(
                    "note: the run began with %d threads and %d parts: its last bits change from here on", *began
                )
            shape = list(x.shape[1:])
            log.info("data: %s, %d train, %d test, images %s", self.f.dataset, len(x), len(x_test), shape)
            log.info("parameters: %d", sum(int(np.prod(v.shape)) for v in self.model.weights))
            log.info("working directory: %s", shown_path(path))
            yield


def build_network(model: dict, dataset: datasets.Dataset, seed: int, parts: int = 1, xla: bool = False) -> Any:
    """The network of the `model` flags for a data set's images: a `models.network.Network`.

    Raises: UserError when they do not fit.
    """
    if model["description"] is None:
        raise UserError("--model.description: this experiment has none; give a list of layers, CNN or VGG16")
    import_tensorflow()
    from models.network import Network

    (x, _), _ = dataset
    if "auto" in (model["input_mean"], model["input_std"]):
        mean, std = datasets.input_statistics(dataset)
        auto = {"input_mean": mean, "input_std": std}
        model = model | {name: auto[name] for name in auto if model[name] == "auto"}
    try:
        network = Network(**model, input_shape=x.shape[1:], scale=dataset.scale, seed=seed, parts=parts, xla=xla)
    except ValueError as error:
        flag = "--model." if str(error).startswith("input_") else "--model.description: "
        raise UserError(f"{flag}{error}") from None
    if network.n_classes < max(dataset.n_classes, 2):
        raise UserError(
            f"--model.description: the last layer has {network.n_classes} units, "
            f"but {dataset.name} has {dataset.n_classes} classes"
        )
    return network


def _lasting(word: str) -> str:
    """A word of the command line. A path through the symlink `latest` becomes the path where it leads now."""
    if "latest" in Path(word).parts and Path(word).exists():
        return os.path.relpath(Path(word).resolve())
    return word


def git_revision() -> str | None:
    """The program's revision, with a + when files are changed; None outside git."""
    try:
        git = ["git", "-C", str(ROOT)]
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+" if changed.returncode else "")
