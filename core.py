"""Core: flags in; training, peeking and (through the other packages) measurements out. No math here.

A script's last line calls `main`, which reads the command line, makes a Core and runs its task.
"""

import copy
import functools
import logging
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import datasets
import flags as flag_table
import live
import results
from device import import_tensorflow, parts_that_pay, set_up_device, share_cores
from models import archivers, lr_scheduler, margins
from models.architectures import parse
from models.lr_scheduler import USE_FRAME, TrainingDiverged
from results import UserError
from screen import Screen, epoch_line, log, logging_to, shown_path, stats_line

ROOT = Path(__file__).resolve().parent
RES_EVERY = 10.0  # seconds between two writes of `res`, at least


class Stopped(Exception):
    """Ctrl-C or SIGTERM was answered: everything is saved. Carries the signal's number."""


class Core:
    """One run of one experiment.

    Args:
      flags: a script's dict; whatever it leaves out has its default (`flags.FLAGS`).
      name: the experiment's name: the working directory is logs/<name>/<time>.

    Raises: UserError for flags, data or a network that make no sense.
    """

    def __init__(self, flags: dict, name: str = "unnamed"):
        self.flags = flag_table.complete(flags)
        self.f = SimpleNamespace(**self.flags)
        self.name = name
        self.signal = None
        self.bar = None
        self.whole_run = None  # the directory to resume, where this run is a part of it
        if self.f.tensorboard:
            live.require_tensorboard()
        self.dataset = datasets.load(
            self.f.dataset, self.f.data_dir, None if self.f.train_N == "all" else self.f.train_N
        )
        if self.f.random_labels is not None:
            self.dataset = datasets.with_labels_of(self.dataset, self.random_labels_path())
        (x_train, _), _ = self.dataset
        if len(x_train) < self.f.B:
            raise UserError(
                f"--B {self.f.B}: larger than the training set of {len(x_train)} examples; give at most that"
            )
        self.device = set_up_device(self.f.gpu, self.f.tf32, self.f.deterministic)
        self.parts = self._parts()
        if self.parts > 1:
            share_cores(self.parts)
        self.model = build_model(self.f.model, self.dataset, self.f.seed, self.parts)

    @functools.cached_property
    def fingerprint(self) -> int:
        """CRC-32 of all images and labels."""
        crc = 0
        for x, y in self.dataset:
            crc = zlib.crc32(y, zlib.crc32(x, crc))
        return crc

    def random_labels_path(self) -> Path:
        """Where the flag random_labels points."""
        if self.f.random_labels not in (None, "default"):
            return Path(self.f.random_labels)
        part = "" if self.f.train_N == "all" else f"-first-{self.f.train_N}"
        return ROOT / "random_labels" / f"{Path(self.f.dataset).stem}{part}.npz"

    def _parts(self) -> int:
        """Into how many parts batches are cut (`models.base_model.Model.parts`)."""
        if "train" not in self.f.task:
            return 1  # attacks and measurements have large batches: all cores share each op
        try:
            specs = parse(self.f.model["description"], "NONE", self.dataset[0][0].shape[1:])
        except ValueError:
            return 1  # build_model says what is wrong
        return choose_parts(self.f.parts, specs, self.f.B, self.device)

    @functools.cached_property
    def _train(self):
        """The training set on the device; attacks and measurements never ask for it."""
        return tuple(map(import_tensorflow().constant, self.dataset[0]))

    @functools.cached_property
    def _test(self):
        return tuple(map(import_tensorflow().constant, self.dataset[1]))

    # The task

    def run(self) -> Path:
        """Do the `task`; returns the working directory.

        Raises: UserError; TrainingDiverged; Stopped; OSError when the disk fails.
        """
        tasks = self.tasks()
        if self.f.task not in tasks or (self.f.task == "attack" and self.f.load_dir is None):
            raise UserError(
                f"--task {self.f.task}: not a task of ./run.sh; use ./eval.sh <attack> <directory>"
            )
        return tasks[self.f.task]()

    def tasks(self) -> dict:
        return {"train": self.train, "train_peek": self.train_peek, "attack": self.attack}

    # Training

    def permutation(self, eid: int, attempt: int) -> np.ndarray:
        """The order of the training set in an attempt (1, 2, ...) at an epoch: int [N]."""
        n = len(self.dataset[0][0])
        return np.random.default_rng([self.f.seed, eid, attempt]).permutation(n)

    def _augment_seed(self, eid: int, attempt: int) -> np.ndarray | None:
        if self.f.augment == "none":
            return None
        rng = np.random.default_rng([self.f.seed, eid, attempt, 1])
        return rng.integers(np.iinfo(np.int32).max // 2, size=2, dtype=np.int32)

    def train(self) -> Path:
        """Train for E accepted epochs (the experiments of arXiv 1906.05890).

        Leaves `res` = {'flags': flags, 'raw': {eid: info}}; info has eid, lr, log_frame, rt_loss, stats
        and time, and all_rt_loss when that flag is set. Losses are in the frame exp(log_frame), but
        test_loss; times are seconds, those of a rejected attempt included.
        """
        run = TrainingRun(self)
        with self._watch_signals(), logging_to(run.work_dir.path / "stdout"):
            self._print_header(run.work_dir.path)
            if run.live:
                log.info("to watch it: tensorboard --logdir %s", shown_path(run.live.directory))
            if run.resumed:
                log.info("resuming after epoch #%d", run.eid)
            if run.eid >= self.f.E:
                log.info("nothing to do: the run has its %d epochs already", run.eid)
            try:
                self._train_epochs(run)
            except OSError:
                raise  # the disk is full: what it has is consistent, and saving more would fail again
            except BaseException as error:
                run.save()
                if isinstance(error, Stopped):
                    log.info("stopped after epoch #%d; go on with:", run.eid)
                    whole = self.whole_run or run.work_dir.path
                    log.info("  ./run.sh %s --resume %s", self.name, shown_path(whole))
                raise
            run.save()
            log.info("done: %d epochs, results in %s", run.eid, shown_path(run.work_dir.path))
        return run.work_dir.path

    def _train_epochs(self, run: "TrainingRun") -> None:
        with tqdm(total=self.f.E, initial=run.eid, unit="epoch", disable=None, dynamic_ncols=True) as bar:
            self.bar = bar
            while run.eid < self.f.E:
                info = self.epoch(run)
                run.accept(info)
                log.info("%s", epoch_line(info))
                bar.update()
                self.stop_if_asked()

    def _looking_up(self, doing: str) -> Callable[[int], None]:
        """What passes over the data call every second or so: stops if asked, and shows where they are."""

        def look_up(done: int) -> None:
            self.stop_if_asked()
            if self.bar is not None:
                self.bar.set_postfix_str(f"{doing} {done}", refresh=done > 0)

        return look_up

    def epoch(self, run: "Progress") -> dict:
        """Attempts at the epoch after run.eid until the scheduler takes one; its info.

        Leaves the accepted weights in the model and the next lr in run; the rest of run is for
        `run.accept(info)`. Raises: TrainingDiverged when no lr makes an acceptable epoch; Stopped.
        """
        eid, attempt = run.eid + 1, 0
        clock = {"began": time.perf_counter(), "train_time": 0.0, "eval_time": 0.0}
        while True:
            attempt += 1
            if run.lr < self.f.lr_lb:
                raise TrainingDiverged(
                    f"epoch {eid}, attempt {attempt}: the next lr {run.lr:.3g} is below "
                    f"lr_lb={self.f.lr_lb:g}: no learning rate makes the loss fall any more"
                    + (
                        " (below exp(log_frame0): raise --log_frame0, or try another seed)"
                        if eid == 1
                        else ""
                    )
                )
            limit = run.scheduler.loss_limit() if self.f.early_reject else math.inf
            info = self.attempt(eid, attempt, run.lr, run.log_frame, limit, clock)
            command, run.lr = run.scheduler.get(info)
            if command == "go":
                info["stats"] |= {
                    "train_time": clock["train_time"],
                    "eval_time": clock["eval_time"],
                    "attempts": attempt,
                }
                info["time"] = time.perf_counter() - clock["began"]
                return info
            self.model.restore()
            self.stop_if_asked()

    def attempt(
        self, eid: int, attempt: int, lr: float, log_frame: float, loss_limit: float, clock: dict
    ) -> dict:
        """One pass of gradient steps over a permutation, and the stats of where it ended.

        Args:
          loss_limit: stop evaluating once the mean training loss is proved to be above it.
          clock: its train_time and eval_time are added to.

        Returns: info; its stats are None when a batch loss was above loss_ub or not finite, or when the
          training loss is above loss_limit.
        """
        began = time.perf_counter()
        permutation = self.permutation(eid, attempt)
        n_batches, left_over = divmod(len(permutation), self.f.B)
        batches = permutation[: n_batches * self.f.B].reshape(n_batches, self.f.B).astype(np.int32)
        augment_seed = self._augment_seed(eid, attempt)
        look_up = self._looking_up(f"attempt {attempt}, of {n_batches} batches")
        ok, losses = self.model.train_epoch(
            *self._train,
            batches,
            lr,
            log_frame,
            self.f.loss_ub,
            augment_seed,
            look_up,
        )
        if ok and left_over and not self.f.drop_last:
            batch = permutation[None, -left_over:].astype(np.int32)
            if augment_seed is not None:
                augment_seed = augment_seed + np.array([0, n_batches], np.int32)
            ok, loss = self.model.train_epoch(
                *self._train, batch, lr, log_frame, self.f.loss_ub, augment_seed, look_up
            )
            losses = np.append(losses, loss)
        trained = time.perf_counter()
        clock["train_time"] += trained - began
        info = {
            "eid": eid,
            "lr": lr,
            "log_frame": log_frame,
            "rt_loss": float(losses.mean()),
            "stats": None,
        }
        if ok and (eid % self.f.stats_every == 0 or eid == self.f.E):
            info["stats"] = self.stats(log_frame, loss_limit)
        elif ok:
            info["stats"] = {"loss": info["rt_loss"], "log_loss": math.log(info["rt_loss"] or math.nan)}
        if self.f.include_all_rt_loss_in_res:
            info["all_rt_loss"] = losses.tolist()
        clock["eval_time"] += time.perf_counter() - trained
        return info

    def stats(self, log_frame: float, loss_limit: float = math.inf) -> dict | None:
        """Losses, margins and norms of the network as it is now (arXiv 1906.05890).

        Args:
          log_frame: the frame of `loss`.
          loss_limit: see `attempt`.

        Returns: a dict of plain numbers; None when the mean training loss is above loss_limit.
        """
        (_, y_train), (_, y_test) = self.dataset
        look_up = self._looking_up(f"evaluating, of {len(y_train)} examples")
        complete, loss, logits = self.model.evaluate(*self._train, log_frame, loss_limit, look_up)
        if not complete:
            return None
        _, _, test_logits = self.model.evaluate(*self._test, between=self._looking_up("test set"))
        gaps = margins.gaps(logits, y_train)
        norms = margins.norms(self.model.counted_weights(), self.model.act_type)
        return {
            "loss": loss,
            "log_loss": margins.log_mean_exp(margins.log_losses(gaps)),
            "log_frame": log_frame,
            "acc": margins.accuracy(logits, y_train),
            "test_loss": float(np.exp(margins.log_losses(margins.gaps(test_logits, y_test))).mean()),
            "test_acc": margins.accuracy(test_logits, y_test),
            **norms,
            **margins.margin_stats(margins.margins(gaps), norms["rhoL"], norms["norm_prod"]),
        }

    # Peeking

    def train_peek(self) -> Path:
        """From each stored epoch `eid` of load_dir, E more epochs at fixed lr and log_frame0.

        Leaves, in <load_dir>/train_peek/<time>, `res` = {'flags': flags, 'raw': {eid: {'stats': stats of
        the epoch itself, 'q': its margins q_i, float64 [N], 'epochs': [info, ...]}}}; each info has
        also its own q. lr is in the frame exp(log_frame0).
        """
        if self.f.load_dir is None:
            raise UserError("--task train_peek needs --load_dir, the working directory to peek into")
        if not isinstance(self.f.lr, float):
            raise UserError(f"--task train_peek needs a fixed --lr, a number; it is {self.f.lr}")
        source = results.check_run(self.f.load_dir)
        eids = results.choose_eids(source, self.f.eid)
        weights = {eid: results.load_weights(source, eid) for eid in eids}
        files = {"about.json": self.about(), "flags.json": self.flags}
        work_dir = results.WorkDir(results.create(source, "train_peek", files))
        raw = {}
        with self._watch_signals(), logging_to(work_dir.path / "stdout"):
            self._print_header(work_dir.path)
            try:
                for eid in tqdm(eids, unit="epoch", disable=None):
                    self.load_weights(weights[eid], f"epoch {eid} of {source}")
                    raw[eid] = self._peek(eid)
            finally:
                work_dir.write_res({"flags": self.flags, "raw": raw})
        return work_dir.path

    def _peek(self, eid: int) -> dict:
        peeked = {"stats": self.stats(self.f.log_frame0), "q": self.margins(), "epochs": []}
        log.info("epoch #%d: %s", eid, stats_line(peeked["stats"]))
        for next_eid in range(eid + 1, eid + 1 + self.f.E):
            clock = {"train_time": 0.0, "eval_time": 0.0}
            began = time.perf_counter()
            info = self.attempt(next_eid, 1, self.f.lr, self.f.log_frame0, math.inf, clock)
            info |= {"time": time.perf_counter() - began, "q": self.margins()}
            peeked["epochs"].append(info)
            if info["stats"] is None:
                log.info("epoch #%d + %d: a batch loss above loss_ub", eid, next_eid - eid)
                break
            info["stats"] |= {**clock, "attempts": 1}
            log.info("epoch #%d + %d: %s", eid, next_eid - eid, stats_line(info["stats"]))
        return peeked

    # Attacking

    def attack(self) -> Path:
        """Distances of images from the decision boundary at each stored epoch `eid` of load_dir.

        Leaves, in <load_dir>/<attack>/<time>, `res` = {eid: {'images': adversarial examples, float32
        [N, h, w, c] (the image itself where none was found), 'errors': squared L2 distances, for
        L-infinity the smallest eps that succeeded, float64 [N] (infinite, or 1.0, where none was found),
        'labels', 'indices': int [N], 'success', 'clean_correct': bool [N], 'certified': lower bounds of
        the L2 distances, float64 [N]}}, and the summaries in summary.json.
        """
        from attacks.run import AttackRun

        run = AttackRun(self)
        with self._watch_signals(), logging_to(run.work_dir.path / "stdout"):
            self._print_header(run.work_dir.path)
            log.info("attacking: %s", shown_path(run.source))
            try:
                run.attack_all()
            except Stopped:
                log.info("stopped; go on with:")
                log.info("  ./eval.sh %s --resume %s", self.name, shown_path(run.work_dir.path))
                raise
            log.info("done: results in %s", shown_path(run.work_dir.path))
        return run.work_dir.path

    def margins(self) -> np.ndarray:
        """q_i = z_{i,y_i} - max_{j != y_i} z_ij over the training set, float64 [N]."""
        (_, y_train), _ = self.dataset
        _, _, logits = self.model.evaluate(*self._train)
        return margins.margins(margins.gaps(logits, y_train))

    def load_weights(self, weights: list[tuple[str, np.ndarray]], where: str) -> None:
        """Put stored weights into the model. Raises: UserError when they are another network's."""
        try:
            self.model.set_weights([array for _, array in weights])
        except ValueError as error:
            raise UserError(f"{where}: holds another network ({error})") from None

    # Going on with a run, or looking at one

    def check_resumed(self, path: Path | str, command: str = "./run.sh") -> Path:
        """A directory to resume. Raises: UserError when it is no run, or one of another experiment."""
        path = results.check_run(path)
        name = results.read_about(path)["experiment"]
        if name != self.name:
            raise UserError(
                f"--resume {path}: a run of {name}, not of {self.name}; use {command} {name} --resume {path}"
            )
        return path

    def check_data(self, path: Path) -> None:
        """Raises: UserError when a run was on other data or labels than those loaded now."""
        if results.read_about(path)["data"]["crc32"] != self.fingerprint:
            raise UserError(
                f"{path}: was run on other data or labels than those found now; give the same with --data_dir"
            )

    # What a run says of itself

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
            "data": {"train": len(x), "test": len(x_test), "crc32": self.fingerprint},
        }

    def _print_header(self, path: Path) -> None:
        (x, _), (x_test, _) = self.dataset
        log.info("experiment: %s", self.name)
        for name, value in flag_table.flatten(self.flags).items():
            log.info("  --%s %s", name, value)
        log.info("device: %s%s", self.device, f", batches in {self.parts} parts" if self.parts > 1 else "")
        log.info(
            "data: %s, %d train, %d test, images %s", self.f.dataset, len(x), len(x_test), list(x.shape[1:])
        )
        log.info("parameters: %d", sum(int(np.prod(v.shape)) for v in self.model.weights))
        log.info("working directory: %s", shown_path(path))

    def logs_dir(self) -> Path:
        return Path(self.f.logs_dir) if self.f.logs_dir else ROOT / "logs"

    # Signals

    def _watch_signals(self):
        return SignalsNoted(self)

    def stop_if_asked(self) -> None:
        if self.signal is not None:
            raise Stopped(self.signal)


class SignalsNoted:
    """While this lasts, Ctrl-C and SIGTERM are noted in core.signal; a second one acts at once."""

    def __init__(self, core: Core):
        self.core = core

    def _note(self, number, frame):
        if self.core.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.core.signal = number
        print("stopping within seconds; once more to stop at once", file=sys.stderr, flush=True)

    def __enter__(self):
        self.before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Progress:
    """Where a training run stands after its last accepted epoch.

    Attributes:
      eid: that epoch; lr, log_frame: for the next attempt.
    """

    def __init__(self, core: Core):
        f = core.f
        self.core = core
        self.scheduler = lr_scheduler.build(f.lr, f.train_mode, f.log_frame0)
        self.eid = 0
        self.log_frame = f.log_frame0 if f.train_mode == USE_FRAME else 0.0
        _, self.lr = self.scheduler.get()
        core.model.keep()

    def accept(self, info: dict) -> None:
        """Make the epoch that `Core.epoch` returned the last accepted one, its loss the new frame."""
        self.core.model.keep()
        self.eid = info["eid"]
        if self.core.f.train_mode == USE_FRAME:
            loss = info["stats"]["loss"]
            # One epoch can take the loss out of float64's range even in its frame.
            self.log_frame = self.log_frame + math.log(loss) if loss else info["stats"]["log_loss"]


class TrainingRun(Progress):
    """The same with its traces on the disk: journal, checkpoints, archive, res.

    Attributes:
      raw: {eid: info}.
      resumed: whether it goes on from a checkpoint or an empty run directory.
    """

    def __init__(self, core: Core):
        super().__init__(core)
        f = core.f
        self.archiver = archivers.build(f.archive)
        self.raw = {}
        self.resumed = f.resume is not None
        if self.resumed:
            self._resume(core.check_resumed(f.resume))
        else:
            files = {"about.json": core.about(), "flags.json": core.flags}
            self.work_dir = results.WorkDir(results.create(core.logs_dir(), core.name, files))
            self._note_state(journal_bytes=0)
        self.saved_eid = self.eid if self.eid else None
        self.last_save = self.last_res = time.monotonic()
        self.live = live.Live(self.work_dir.path, self.raw, f.E, self._write_res) if f.tensorboard else None

    def _resume(self, path: Path) -> None:
        self.core.check_data(path)
        self.work_dir = results.WorkDir(path)
        try:
            weights, state = results.load_checkpoint(path)
        except FileNotFoundError:  # killed before its first checkpoint: begin anew, in the same place
            self.raw = self.work_dir.rewind(0)
            self._note_state(journal_bytes=0)
            return
        self.core.load_weights(weights, str(path))
        self.raw = self.work_dir.rewind(state["journal_bytes"])
        self.eid, self.lr, self.log_frame = state["eid"], state["lr"], state["log_frame"]
        self.scheduler.set_state(state["scheduler"])
        self.archiver.set_state(state["archiver"])
        self._state = state
        self.work_dir.write_json("flags.json", self.core.flags | {"resume": None})  # E may be another

    def _note_state(self, journal_bytes: int) -> None:
        """What a checkpoint of this moment needs besides the weights."""
        self._state = copy.deepcopy(
            {
                "eid": self.eid,
                "lr": self.lr,
                "log_frame": self.log_frame,
                "scheduler": self.scheduler.state(),
                "archiver": self.archiver.state(),
                "journal_bytes": journal_bytes,
            }
        )

    def accept(self, info):
        """Also journal, archive, checkpoint and res, each when it is due."""
        super().accept(info)
        self.raw[self.eid] = info
        journal_bytes = self.work_dir.append(info)
        wanted = self.archiver.wants(self.eid, info["stats"]["log_loss"])
        self._note_state(journal_bytes)
        now = time.monotonic()
        if wanted or now - self.last_save >= self.core.f.checkpoint_every:
            self._checkpoint(archive=wanted)
        if now - self.last_res >= RES_EVERY:
            self._write_res()
        if self.live:
            self.live.accept(info)

    def save(self) -> None:
        """Make the disk hold all of the run up to its last accepted epoch."""
        if self.saved_eid != self.eid:
            self.core.model.restore()  # of an attempt that was under way nothing stays
            self._checkpoint()
        self._write_res()
        if self.live:
            self.live.close()

    def _checkpoint(self, archive: bool = False) -> None:
        self.work_dir.save(self.core.model.get_weights(), self._state, archive)
        self.saved_eid, self.last_save = self.eid, time.monotonic()

    def _write_res(self) -> None:
        self.work_dir.write_res({"flags": self.core.flags, "raw": self.raw})
        self.last_res = time.monotonic()


# What Core is built from


def build_model(model: dict, dataset: datasets.Dataset, seed: int, parts: int = 1):
    """The network of the `model` flags for a data set's images; parts is `Model.parts`.

    Raises: UserError when they do not fit.
    """
    from models.simple_sequential import SimpleSequential

    (x, _), _ = dataset
    if model["description"] is None:
        raise UserError("--model.description: this experiment has none; give a list of layers, CNN or VGG16")
    if "auto" in (model["input_mean"], model["input_std"]):
        mean, std = datasets.input_statistics(dataset)
        auto = {"input_mean": mean, "input_std": std}
        model = model | {name: auto[name] for name in auto if model[name] == "auto"}
    try:
        network = SimpleSequential(**model, input_shape=x.shape[1:], scale=dataset.scale, seed=seed)
    except ValueError as error:
        raise UserError(f"--model.description: {error}") from None
    if network.n_classes < max(dataset.n_classes, 2):
        raise UserError(
            f"--model.description: the last layer has {network.n_classes} units, "
            f"but {dataset.name} has {dataset.n_classes} classes"
        )
    network.parts = parts
    return network


def choose_parts(wanted: int | str, specs: list, batch: int, device: str) -> int:
    """What the flag `parts` means for a network on a device. Raises: UserError for parts that cannot be."""
    normed = any(spec.bn for spec in specs)
    if wanted == "auto":
        step_flops = 3 * batch * sum(spec.flops for spec in specs)
        return 1 if normed or not device.startswith("CPU") else parts_that_pay(step_flops, batch)
    if normed and wanted > 1:
        raise UserError(f"--parts {wanted}: batch norm looks at whole batches; give 1, or auto")
    if wanted > batch:
        raise UserError(f"--parts {wanted}: a batch has {batch} examples; give at most that, or auto")
    return wanted


def _lasting(word: str) -> str:
    """A word of the command line; a path through a symlink `latest`, which moves on, as where it leads."""
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


# The end of a script


def draw_figures(path: Path) -> None:
    """The figures of a finished run, into its directory; what goes wrong here harms no result.

    Raises: Stopped for Ctrl-C.
    """
    try:
        import figures

        if not path.is_dir() or results.read_flags(path)["task"] not in figures.DRAWN:
            return
        with logging_to(path / "stdout"):
            figures.draw([path])
            log.info("figures in %s", shown_path(path / "figures"))
    except KeyboardInterrupt:
        _complain("stopped while drawing; the results are saved", 130)
        raise Stopped(signal.SIGINT) from None
    except Exception as error:
        _complain(
            f"warning: no figures ({type(error).__name__}: {error}); the results are saved; "
            f"draw them with: python figures.py {shown_path(path)}",
            0,
        )


def main_eval(script: str, flags: dict, about: str | None = None) -> None:
    """What an attack script's last line calls; as `main`, and its first word is the run to attack."""
    main(script, flags, about, flag_table.attack_command_line, "./eval.sh {} <working directory>")


def main(
    script: str,
    flags: dict,
    about: str | None = None,
    command_line: Callable[..., dict] = flag_table.command_line,
    prog: str = "./run.sh {}",
    core_class: type[Core] = Core,
) -> None:
    """What a script's last line calls: read the command line, run, and end with an exit status.

    0 done; 1 the run or the disk failed; 2 a mistake of the user's; 130/143 stopped by a signal.

    Args:
      script: the script's __file__; its name is the experiment's.
      flags: the script's flags.
      about: its docstring.
      command_line: reads the words after the script's name.
      prog: how --help calls the script.
      core_class: what runs it.
    """
    name = Path(script).stem
    if not log.handlers:
        log.addHandler(Screen())
        log.setLevel(logging.INFO)
        log.propagate = False
    try:
        given = command_line(sys.argv[1:], flags, about or "", prog=prog.format(name))
        path = core_class(given, name).run()
        if given["figures"]:
            draw_figures(path)
        status = 0
    except UserError as error:
        status = _complain(f"error: {error}", 2)
    except TrainingDiverged as error:
        status = _complain(f"error: {error}; everything up to the last accepted epoch is saved", 1)
    except Stopped as error:
        status = 128 + error.args[0]
    except KeyboardInterrupt:
        status = _complain("interrupted before the first epoch", 130)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        status = _complain(
            f"error: cannot write{where}: {error.strerror}; what was saved before is untouched", 1
        )
    sys.exit(status)


def _complain(message: str, status: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return status
