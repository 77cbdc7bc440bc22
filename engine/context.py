"""Context: the flags, data and network of a task. Independent of any task.

Data, device and network are made when they are first needed: an error in the flags is reported before TensorFlow is
loaded, and a task pays only for what it uses.
"""

import contextlib
import copy
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

import flags as flag_table
from catalogue import optimizers
from catalogue.tasks import TRAINING
from data import labels, loading
from engine import compute
from flags.table import DEFAULTS
from storage import read, workdir
from support.device import import_tensorflow, set_threads
from support.errors import UserError
from support.files import ROOT
from support.screen import Update, ignore, log, logging_to, shown_path

if TYPE_CHECKING:
    from models.network import Network


class _Values(SimpleNamespace):
    """Flags as read-only attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"flags are read-only; Context.changed({name}=...) gives a Context with another {name}")


class Context:
    """The flags of one task, and what follows from them.

    Args:
      flags: nested; a missing flag has its default.
      name: the experiment's; its working directories are below logs/<name>.
      update: called about once per second with the completed fraction; may raise `Stopped`.

    Attributes:
      f: the flags as attributes.
      held: {(directory, epoch): weights} of epochs that only the checkpoint has, which a run replaces as it trains.

    Raises: UserError for flags, here and when data or network are first used.
    """

    def __init__(self, flags: dict, name: str = "unnamed", update: Update = ignore):
        if not isinstance(name, str) or not 0 < len(name) < 200 or "/" in name or name in (".", "..", "latest"):
            raise UserError(f"the experiment's name {name!r}: expected the name of a folder")
        self._flags = flag_table.complete(flags)
        self.f = _Values(**self._flags)
        self.name, self.update = name, update
        self._kept: dict[str, tuple[Any, Any]] = {}
        self.held: dict[tuple[str, int], list[np.ndarray]] = {}
        self._lock = threading.RLock()

    @property
    def flags(self) -> dict:
        """A copy of all flags, nested, as in flags.json and `res`."""
        return copy.deepcopy(self._flags)

    def changed(self, **changes: Any) -> "Context":
        """Return a Context with other flags and the data, device and network of this one.

        These must not depend on the changes.
        """
        other = Context(self._flags | changes, self.name, self.update)
        shared = ("dataset", "fingerprint", "compute", "model", "train_set", "test_set")
        vars(other).update({name: vars(self)[name] for name in shared if name in vars(self)})
        return other

    def kept(self, slot: str, key: Any, make: Callable[[], Any]) -> Any:
        """Return make(), cached in `slot` until `key` changes. Thread-safe."""
        with self._lock:
            if slot not in self._kept or self._kept[slot][0] != key:
                self._kept[slot] = key, make()
            return self._kept[slot][1]

    # Data

    @cached_property
    def natural_dataset(self) -> loading.Dataset:
        """The dataset with its own labels."""
        train_N, test_N = (None if n == "all" else n for n in (self.f.train_N, self.f.test_N))
        return loading.load(self.f.dataset, self.f.data_dir, train_N, test_N, self.f.classes, self.f.subset_seed)

    @cached_property
    def dataset(self) -> loading.Dataset:
        """The dataset with the labels that are learned."""
        if self.f.random_labels is None:
            return self.natural_dataset
        return labels.with_labels_of(self.natural_dataset, self.random_labels_path)

    @property
    def random_labels_path(self) -> Path:
        """The file that the flag random_labels means."""
        if self.f.random_labels not in (None, "default"):
            return Path(self.f.random_labels)
        part = "" if self.f.classes is None else "-classes-" + "-".join(map(str, self.f.classes))
        if self.f.train_N != "all":
            n, seed = self.f.train_N, self.f.subset_seed
            part += f"-first-{n}" if seed is None else f"-{n}-of-{seed}"
        return ROOT / "random_labels" / f"{Path(self.f.dataset).stem}{part}.npz"

    @cached_property
    def fingerprint(self) -> int:
        """CRC-32 of what the network sees: all images and labels, their shapes, and the scale of the pixels."""
        facts = ([(x.shape, len(y)) for x, y in self.dataset], self.dataset.scale)
        return zlib.crc32(repr(facts).encode(), self._crc_of_arrays())

    def _crc_of_arrays(self) -> int:
        crc = 0
        for x, y in self.dataset:
            crc = zlib.crc32(y, zlib.crc32(x, crc))
        return crc

    def check_data(self, path: Path) -> None:
        """Raises: UserError when a run used other data or labels than those loaded now."""
        data = read.read_about(path).get("data", {})
        # Format 0 has the CRC-32 of the arrays alone.
        found = self.fingerprint if "fingerprint" in data else self._crc_of_arrays()
        if found != data.get("fingerprint", data.get("crc32")):
            raise UserError(
                f"{path}: was run on other data or labels than those found now; give the same with --data_dir (for "
                "an .npz: --dataset)"
            )

    @cached_property
    def train_set(self) -> tuple[Any, Any]:
        """(images, labels) of the training set on the device."""
        return _networks().on_device(*self.dataset[0])

    @cached_property
    def test_set(self) -> tuple[Any, Any]:
        """(images, labels) of the test set on the device."""
        return _networks().on_device(*self.dataset[1])

    # Device and network

    @cached_property
    def compute(self) -> compute.Compute:
        """Device, threads, slices and XLA, chosen now."""
        about = read.read_about(self.f.resume) if self.f.resume else {}
        return compute.choose(self.f, self.dataset[0][0].shape[1:], about)

    @cached_property
    def model(self) -> "Network":
        """The network, with the initial weights of the flag seed. Raises: UserError where it does not fit."""
        (x_train, _), _ = self.dataset
        if len(x_train) < self.f.B:
            raise UserError(
                f"--B {self.f.B}: larger than the training set of {len(x_train)} examples; give at most that"
            )
        made = self.compute
        set_threads(made.threads, made.parts)  # before the first variable: then TensorFlow has its threads
        # Attacks and measurements take no steps: their networks have no state of an optimizer.
        opt = self.f.opt if self.f.task in TRAINING else "gd"
        return build_network(self.f.model, self.dataset, self.f.seed, made.parts, made.xla, opt)

    def check_weights(self, weights: list[tuple[str, np.ndarray]], where: str) -> list[np.ndarray]:
        """Return the arrays of stored weights. Raises: UserError when they belong to another network."""
        arrays = [array for _, array in weights]
        try:
            self.model.check_weights(arrays)
        except ValueError as error:
            raise UserError(f"{where}: holds another network ({error})") from None
        return arrays

    def initial_weights(self) -> Any:
        """Return the weights that training starts with. Raises: UserError where those of init_from do not fit."""
        run = self.f.init_from
        return (
            self.model.initial_weights(self.f.seed)
            if run is None
            else self.check_weights(read.load_weights(run), run)
        )

    def stored_weights(self, directory: Path | str, eid: int) -> list[np.ndarray]:
        """Return the weights of a stored epoch. Raises: UserError where they are missing or do not fit."""
        if (str(directory), eid) in self.held:
            return self.held[str(directory), eid]
        return self.check_weights(read.load_weights(directory, eid), f"epoch {eid} of {directory}")


def _networks() -> ModuleType:
    """Return the module `models.network`. It loads TensorFlow, which takes seconds: an error comes before that."""
    import_tensorflow()
    from models import network

    return network


def build_network(
    model: dict, dataset: loading.Dataset, seed: int, parts: int = 1, xla: bool = False, opt: Any = "gd"
) -> "Network":
    """Build the network of the `model` flags for a dataset's images.

    Raises: UserError when they do not fit.
    """
    if model["description"] is None:
        raise UserError("--model.description: this experiment has none; give a list of layers, CNN or VGG16")
    (x, _), _ = dataset
    try:
        network = _networks().Network(
            **with_statistics(model, dataset),
            input_shape=x.shape[1:],
            scale=dataset.scale,
            seed=seed,
            parts=parts,
            xla=xla,
            optimizer=optimizers.parsed(opt),
        )
    except ValueError as error:
        flag = "--model." if str(error).startswith("input_") else "--model.description: "
        raise UserError(f"{flag}{error}") from None
    if network.n_classes < max(dataset.n_classes, 2):
        raise UserError(
            f"--model.description: the last layer has {network.n_classes} units, "
            f"but {dataset.name} has {dataset.n_classes} classes"
        )
    return network


def with_statistics(model: dict, dataset: loading.Dataset) -> dict:
    """Return the `model` flags with numbers where input_mean and input_std are 'auto'."""
    if "auto" not in (model["input_mean"], model["input_std"]):
        return model
    mean, std = labels.input_statistics(dataset)
    auto = {"input_mean": mean, "input_std": std}
    return model | {name: auto[name] for name in auto if model[name] == "auto"}


# A task's working directory


def logs_dir(context: Context) -> Path:
    """Return the folder of all experiments' working directories."""
    return workdir.logs_dir(context.f.logs_dir)


def first_files(context: Context, **more: Any) -> dict[str, dict]:
    """Return the files that a working directory begins with; `more` goes into about.json."""
    made = context.compute
    (x, _), (x_test, _) = context.dataset
    facts = {
        "device": made.device,
        "threads": {"threads": made.threads, "parts": made.parts},
        "xla": made.xla,
        "cluster": context.f.cluster,
        "data": {
            "train": len(x),
            "test": len(x_test),
            "classes": context.model.n_classes,
            "fingerprint": context.fingerprint,
        },
    }
    return {"about.json": workdir.about(context.name) | facts | more, "flags.json": context.flags}


def command_of(name: str) -> str:
    """Return the command that runs an experiment."""
    if name.startswith("sweep-"):
        return f"python sweep.py {name.removeprefix('sweep-')}"
    return f"./eval.sh {name}" if name.startswith("eval-") else f"./run.sh {name}"


def resumed(context: Context) -> Path:
    """Return the directory to resume. Raises: UserError unless it is a run of this experiment."""
    path = read.check_run(context.f.resume)
    about = read.read_about(path)
    if "imported" in about:
        raise UserError(f"--resume {path}: an imported network; train it further with --init_from {path}")
    name = about.get("experiment")
    if name != context.name:
        raise UserError(
            f"--resume {path}: a run of {name}, not of {context.name}; use {command_of(str(name))} --resume {path}"
        )
    return path


def directory(context: Context, parent: Path, **more: Any) -> Path:
    """Return the directory to resume, or a new one below `parent`; `more` goes into its about.json.

    Raises: UserError where it cannot be resumed or created; nothing is left behind then.
    """
    if context.f.resume:
        return resumed(context)
    files = first_files(context, **more)
    context.update(0.0)  # from here on a signal ends the task with the command that resumes it
    return workdir.create(parent, context.name, files)


@contextlib.contextmanager
def writing(context: Context, path: Path, after: Callable[[], str] | None = None) -> Iterator[None]:
    """Context manager: lock the working directory, and copy the log, which begins with flags and data, to `stdout`.

    Args:
      after: what is done, in words; logged with the command that resumes the task when a signal ends it. None: of a
        part of another run, which logs that itself.

    Raises: UserError when another process writes there.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(workdir.locked(path))
        stack.enter_context(logging_to(path / "stdout"))
        if after is not None:
            stack.enter_context(workdir.resumable(command_of(context.name), path, after))
        record_cluster(context, path)
        _log_header(context, path)
        context.update(0.0)
        yield


def record_cluster(context: Context, path: Path) -> None:
    """Write into flags.json which cluster a resumed run uses now: the next time it is resumed, it uses that one."""
    recorded = read.read_flags(path)
    if context.f.resume and recorded.get("cluster") != context.f.cluster:
        workdir.WorkDir(path).write_json("flags.json", recorded | {"cluster": context.f.cluster})


def _log_header(context: Context, path: Path) -> None:
    made, ((x, _), (x_test, _)) = context.compute, context.dataset
    log.info("experiment: %s", context.name)
    for name, value in flag_table.flatten(context.flags).items():
        is_default = value == DEFAULTS[name]  # a terminal shows the others
        log.info("  --%s %s", name, value, extra={"short": ""} if is_default else None)
    parts = f", batches in {made.parts} parts" if made.parts > 1 else ""
    compiled = ", turns compiled by XLA" if made.xla else ""
    log.info("device: %s, %d threads%s%s", made.device, made.threads, parts, compiled)
    if made.began != (made.threads, made.parts):
        log.info("note: the run began with %d threads and %d parts: its last bits change from here on", *made.began)
    if context.f.resume and context.f.parts == "auto" and made.parts != made.auto_parts:
        log.info(
            "note: batches are cut into %d parts, as when the run began; a new run would use %d",
            made.parts,
            made.auto_parts,
        )
    log.info("data: %s, %d train, %d test, images %s", context.f.dataset, len(x), len(x_test), list(x.shape[1:]))
    log.info("parameters: %d", sum(int(np.prod(v.shape)) for v in context.model.weights))
    log.info("working directory: %s", shown_path(path))
