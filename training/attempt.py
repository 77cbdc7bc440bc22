"""An attempt at an epoch: gradient steps over one permutation of the training set, then the stats.

It is a function of the weights before, the epoch, the attempt's number, the learning rate and the frame: it depends
on nothing that happened before. So the same attempt can be made anywhere.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from context import Context
from execution import Tick
from training import measures

Say = Callable[[str], None]  # shows how far an attempt is


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt.

    Attributes:
      info: eid, lr, log_frame, rt_loss, stats (None when the attempt failed or was proved worse), and
        all_rt_loss when that flag is set.
      weights: after the attempt, on the device, in the order of `Network.tensors`; None without stats.
      train_time, eval_time: seconds.
    """

    info: dict[str, Any]
    weights: Any
    train_time: float
    eval_time: float


def permutation(context: Context, eid: int, number: int) -> np.ndarray:
    """The order of the training set in attempt `number` (1, 2, ...) at epoch `eid`: int [N]."""
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
    say: Say = lambda text: None,
) -> Outcome:
    """Train one epoch from `weights`, and evaluate where it ended.

    Args:
      weights: arrays or tensors in the order of `Network.tensors`.
      eid, number: which epoch, and which attempt at it: they choose the permutation.
      lr: in the frame. log_frame: natural log of the frame.
      loss_limit: the evaluation stops once the mean training loss, in the frame, is proved to be above it.

    The attempt fails when a batch loss is above the flag loss_ub, or not finite.
    """
    f, began = context.f, time.perf_counter()
    context.model.set_weights(weights)
    ok, losses = _gradient_steps(context, eid, number, lr, log_frame, say)
    trained = time.perf_counter()
    info: dict[str, Any] = {
        "eid": eid,
        "lr": lr,
        "log_frame": log_frame,
        "rt_loss": float(losses.mean()),
        "stats": None,
    }
    if ok and (eid % f.stats_every == 0 or eid == f.E):
        info["stats"] = stats(context, log_frame, loss_limit, say)
    elif ok:
        info["stats"] = {"loss": info["rt_loss"], "log_loss": math.log(info["rt_loss"] or math.nan)}
    if info["stats"] is not None and not _finite(context, info["stats"]):
        info["stats"] = None  # a failed attempt: what is no number never comes into the record
    if f.include_all_rt_loss_in_res:
        info["all_rt_loss"] = losses.tolist()
    after = None if info["stats"] is None else context.model.snapshot()
    return Outcome(info, after, trained - began, time.perf_counter() - trained)


def work(context: Context, args: dict[str, Any], tick: Tick) -> Outcome:
    """A unit of work: an attempt. Arguments as of `attempt`; the weights are those published as `before`."""
    args = {name: value for name, value in args.items() if name != "then"}
    return attempt(context, context.published["before"], **args, say=context.say)


def _finite(context: Context, stats: dict[str, Any]) -> bool:
    """Whether the loss and the norm are numbers, and so all weights are finite."""
    if "rho" in stats:
        told = [stats[key] for key in ("loss", "log_loss", "rho", "q_min", "q_max")]
    else:  # an epoch between two evaluations
        told = [stats["loss"], *(float(np.abs(w.numpy()).max()) for w in context.model.weights)]
    return all(math.isfinite(value) for value in told)


def _gradient_steps(
    context: Context, eid: int, number: int, lr: float, log_frame: float, say: Say
) -> tuple[bool, np.ndarray]:
    """(whether no batch was bad, the losses of the batches done, float64)."""
    f, order, seed = context.f, permutation(context, eid, number), _augment_seed(context, eid, number)
    n_batches, left_over = divmod(len(order), f.B)
    batches = order[: n_batches * f.B].reshape(n_batches, f.B).astype(np.int32)

    def tick(done: int) -> None:
        context.stop_if_asked()
        say(f"attempt {number}, of {n_batches} batches {done}")

    def train(batches: np.ndarray, seed: np.ndarray | None) -> tuple[bool, np.ndarray]:
        return context.model.train_epoch(  # type: ignore[no-any-return]
            *context.train_set, batches, lr, log_frame, f.loss_ub, seed, tick
        )

    ok, losses = train(batches, seed)
    if ok and left_over and not f.drop_last:
        if seed is not None:
            seed = seed + np.array([0, n_batches], np.int32)
        ok, last = train(order[None, -left_over:].astype(np.int32), seed)
        losses = np.append(losses, last)
    return ok, losses


def stats(
    context: Context, log_frame: float, loss_limit: float = math.inf, say: Say = lambda text: None
) -> dict[str, Any] | None:
    """The stats of the network as it is now; None when its loss is above the limit.

    Args:
      log_frame: natural log of the frame. loss_limit: see `attempt`.
    """

    def tick(done: int) -> None:
        context.stop_if_asked()
        say(f"evaluating, {done} examples")

    complete, loss, logits = context.model.evaluate(*context.train_set, log_frame, loss_limit, tick)
    if not complete:
        return None
    return measures.record(measures.Epoch(context, log_frame, (loss, logits), tick), measures.ALWAYS)
