"""A training run: attempts until the scheduler accepts, and what each accepted epoch leaves on the disk."""

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import flags as flag_table
import results
from context import Context
from errors import Stopped, TrainingDiverged, UserError
from execution import Serial, Unit, executor
from models import archivers, lr_scheduler, margins
from models.lr_scheduler import USE_FRAME
from screen import Uncounted, log, shown_path
from training import attempt, measures
from training.attempt import Outcome

ATTEMPTS_FIRST = 10  # their priority on a cluster: a run waits for each of them
RES_EVERY = 10.0  # seconds between two writes of `res`, at least


def train(context: Context) -> Path:
    """Train for E accepted epochs (the experiments of arXiv 1906.05890). Returns the working directory.

    Leaves `res` = {'flags': flags, 'raw': {eid: info}}; see `training.measures` for what info and its stats
    hold. Losses are in the frame exp(log_frame), except test_loss. Times include rejected attempts.

    Raises: UserError; TrainingDiverged; Stopped; OSError when the disk fails.
    """
    _check(context)
    if context.f.resume is not None:
        path = context.check_resumed()
    else:
        path = results.create(context.logs_dir, context.name, context.first_files())
    return train_in(context, path, path)


def _check(context: Context) -> None:
    """Raises: UserError for flags, data or a network that do not fit, before anything is made."""
    if context.f.tensorboard:
        from reporting.live import require_tensorboard

        require_tensorboard()
    if context.f.speculate and context.f.cluster is None:
        raise UserError("--speculate: the next attempts need workers; give --cluster, too")
    if context.f.cluster is not None and not context.f.speculate:
        raise UserError("--cluster: one training uses it with --speculate only; give that, too")
    context.model  # noqa: B018 (made now)


def train_in(context: Context, path: Path, whole: Path) -> Path:
    """As `train`, in a working directory that has its first files, from its last checkpoint on if it has one.

    Args:
      whole: the directory to resume: path, or the run that it is a part of.
    """
    alone = context if context.f.speculate else context.changed(cluster=None)
    with context.writing(path), executor(alone, priority=ATTEMPTS_FIRST) as workers:
        run = Run(context, path, workers)
        if run.live:
            log.info("to watch it: tensorboard --logdir %s", shown_path(run.live.directory))
        if run.eid or context.f.resume:
            log.info("resuming after epoch #%d", run.eid)
        if run.eid >= context.f.E:
            log.info("nothing to do: the run has its %d epochs already", run.eid)
        for name in (*measures.ALWAYS, *(context.f.measure or ())):
            if reason := measures.MEASURES[name].lacks(context.model):
                log.info("%s: %s", name, reason)
        try:
            run.train()
        except OSError:
            raise  # the disk is full: what is there is consistent, and saving more would fail again
        except BaseException as error:
            run.save()
            if isinstance(error, Stopped):
                log.info("stopped after epoch #%d; go on with:", run.eid)
                log.info("  ./run.sh %s --resume %s", context.name, shown_path(whole))
            raise
        if run.saved_eid != run.eid or not run.res_is_current():
            run.save()
        log.info("done: %d epochs, results in %s", run.eid, shown_path(path))
    return path


class Progress:
    """Where training stands after its last accepted epoch.

    Attributes:
      eid: that epoch, 0 at the start. weights: after it, on the device.
      lr, log_frame: for the next attempt.
      executor: makes the attempts.
    """

    def __init__(self, context: Context, executor: Any = None):
        f = context.f
        self.context, self.executor = context, executor or Serial(context)
        self.ticker = Uncounted(context.stop_if_asked)  # nobody knows how many attempts there will be
        self.scheduler = lr_scheduler.build(f.lr, f.train_mode, f.log_frame0)
        self.eid, self.weights = 0, context.model.initial_weights(f.seed)
        self.log_frame: float = f.log_frame0 if f.train_mode == USE_FRAME else 0.0
        _, self.lr = self.scheduler.get()

    def epoch(self) -> dict[str, Any]:
        """Attempts at the next epoch until the scheduler accepts one; returns its info, and goes there.

        Raises: TrainingDiverged when no lr makes an acceptable epoch; Stopped.
        """
        began, made, accepted = time.perf_counter(), [], []  # type: ignore[var-annotated]

        def judge(unit: Unit, outcome: Outcome) -> bool:
            """Whether attempts after this one are of no use: it is accepted, or they have another lr than is due."""
            made.append(outcome)
            command, self.lr = self.scheduler.get(outcome.info)
            if command == "go":
                accepted.append(outcome)
            return command == "go" or self.lr != unit.args["then"]

        self.executor.publish("before", self.weights)
        while not accepted:
            self._check_lr(self.eid + 1, len(made) + 1)
            self.executor.run(self._attempts(len(made) + 1), judge, self.ticker)
        info = accepted[0].info
        times = {name: sum(getattr(outcome, name) for outcome in made) for name in ("train_time", "eval_time")}
        info["stats"] |= times | {"attempts": len(made)}
        info["stats"]["angle_to_last_epoch"] = turned(self.context.model, self.weights, accepted[0].weights)
        info["time"] = time.perf_counter() - began
        self._go_to(info, accepted[0].weights)
        return info

    def _attempts(self, number: int) -> Iterator[Unit]:
        """Attempt `number` at the next epoch, and those that follow if each is rejected."""
        f, scheduler, lr = self.context.f, copy.deepcopy(self.scheduler), self.lr
        while lr >= f.lr_lb:
            limit = scheduler.loss_limit() if f.early_reject else math.inf
            args = {"eid": self.eid + 1, "number": number, "lr": lr, "log_frame": self.log_frame, "loss_limit": limit}
            try:
                _, lr = scheduler.get({**args, "stats": None})
            except TrainingDiverged:
                lr = 0.0  # none follows
            yield Unit(attempt.work, (self.eid + 1, number), args | {"then": lr})
            number += 1

    def _check_lr(self, eid: int, number: int) -> None:
        if self.lr < self.context.f.lr_lb:
            first = " (below exp(log_frame0): raise --log_frame0, or try another seed)" if eid == 1 else ""
            raise TrainingDiverged(
                f"epoch {eid}, attempt {number}: the next lr {self.lr:.3g} is below "
                f"lr_lb={self.context.f.lr_lb:g}: no learning rate makes the loss fall any more{first}"
            )

    def _go_to(self, info: dict[str, Any], weights: Any) -> None:
        """Make an epoch the last accepted one, its loss the new frame."""
        self.eid, self.weights = info["eid"], weights
        if self.context.f.train_mode == USE_FRAME:
            loss = info["stats"]["loss"]
            # One epoch can take the loss out of float64's range even in its frame.
            self.log_frame = self.log_frame + math.log(loss) if loss else info["stats"]["log_loss"]


class Run(Progress):
    """Progress with its traces on the disk: journal, checkpoints, archive, res.

    Args:
      path: a working directory that has its first files. Goes on from its checkpoint, if it has one.

    Attributes:
      raw: {eid: info}.
      kept: what measures leave for themselves at the next epoch.
    """

    def __init__(self, context: Context, path: Path, executor: Any = None):
        super().__init__(context, executor)
        self.archiver = archivers.build(context.f.archive)
        self.raw: dict[int, dict[str, Any]] = {}
        self.kept: dict[str, np.ndarray] = {}
        self.work_dir = results.WorkDir(path)
        # What flags.json and res say. A resumed run may have another E; that stands there once the run has gone on.
        self._flags = flag_table.complete(results.read_flags(path))
        self._resume()
        self.saved_eid = self.eid if self.eid else None
        self.last_save = self.last_res = time.monotonic()
        self.live = None
        if context.f.tensorboard:
            from reporting.live import Live

            self.live = Live(path, self.raw, context.f.E, self._write_res)

    def _resume(self) -> None:
        path = self.work_dir.path
        self.context.check_data(path)
        try:
            weights, state = results.load_checkpoint(path)
        except FileNotFoundError:  # new, or killed before its first checkpoint
            self.raw = self.work_dir.rewind(0)
            self._note_state(journal_bytes=0)
            return
        self.weights = self.context.check_weights(weights, str(path))
        self.raw = self.work_dir.rewind(state["journal_bytes"])
        self.eid, self.lr, self.log_frame = state["eid"], state["lr"], state["log_frame"]
        self.kept = state["kept"]
        self.scheduler.set_state(state["scheduler"])
        self.archiver.set_state(state["archiver"])
        self._state = state

    def _note_state(self, journal_bytes: int) -> None:
        """Note what a checkpoint of this moment needs besides the weights."""
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

    def train(self) -> None:
        """Accept epochs until there are E."""
        E = self.context.f.E
        with tqdm(total=E, initial=self.eid, unit="epoch", disable=None, dynamic_ncols=True) as bar:
            self.context.say = bar.set_postfix_str
            while self.eid < E:
                info = self.epoch()
                self._record(info)
                log.info("%s", epoch_line(info))
                bar.update()
                self.context.stop_if_asked()

    def _record(self, info: dict[str, Any]) -> None:
        """Journal, archive, checkpoint and res, each when it is due."""
        f = self.context.f
        if self._flags["E"] != f.E:
            self._flags = self.context.flags | {"resume": None, "logs_dir": self._flags["logs_dir"]}
            self.work_dir.write_json("flags.json", self._flags)
        wanted = self.archiver.wants(self.eid, info["stats"]["log_loss"])
        if f.measure and (wanted if f.measure_every == "archived" else self._measure_now(f.measure_every)):
            began = time.perf_counter()
            self.context.model.set_weights(self.weights)  # the accepted attempt may have been made elsewhere
            infos = [*self.raw.values(), info]
            epoch = measures.Epoch(
                self.context, info["log_frame"], info=info, infos=infos, stored=self._last_stored, kept=self.kept
            )
            info["stats"] |= measures.record(epoch, f.measure)
            info["time"] += time.perf_counter() - began
        self.raw[self.eid] = info
        self._note_state(self.work_dir.append(info))
        now = time.monotonic()
        if wanted or now - self.last_save >= f.checkpoint_every:
            self._checkpoint(archive=wanted)
        if now - self.last_res >= RES_EVERY:
            self._write_res()
        if self.live:
            self.live.accept(info)

    def _last_stored(self) -> tuple[int, list[np.ndarray]] | None:
        """The last archived epoch before this one, and its weights."""
        path = self.work_dir.path
        eids = [eid for eid in results.archived_eids(path) if eid < self.eid]
        return (eids[-1], self.context.stored_weights(path, eids[-1])) if eids else None

    def _measure_now(self, every: int) -> bool:
        return self.eid % every == 0 or self.eid == self.context.f.E

    def save(self) -> None:
        """Make the disk hold all of the run up to its last accepted epoch."""
        if self.saved_eid != self.eid:
            self._checkpoint()
        self._write_res()
        if self.live:
            self.live.close()

    def res_is_current(self) -> bool:
        """Whether `res` has the last accepted epoch, and no other flags."""
        path = self.work_dir.path / "res"
        return path.exists() and results.read_res(path.parent) == {"flags": self._flags, "raw": self.raw}

    def _checkpoint(self, archive: bool = False) -> None:
        named = [(n, as_array(w)) for n, w in zip(self._names, self.weights, strict=True)]
        self.work_dir.save(named, self._state, archive, self.kept)
        self.saved_eid, self.last_save = self.eid, time.monotonic()

    @property
    def _names(self) -> list[str]:
        return list(self.context.model.names)

    def _write_res(self) -> None:
        self.work_dir.write_res({"flags": self._flags, "raw": self.raw})
        self.last_res = time.monotonic()


def turned(model: Any, before: Any, after: Any) -> float:
    """The angle between all weights before and after an epoch, radians."""
    trained = [v.trainable for v in model.tensors]
    pair = ([as_array(w) for w, t in zip(weights, trained, strict=True) if t] for weights in (before, after))
    return margins.angle(*pair)


def as_array(weight: Any) -> np.ndarray:
    """A weight as a NumPy array, wherever it is."""
    return weight.numpy() if hasattr(weight, "numpy") else np.asarray(weight)


def stats_line(stats: dict[str, Any]) -> str:
    """An epoch's most telling stats on one line."""
    if "acc" not in stats:  # an epoch between two evaluations (stats_every)
        return f"log10_loss={stats['log_loss'] / math.log(10):.4f}"
    return (
        f"log10_loss={stats['log_loss'] / math.log(10):.4f} acc={stats['acc']:.2%} "
        f"test_loss={stats['test_loss']:.4g} test_acc={stats['test_acc']:.2%} "
        f"q_bar_min={stats['q_bar_min']:.4e} q_bar2_min={stats['q_bar2_min']:.4e}"
    )


def epoch_line(info: dict[str, Any]) -> str:
    """One accepted epoch on one line."""
    return (
        f"epoch #{info['eid']} (lr={info['lr']:.1e} log_frame={info['log_frame']:.2f}): "
        f"rt_loss={info['rt_loss']:.4f} {stats_line(info['stats'])} "
        f"[time={info['time']:.2f}s, attempts={info['stats']['attempts']}]"
    )
