"""Computes what is recorded of an epoch: one function per measure of `catalogue.measures`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from catalogue.measures import ALWAYS
from engine.context import Context
from flatness import curvature
from flatness.hessian import Hessian
from flatness.span import examples_of
from models import margins
from support.errors import NotFinite
from support.screen import Update, ignore
from training import theory

Stored = tuple[int, list[np.ndarray]]  # an epoch and its weights


class Evaluation:
    """A network as it is now, evaluated on its data. Every quantity is computed at most once.

    Args:
      context: its model holds the weights.
      log_frame: natural log of the frame.
      train: (mean loss in the frame, logits [N, C]) of the training set, where they are known.
      update: called with the completed fraction of each pass over the data.
    """

    def __init__(
        self,
        context: Context,
        log_frame: float,
        train: tuple[float, np.ndarray] | None = None,
        update: Update = ignore,
    ):
        self.context, self.model, self.log_frame, self.update = context, context.model, log_frame, update
        self._known = train
        (_, self.labels), (_, self.test_labels) = context.dataset

    @cached_property
    def _train(self) -> tuple[float, np.ndarray]:
        if self._known is not None:
            return self._known
        return self._pass(self.context.train_set, self.log_frame)

    def _pass(self, data: tuple[Any, Any], log_frame: float) -> tuple[float, np.ndarray]:
        """Return mean loss in the frame and logits of a data set. Raises: NotFinite."""
        complete, loss, logits = self.model.evaluate(*data, log_frame, update=self.update)
        if not complete or not np.isfinite(logits).all():
            raise NotFinite(
                "the network's logits are not finite: its weights have overflowed; choose an earlier epoch"
            )
        return loss, logits

    @property
    def loss(self) -> float:
        """Mean training loss in the frame."""
        return self._train[0]

    @property
    def logits(self) -> np.ndarray:
        """float32 [N, C], of the training set."""
        return self._train[1]

    @cached_property
    def test_logits(self) -> np.ndarray:
        """float32 [N_test, C]."""
        return self._pass(self.context.test_set, 0.0)[1]

    @cached_property
    def gaps(self) -> np.ndarray:
        """float64 [N, C], of the training set: `models.margins.gaps`."""
        return margins.gaps(self.logits, self.labels)

    @cached_property
    def log_losses(self) -> np.ndarray:
        """Natural log of each training example's true loss, float64 [N]."""
        return margins.log_losses(margins.log_odds_of_gaps(self.gaps))

    @cached_property
    def log_loss(self) -> float:
        """Natural log of the true mean training loss."""
        return margins.log_mean_exp(self.log_losses)

    @cached_property
    def q(self) -> np.ndarray:
        """Margins q_i of the training set, float64 [N]."""
        return margins.margins(self.gaps)

    @cached_property
    def norms(self) -> dict[str, float]:
        """`models.margins.norms`."""
        return margins.norms(self.model.counted_weights(), self.model.act_type)

    @cached_property
    def gradient(self) -> list[np.ndarray]:
        """Of the mean training loss in the frame exp(log_loss), float64, for each of the model's `weights`."""
        return self.model.gradient(*self.context.train_set, self.log_loss, update=self.update)


def _nothing_stored() -> Stored | None:
    return None


@dataclass(frozen=True)
class History:
    """What is known of the run before an epoch.

    Attributes:
      info: of the epoch; None where it is not known.
      infos: of all epochs of the run up to this one, in order.
      stored: returns the last stored epoch before it, and its weights; None where there is none.
      kept: state that a measure carries to its next epoch, {name: array}; checkpoints contain it.
    """

    info: dict[str, Any] | None = None
    infos: list[dict[str, Any]] = field(default_factory=list)
    stored: Callable[[], Stored | None] = _nothing_stored
    kept: dict[str, np.ndarray] = field(default_factory=dict)


Function = Callable[[Evaluation, History], dict[str, Any]]


def _losses(now: Evaluation, history: History) -> dict[str, Any]:
    test_gaps = margins.gaps(now.test_logits, now.test_labels)
    test_losses = np.exp(margins.log_losses(margins.log_odds_of_gaps(test_gaps)))
    return {
        "loss": now.loss,
        "log_loss": now.log_loss,
        "log_frame": now.log_frame,
        "acc": margins.accuracy(now.logits, now.labels),
        "test_loss": float(test_losses.mean()),
        "test_acc": margins.accuracy(now.test_logits, now.test_labels),
    }


def _norms(now: Evaluation, history: History) -> dict[str, Any]:
    return now.norms


def _margins(now: Evaluation, history: History) -> dict[str, Any]:
    return margins.margin_stats(now.q, now.norms["rhoL"], now.norms["norm_prod"])


def _smoothed(now: Evaluation, history: History) -> dict[str, Any]:
    return margins.smoothed_stats(now.log_loss, len(now.labels), now.norms, now.model.degrees)


def _why_not_smoothed(model: Any) -> str | None:
    order = sum(model.degrees)
    if order != margins.published_order(len(model.layers), model.act_type):
        return f"smoothed_q_bar is NaN: the network is homogeneous of order {order}, and rhoL is another power of rho"
    return None


def _margin_quantiles(now: Evaluation, history: History) -> dict[str, Any]:
    return {f"q_{k}pct": float(np.quantile(now.q, k / 100)) for k in (1, 10, 50)}


def _norm_margins(now: Evaluation, history: History) -> dict[str, Any]:
    if _why_no_norm_margins(now.model):
        return {}
    tensors = [tensor for layer in now.model.counted_weights() for tensor in layer]
    return margins.norm_margins(tensors, float(now.q.min()), now.log_loss, len(now.labels), sum(now.model.degrees))


def _why_no_norm_margins(model: Any) -> str | None:
    reason = model.why_not_homogeneous
    return f"q_bar_linf and q_bar_spectral are left out: {reason}, so it is not homogeneous" if reason else None


def _gradient_norm(now: Evaluation, history: History) -> dict[str, Any]:
    in_the_frame = math.exp(now.log_loss - now.log_frame)
    return {"gradient_norm": theory.norm(now.gradient) * in_the_frame}


def _sharpness(now: Evaluation, history: History) -> dict[str, Any]:
    info = history.info
    hessian = Hessian(examples_of(now.context), update=now.update)
    seed = [now.context.f.seed, info["eid"] if info else 0]
    noise = np.random.default_rng(seed).standard_normal(hessian.shape[0])
    value, vector = curvature.largest_eigenvalue(hessian, history.kept.get("eigenvector"), noise)
    history.kept["eigenvector"] = vector.astype(np.float32)
    found = {"sharpness": hessian.over_the_loss(value), "sharpness_products": hessian.products}
    if info and info["lr"]:
        found["lr_sharpness"] = hessian.times_lr(value, info)
    return found


FUNCTIONS: dict[str, Function] = {  # by the names of `catalogue.measures`; the training loop knows the others itself
    "losses": _losses,
    "norms": _norms,
    "margins": _margins,
    "smoothed": _smoothed,
    "margin_quantiles": _margin_quantiles,
    "gradient_norm": _gradient_norm,
    "theory": theory.of_epoch,
    "sharpness": _sharpness,
    "max_margin": theory.max_margin,
    "norm_margins": _norm_margins,
}
WHY_NOT: dict[str, Callable[[Any], str | None]] = {  # a network -> which keys it lacks, and why; None: none
    "smoothed": _why_not_smoothed,
    "theory": theory.why_not,
    "max_margin": theory.why_no_max_margin,
    "norm_margins": _why_no_norm_margins,
}


def record(now: Evaluation, history: History | None = None, names: Iterable[str] = ALWAYS) -> dict[str, Any]:
    """Return the numbers of these measures, by key, as plain Python numbers."""
    history = History() if history is None else history
    stats: dict[str, Any] = {}
    for name in names:
        if name in FUNCTIONS:
            stats |= FUNCTIONS[name](now, history)
    return stats


def lacking(model: Any, names: Iterable[str]) -> list[str]:
    """Return one line for each of these measures that does not apply to a network as a whole."""
    reasons = {name: WHY_NOT[name](model) for name in names if name in WHY_NOT}
    return [f"{name}: {reason}" for name, reason in reasons.items() if reason]
