"""An attempt at an epoch: gradient steps over one permutation of the training set, then the stats.

It is a function of the weights before, the epoch, the attempt's number, the learning rate and the frame, and of
nothing else. So the same attempt can be made anywhere.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.context import Context
from engine.units import Worker
from support.errors import NotFinite
from support.screen import Update, ignore, within
from training import measures
from training.measures import Evaluation

TRAINING = 0.75  # of an attempt, approximately: its gradient steps; the rest is evaluation


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt.

    Attributes:
      info: eid, lr, log_frame, rt_loss, stats (None when the attempt failed or was proved worse), and
        all_rt_loss when that flag is set.
      weights: after the attempt, on the device, as `Network.snapshot` returns them; None without stats.
      train_time, eval_time: seconds.
      moved: whether the weights changed by more than rounding; only known of the first epoch's attempts, and where
        lr is the length of a step, else True.
      dead: whether the logits are the same for all training images.
    """

    info: dict[str, Any]
    weights: Any
    train_time: float
    eval_time: float
    moved: bool = True
    dead: bool = False


def first_frame(context: Context) -> float:
    """Return log_frame0, the natural log of the first epoch's frame: the flag, or log(log C) for C classes."""
    given = context.f.log_frame0
    return given if given != "auto" else math.log(math.log(context.model.n_classes))


def permutation(context: Context, eid: int, number: int) -> np.ndarray:
    """Return the order of the training set in attempt `number` (1, 2, ...) at epoch `eid`: int [N]."""
    n = len(context.dataset[0][0])
    return np.random.default_rng([context.f.seed, eid, number]).permutation(n)


def _augment_seed(context: Context, eid: int, number: int) -> np.ndarray | None:
    if context.f.augment == "none":
        return None
    rng = np.random.default_rng([context.f.seed, eid, number, 1])
    return rng.integers(np.iinfo(np.int32).max // 2, size=2, dtype=np.int32)


def attempt(
    context: Context,
    weights: Any,
    eid: int,
    number: int,
    lr: float,
    log_frame: float,
    loss_limit: float = math.inf,
    update: Update = ignore,
) -> Outcome:
    """Train one epoch from `weights`, and evaluate where it ended.

    Args:
      weights: arrays or tensors, as `Network.snapshot` returns them.
      eid, number: which epoch, and which attempt at it: they choose the permutation.
      lr: in the frame. log_frame: natural log of the frame.
      loss_limit: the evaluation stops once the mean training loss, in the frame, is certain to be above it.
      update: called about once per second with the completed fraction; may raise to end the attempt.

    The attempt fails when a batch loss is above the flag loss_ub, or not finite.
    """
    f, began = context.f, time.perf_counter()
    context.model.set_weights(weights)
    ok, losses = _gradient_steps(context, eid, number, lr, log_frame, within(update, 0, TRAINING))
    trained = time.perf_counter()
    info: dict[str, Any] = {
        "eid": eid,
        "lr": lr,
        "log_frame": log_frame,
        "rt_loss": float(losses.mean()),
        "stats": None,
    }
    dead = False
    if ok and (eid % f.stats_every == 0 or eid == f.E):
        info["stats"], dead = stats(context, log_frame, loss_limit, within(update, TRAINING, 1))
    elif ok:
        info["stats"] = {"loss": info["rt_loss"], "log_loss": math.log(info["rt_loss"] or math.nan)}
    if info["stats"] is not None and not _finite(context, info["stats"]):
        info["stats"] = None  # a failed attempt: non-finite values are never recorded
    if f.include_all_rt_loss_in_res:
        info["all_rt_loss"] = losses.tolist()
    after = None if info["stats"] is None else context.model.snapshot()
    moved = (eid > 1 and not context.model.optimizer.length) or _moved(context.model, weights)
    return Outcome(info, after, trained - began, time.perf_counter() - trained, moved, dead)


def _moved(model: Any, before: Any) -> bool:
    """Return whether the trainable weights differ from `before`, in the order of `Network.tensors`, beyond rounding.

    A weight near 0 changes at any learning rate; what counts is the change relative to the largest weight.
    """
    pairs = [(v.numpy(), np.asarray(w)) for v, w in zip(model.tensors, before, strict=False) if v.trainable]
    change = max(float(np.abs(now - then).max()) for now, then in pairs)
    largest = max(float(np.abs(then).max()) for _, then in pairs)
    return not change <= np.finfo(np.float32).eps * largest  # NaN has moved


def work(worker: Worker, args: dict[str, Any], update: Update) -> Outcome:
    """Make an attempt, from the weights published as `before`: a unit of work. Arguments as of `attempt`."""
    return attempt(worker.context, worker.published["before"], **args, update=update)


def _finite(context: Context, stats: dict[str, Any]) -> bool:
    """Return whether the loss and the norm, and so all weights, are finite."""
    if "rho" in stats:
        values = [stats[key] for key in ("loss", "log_loss", "rho", "q_min", "q_max")]
    else:  # an epoch between two evaluations
        values = [stats["loss"], *(float(np.abs(w.numpy()).max()) for w in context.model.weights)]
    return all(math.isfinite(value) for value in values)


def _gradient_steps(
    context: Context, eid: int, number: int, lr: float, log_frame: float, update: Update
) -> tuple[bool, np.ndarray]:
    """Return (whether no batch was bad, the losses of the batches done, float64)."""
    f, order, seed = context.f, permutation(context, eid, number), _augment_seed(context, eid, number)
    n_batches, left_over = divmod(len(order), f.B)
    batches = order[: n_batches * f.B].reshape(n_batches, f.B).astype(np.int32)

    def train(batches: np.ndarray, seed: np.ndarray | None) -> tuple[bool, np.ndarray]:
        return context.model.train_epoch(*context.train_set, batches, lr, log_frame, f.loss_ub, seed, update)

    ok, losses = train(batches, seed)
    if ok and left_over and not f.drop_last:
        if seed is not None:
            seed = seed + np.array([0, n_batches], np.int32)
        ok, last = train(order[None, -left_over:].astype(np.int32), seed)
        losses = np.append(losses, last)
    return ok, losses


def stats(
    context: Context, log_frame: float, loss_limit: float = math.inf, update: Update = ignore
) -> tuple[dict[str, Any] | None, bool]:
    """Return the stats of the network as it is now, and whether it is dead: the same logits for all training images.

    The stats are None where the loss is above the limit, or a logit is not finite.

    Args:
      log_frame: natural log of the frame. loss_limit: see `attempt`.
    """
    complete, loss, logits = context.model.evaluate(*context.train_set, log_frame, loss_limit, update)
    if not complete or not np.isfinite(logits).all():
        return None, False
    now = Evaluation(context, log_frame, (loss, logits), update=lambda fraction: update(1.0))
    try:
        return measures.record(now), not (logits != logits[0]).any()
    except NotFinite:  # of the test set
        return None, False


def stats_line(stats: dict[str, Any]) -> str:
    """Return the most important stats of an epoch on one line."""
    if "acc" not in stats:  # an epoch between two evaluations (stats_every)
        return f"log10_loss={stats['log_loss'] / math.log(10):.4f}"
    return (
        f"log10_loss={stats['log_loss'] / math.log(10):.4f} acc={stats['acc']:.2%} "
        f"test_loss={stats['test_loss']:.4g} test_acc={stats['test_acc']:.2%} "
        f"q_bar_min={stats['q_bar_min']:.4e} q_bar2_min={stats['q_bar2_min']:.4e}"
    )


def epoch_line(info: dict[str, Any]) -> str:
    """Return an accepted epoch on one line."""
    return (
        f"epoch #{info['eid']} (lr={info['lr']:.1e} log_frame={info['log_frame']:.2f}): "
        f"rt_loss={info['rt_loss']:.4f} {stats_line(info['stats'])} "
        f"[time={info['time']:.2f}s, attempts={info['stats']['attempts']}]"
    )
