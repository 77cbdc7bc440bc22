"""A training run: attempts until the scheduler accepts, and the files that each accepted epoch writes."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from catalogue.measures import ALWAYS
from engine.cluster import executor
from engine.context import Context, directory, logs_dir, writing
from engine.serial import Serial
from engine.units import Executor, Unit
from models import archivers, lr_scheduler, margins
from models.lr_scheduler import USE_FRAME
from storage import read, workdir
from storage.run_flags import stored
from support.errors import TrainingDiverged, UserError
from support.screen import Progress, log, shown_path
from training import attempt, measures
from training.attempt import Outcome, epoch_line
from training.live import Live, events_dir, require_tensorboard
from training.measures import Evaluation, History

ATTEMPTS_FIRST = 10  # their priority on a cluster: a run waits for each of them
CHECKED = 50  # images on which the initial network must have finite logits
SLOT = "optimizer "  # prefix of a checkpoint's arrays of the optimizer's state
RES_EVERY = 10.0  # seconds between two writes of `res`, at least


def train(context: Context) -> Path:
    """Train for E accepted epochs (the experiments of arXiv 1906.05890). Returns the working directory.

    Writes `res` = {'flags': flags, 'raw': {eid: info}}; `catalogue.measures` lists what info and its stats hold.
    Losses are in the frame exp(log_frame), except test_loss. Times include rejected attempts.

    Raises: UserError; TrainingDiverged; Stopped; OSError when the disk fails.
    """
    _check_alone(context)
    alone = context if context.f.speculate else context.changed(cluster=None)
    with executor(alone, priority=ATTEMPTS_FIRST) as workers:
        return train_in(context, directory(context, logs_dir(context)), workers=workers)


def check_training(context: Context) -> None:
    """Raises: UserError for a training that is impossible, before anything is written."""
    if context.f.tensorboard:
        require_tensorboard()
    if context.f.resume:
        _ = context.model  # made now; its weights are those of the checkpoint
        return
    images = context.dataset[0][0][:CHECKED]
    with np.errstate(over="ignore", invalid="ignore"):
        model, weights = context.model, context.initial_weights()
        model.set_weights(weights)
        finite = np.isfinite(model.logits(model.pixels(images))).all()
    if not finite:
        raise UserError(
            "the initial network has logits that are not finite: check --model.init.weight_rescale, "
            "--model.input_mean and --model.input_std"
        )


def _check_alone(context: Context) -> None:
    """Raises: UserError as `check_training`, and for flags of several trainings."""
    if context.f.speculate and context.f.cluster is None:
        raise UserError("--speculate: concurrent attempts need workers; also give --cluster")
    if context.f.cluster is not None and not context.f.speculate:
        raise UserError("--cluster: a single training uses it only with --speculate; also give that")
    check_training(context)


def train_in(
    context: Context,
    path: Path,
    whole: Path | None = None,
    point: dict[str, Any] | None = None,
    workers: Executor | None = None,
) -> Path:
    """Train as `train`, in a working directory that has its first files, from its last checkpoint if it has one.

    Args:
      whole: the run that it is a part of.
      point: of a run of a sweep, the flags that vary.
      workers: make the attempts.
    """
    run: Run | None = None

    def after() -> str:
        return f"epoch #{run.eid if run else 0}"

    with writing(context, path, after if whole is None else None):
        run = Run(context, path, workers, whole, point)
        if run.live:
            log.info("to watch it: tensorboard --logdir %s", shown_path(run.live.directory))
        if run.eid or context.f.resume:
            log.info("resuming after epoch #%d", run.eid)
        if run.eid >= context.f.E:
            log.info("nothing to do: the run has its %d epochs already", run.eid)
        if context.f.init_from is not None and not run.eid:
            log.info("starting with the network of %s", context.f.init_from)
        for line in measures.lacking(context.model, (*ALWAYS, *(context.f.measure or ()))):
            log.info("%s", line)
        try:
            run.train()
        except OSError:
            raise  # the disk is full: what it holds is consistent, and saving more would fail again
        except BaseException:
            run.save()
            raise
        run.save()
        log.info("done: %d epochs, results in %s", run.eid, shown_path(path))
    return path


@dataclass(frozen=True)
class State:
    """What a checkpoint holds besides the weights: where training stands after an accepted epoch.

    Attributes:
      eid: the epoch. lr, log_frame: for the next attempt.
      scheduler, archiver: their states.
      journal_bytes: length of the journal.
    """

    eid: int
    lr: float
    log_frame: float
    scheduler: dict[str, Any]
    archiver: dict[str, Any]
    journal_bytes: int


class Training:
    """Training in memory.

    Attributes:
      eid: the last accepted epoch, 0 at the start. weights: after it, on the device.
      lr, log_frame: for the next attempt.
      executor: makes the attempts.
      watch: called with the number of the present attempt and its completed fraction.
    """

    def __init__(self, context: Context, executor: Executor | None = None, resumed: bool = False):
        self.context, self.executor = context, executor or Serial(context)
        self.eid, self.weights = 0, context.model.initial_weights(context.f.seed)
        log_frame0 = attempt.first_frame(context)
        if context.f.init_from is not None and not resumed:
            self.weights = context.initial_weights()
            log_frame0 = self._initial_log_loss() if context.f.log_frame0 == "auto" else log_frame0
        self.start(log_frame0)
        self.watch: Callable[[int, float], None] = lambda number, fraction: None
        self._dead = self._restarted = False

    def start(self, log_frame0: float) -> None:
        """Start the scheduler with this first frame."""
        f = self.context.f
        self.scheduler = lr_scheduler.build(f.lr, f.train_mode, log_frame0, self.context.model.optimizer.length)
        self.log_frame: float = log_frame0 if f.train_mode == USE_FRAME else 0.0
        _, self.lr = self.scheduler.get()

    def epoch(self) -> dict[str, Any]:
        """Make attempts at the next epoch until the scheduler accepts one; returns its info.

        Raises: TrainingDiverged when no learning rate makes an acceptable epoch; Stopped.
        """
        began, made, accepted, discarded = time.perf_counter(), [], [], []  # type: ignore[var-annotated]
        planned: dict[tuple[int, ...], float] = {}  # lr after each attempt, if it is rejected

        def judge(unit: Unit, outcome: Outcome) -> bool:
            """Return whether later attempts are useless: this one is accepted, or they were made with another lr."""
            made.append(outcome)
            command, self.lr = self.scheduler.get(outcome.info)
            if command == "go":
                accepted.append(outcome)
            if not outcome.moved and (self.eid or command == "go"):
                self._check_moved(outcome)
            elif not outcome.moved:
                self._restart()
                discarded[:] = made
                return True
            return command == "go" or self.lr != planned[unit.key]

        def update(fraction: float) -> None:
            self.watch(len(made) + 1, fraction)
            self.context.update(self.eid / self.context.f.E)

        self.executor.publish("before", self.weights)
        while not accepted:
            number = len(made) - len(discarded) + 1
            self._check_lr(self.eid + 1, number)
            self.executor.run(self._attempts(number, planned), judge, Progress(update))
        info = accepted[0].info
        times = {name: sum(getattr(outcome, name) for outcome in made) for name in ("train_time", "eval_time")}
        info["stats"] |= times | {"attempts": len(made)}
        info["stats"]["angle_to_last_epoch"] = angle_between(self.context.model, self.weights, accepted[0].weights)
        info["time"] = time.perf_counter() - began
        self._accept(info, accepted[0].weights)
        if accepted[0].dead and not self._dead:
            self._dead = True
            log.warning(
                "warning: at epoch #%d all training images have the same logits: the network is dead (its steps were "
                "too long, or its initial weights are 0), and no gradient can revive it; lower --lr",
                self.eid,
            )
        return info

    def _initial_log_loss(self) -> float:
        """Return the natural log of the training loss of the weights at the start."""
        self.context.model.set_weights(self.weights)
        return Evaluation(self.context, 0.0).log_loss

    def _restart(self) -> None:
        """Start with the frame at the initial loss: in the present one even steps that change nothing are rejected.

        Raises: TrainingDiverged where the flag log_frame0 gives the frame.
        """
        context, log_frame0 = self.context, self._initial_log_loss()
        if self._restarted:
            raise TrainingDiverged(
                f"epoch 1: no learning rate decreases the loss below its initial value, exp({log_frame0:.6g})"
            )
        self._restarted = True
        if context.f.log_frame0 != "auto":
            raise TrainingDiverged(
                f"epoch 1: the initial loss is above exp(log_frame0), and no learning rate decreases it enough: give "
                f"--log_frame0 {math.ceil(100 * log_frame0) / 100:g}, or leave the flag out"
            )
        log.info(
            "note: no epoch can be accepted at log_frame0=%.6g; starting again at the log of the initial loss, %.6g",
            *(self.scheduler.log_frame0, log_frame0),
        )
        self.start(log_frame0)

    def _attempts(self, number: int, planned: dict[tuple[int, ...], float]) -> Iterator[Unit]:
        """Yield attempt `number` at the next epoch, and those that follow if each is rejected."""
        f, scheduler, lr = self.context.f, copy.deepcopy(self.scheduler), self.lr
        while lr >= f.lr_lb:
            limit = scheduler.loss_limit() if f.early_reject else math.inf
            args = {"eid": self.eid + 1, "number": number, "lr": lr, "log_frame": self.log_frame, "loss_limit": limit}
            unit = Unit(attempt.work, (self.eid + 1, number), args)
            try:
                _, lr = scheduler.get({**args, "stats": None})
            except TrainingDiverged:
                lr = 0.0  # none follows
            planned[unit.key] = lr
            yield unit
            number += 1

    def _check_moved(self, outcome: Outcome) -> None:
        """Raises: TrainingDiverged where steps of a given length have become too short to change the weights."""
        if self.context.model.optimizer.length:
            raise TrainingDiverged(
                f"epoch {outcome.info['eid']}: at lr {outcome.info['lr']:.3g} a step no longer changes the weights: "
                "steps of a given length overshoot where batches are noisy, so the loss-based lr has fallen without "
                "end; use whole batches (--B), momentum (--opt signum, adam, muon), or --lr decay,0.1"
            )

    def _check_lr(self, eid: int, number: int) -> None:
        if self.lr < self.context.f.lr_lb:
            raise TrainingDiverged(
                f"epoch {eid}, attempt {number}: the next lr {self.lr:.3g} is below "
                f"lr_lb={self.context.f.lr_lb:g}: no learning rate decreases the loss any further"
            )

    def _accept(self, info: dict[str, Any], weights: Any) -> None:
        """Make an epoch the last accepted one, its loss the new frame."""
        self.eid, self.weights = info["eid"], weights
        if self.context.f.train_mode == USE_FRAME:
            loss = info["stats"]["loss"]
            # One epoch can take the loss out of float64's range even in its frame.
            self.log_frame = self.log_frame + math.log(loss) if loss else info["stats"]["log_loss"]


class Run(Training):
    """Training with its files: journal, checkpoints, archive, res.

    Args:
      path: a working directory that has its first files. Training continues from its checkpoint, if it has one.
      whole, point: as of `train_in`.

    Attributes:
      raw: {eid: info}.
      kept: state that measures carry to their next epoch.
    """

    def __init__(
        self,
        context: Context,
        path: Path,
        executor: Executor | None = None,
        whole: Path | None = None,
        point: dict[str, Any] | None = None,
    ):
        super().__init__(context, executor, (path / "checkpoint.npz").exists())
        self.archiver = archivers.build(context.f.archive)
        if (path / "archive").exists() and not (path / "archive").is_dir():
            raise UserError(f"{path / 'archive'}: a file is in the way of the archived epochs; remove it")
        self.raw: dict[int, dict[str, Any]] = {}
        self.kept: dict[str, np.ndarray] = {}
        self.work_dir = workdir.WorkDir(path)
        # As flags.json and res have them. A resumed run may have another E, which they get with the next epoch.
        self._flags = stored(path)
        self._state = self._resume()
        self.saved_eid = self.eid or None
        self._res_eid = self.eid if self._res_is_current() else None  # the last epoch in `res`, where known
        self.last_save = self.last_res = time.monotonic()
        self.live: Live | None = None
        if context.f.tensorboard:
            events = events_dir(path, whole or path)
            self.live = Live(path, events, self.raw, context.f.E, self._write_res, point)

    def _resume(self) -> State:
        path = self.work_dir.path
        self.context.check_data(path)
        try:
            weights, found = read.load_checkpoint(path)
        except FileNotFoundError:  # new, killed before its first checkpoint, or it was deleted
            archived = read.archived_eids(path)
            if not archived:
                self.raw = self.work_dir.rewind(0)
                return self._present_state(journal_bytes=0)
            log.info("note: checkpoint.npz is missing; continuing from the newest archived epoch, #%d", archived[-1])
            weights, found = read.load_checkpoint(path, archived[-1])
        self.kept = found.pop("kept")
        state = State(**found)
        slots = [self.kept.pop(f"{SLOT}{k}", None) for k in range(len(self.context.model.optimizer.slots))]
        if any(slot is None for slot in slots):
            raise UserError(f"{path}: its checkpoint lacks the optimizer's state; start the run again")
        self.weights = [*self.context.check_weights(weights, str(path)), *slots]
        self.raw = self.work_dir.rewind(state.journal_bytes)
        self.eid, self.lr, self.log_frame = state.eid, state.lr, state.log_frame
        self.scheduler.set_state(state.scheduler)
        self.archiver.set_state(state.archiver)
        return state

    def _res_is_current(self) -> bool:
        """Return whether `res` was written after the checkpoint, as `save` writes them."""
        files = [self.work_dir.path / name for name in ("checkpoint.npz", "res")]
        return all(f.exists() for f in files) and files[0].stat().st_mtime_ns <= files[1].stat().st_mtime_ns

    def _present_state(self, journal_bytes: int) -> State:
        states = copy.deepcopy((self.scheduler.state(), self.archiver.state()))
        return State(self.eid, self.lr, self.log_frame, *states, journal_bytes)

    def train(self) -> None:
        """Accept epochs until there are E."""
        E = self.context.f.E
        with tqdm(total=E, initial=self.eid, unit="epoch", disable=None, dynamic_ncols=True) as bar:
            self.watch = lambda number, fraction: bar.set_postfix_str(f"attempt {number}, {fraction:.0%}")
            while self.eid < E:
                info = self.epoch()
                self._record(info)
                log.info("%s", epoch_line(info), extra={"short": self._short_line(info)})
                bar.update()
                self.context.update(self.eid / E)

    def _record(self, info: dict[str, Any]) -> None:
        """Write journal, archive, checkpoint and res, each when it is due."""
        f = self.context.f
        if self._flags["E"] != f.E:
            self._flags = self.context.flags | {"resume": None, "logs_dir": self._flags["logs_dir"]}
            self.work_dir.write_json("flags.json", self._flags)
        wanted = self.archiver.wants(self.eid, info["stats"]["log_loss"])
        if f.measure and (wanted if f.measure_every == "archived" else self._measure_now(f.measure_every)):
            self._measure(info)
        self.raw[self.eid] = info
        self._state = self._present_state(self.work_dir.append(info))
        now = time.monotonic()
        if wanted or now - self.last_save >= f.checkpoint_every:
            self._checkpoint(archive=wanted)
        if now - self.last_res >= RES_EVERY:
            self._write_res()
        if self.live:
            self.live.accept(info)

    def _measure(self, info: dict[str, Any]) -> None:
        """Add what the flag `measure` names to an epoch's stats."""
        began = time.perf_counter()
        self.context.model.set_weights(self.weights)  # the accepted attempt may have been made elsewhere
        now = Evaluation(self.context, info["log_frame"])
        history = History(info, [*self.raw.values(), info], self._last_stored, self.kept)
        info["stats"] |= measures.record(now, history, self.context.f.measure)
        info["time"] += time.perf_counter() - began

    def _last_stored(self) -> tuple[int, list[np.ndarray]] | None:
        """Return the last archived epoch before this one, and its weights."""
        path = self.work_dir.path
        eids = [eid for eid in read.archived_eids(path) if eid < self.eid]
        return (eids[-1], self.context.stored_weights(path, eids[-1])) if eids else None

    def _measure_now(self, every: int) -> bool:
        return self.eid % every == 0 or self.eid == self.context.f.E

    def _short_line(self, info: dict[str, Any]) -> str:
        """Return an accepted epoch on one line of at most 80 columns, for a terminal."""
        stats, E = info["stats"], self.context.f.E
        before = self.raw.get(self.eid - 1, {}).get("stats", {}).get("q_bar_min")
        margin = stats.get("q_bar_min")
        rise = "" if margin is None or before is None else " up" if margin > before else " down"
        shown = "" if margin is None else f" margin {margin:.3e}{rise}"
        latest = [self.raw[eid]["time"] for eid in range(max(1, self.eid - 19), self.eid + 1) if eid in self.raw]
        seconds = (E - self.eid) * sum(latest) / max(len(latest), 1)
        size, unit = next((s, u) for s, u in ((1, "s"), (60, "min"), (3600, "h")) if seconds < 100 * s or u == "h")
        left = f"{seconds / size:.0f} {unit} left"
        loss = stats["log_loss"] / math.log(10)
        attempts = f"{stats['attempts']} attempt{'s' * (stats['attempts'] > 1)}"
        return f"#{self.eid}/{E} log10_loss {loss:.2f}{shown}, {attempts}, {left}"

    def save(self) -> None:
        """Write the checkpoint and `res` of the last accepted epoch, if they are not written yet."""
        if self.saved_eid != self.eid:
            self._checkpoint()
        if self._res_eid != self.eid:
            self._write_res()
        if self.live:
            self.live.close()

    def _checkpoint(self, archive: bool = False) -> None:
        arrays, names = [as_array(w) for w in self.weights], self.context.model.names
        weights, slots = arrays[: len(names)], arrays[len(names) :]
        kept = self.kept | {f"{SLOT}{k}": slot for k, slot in enumerate(slots)}
        self.work_dir.save(list(zip(names, weights, strict=True)), asdict(self._state), archive, kept)
        self.saved_eid, self.last_save = self.eid, time.monotonic()

    def _write_res(self) -> None:
        self.work_dir.write_res({"flags": self._flags, "raw": self.raw})
        self._res_eid, self.last_res = self.eid, time.monotonic()


def angle_between(model: Any, before: Any, after: Any) -> float:
    """Return the angle between all weights before and after an epoch, radians."""
    trained = [v.trainable for v in model.tensors]  # the optimizer's state follows
    pair = ([as_array(w) for w, t in zip(weights, trained, strict=False) if t] for weights in (before, after))
    return margins.angle(*pair)


def as_array(weight: Any) -> np.ndarray:
    """Return a weight as a NumPy array, wherever it is."""
    return weight.numpy() if hasattr(weight, "numpy") else np.asarray(weight)
