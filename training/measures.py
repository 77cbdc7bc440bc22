"""What is recorded of an epoch: the one registry. Tables in docs and reports, figures and TensorBoard's
descriptions are made from it.

A new measure is one entry of MEASURES and one function. No TensorFlow here, so that figures and reports load in a
second.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from models import margins

EVERY_EPOCH, ASKED_FOR = "every accepted epoch", "--measure"


@dataclass(frozen=True)
class Measure:
    """A group of numbers that one function computes.

    Attributes:
      keys: {key in `stats`: (meaning in one line, unit)}. A key may hold '{k}', which stands for a number.
      function: an `Epoch` -> {key: number}; None for numbers that the training loop itself knows.
      needs: what of the network it looks at: 'logits', 'weights', 'gradient'.
      cadence: EVERY_EPOCH, or ASKED_FOR: at the epochs that --measure_every says.
    """

    keys: dict[str, tuple[str, str]]
    function: Callable[["Epoch"], dict[str, Any]] | None
    needs: tuple[str, ...] = ()
    cadence: str = EVERY_EPOCH


class Epoch:
    """A network after an epoch, as measures see it. What several measures need is computed once.

    Args:
      context: its model holds the weights.
      log_frame: natural log of the frame.
      evaluated: (mean loss in the frame, logits [N, C]) of the training set, where they are known.
      tick: as in `models.network`.
    """

    def __init__(
        self,
        context: Any,
        log_frame: float,
        evaluated: tuple[float, np.ndarray] | None = None,
        tick: Callable[[int], None] = lambda done: None,
    ):
        self.model, self.log_frame, self._evaluated, self._tick = context.model, log_frame, evaluated, tick
        self._context = context
        (_, self.labels), (_, self.test_labels) = context.dataset

    @cached_property
    def _train(self) -> tuple[float, np.ndarray]:
        if self._evaluated is not None:
            return self._evaluated
        _, loss, logits = self.model.evaluate(*self._context.train_set, self.log_frame, tick=self._tick)
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
        logits: np.ndarray = self.model.evaluate(*self._context.test_set, tick=self._tick)[2]
        return logits

    @cached_property
    def gaps(self) -> np.ndarray:
        """float64 [N, C], of the training set: `models.losses.gaps`."""
        from models import losses  # has TensorFlow

        return losses.gaps(self.logits, self.labels)

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
        """Of the mean training loss in the frame, float64, for each of the model's `weights`."""
        found: list[np.ndarray] = self.model.gradient(*self._context.train_set, self.log_frame, tick=self._tick)
        return found


# The functions


def _losses(epoch: Epoch) -> dict[str, Any]:
    from models import losses  # has TensorFlow

    def log_losses(gaps: np.ndarray) -> np.ndarray:
        return losses.log_losses(losses.log_odds_of_gaps(gaps))

    test_gaps = losses.gaps(epoch.test_logits, epoch.test_labels)
    return {
        "loss": epoch.loss,
        "log_loss": losses.log_mean_exp(log_losses(epoch.gaps)),
        "log_frame": epoch.log_frame,
        "acc": margins.accuracy(epoch.logits, epoch.labels),
        "test_loss": float(np.exp(log_losses(test_gaps)).mean()),
        "test_acc": margins.accuracy(epoch.test_logits, epoch.test_labels),
    }


def _margins(epoch: Epoch) -> dict[str, Any]:
    return margins.margin_stats(epoch.q, epoch.norms["rhoL"], epoch.norms["norm_prod"])


def _margin_quantiles(epoch: Epoch) -> dict[str, Any]:
    return {f"q_{k}pct": float(np.quantile(epoch.q, k / 100)) for k in (1, 10, 50)}


def _gradient_norm(epoch: Epoch) -> dict[str, Any]:
    return {"gradient_norm": math.sqrt(sum(float(np.square(g).sum()) for g in epoch.gradient))}


# The registry

MEASURES = {
    "losses": Measure(
        {
            "loss": ("mean training loss, in the frame: the true loss times exp(-log_frame)", "frame"),
            "log_loss": ("natural log of the true training loss; finite at a loss of 1e-3000", "log"),
            "log_frame": ("natural log of the frame", "log"),
            "acc": ("training accuracy", "fraction"),
            "test_loss": ("mean test loss, true", "nat"),
            "test_acc": ("test accuracy", "fraction"),
        },
        _losses,
        ("logits",),
    ),
    "norms": Measure(
        {
            "rho": ("L2 norm of all weights", "norm"),
            "rho_{k}": ("L2 norm of layer {k}, the first layer being 0 (its bias included)", "norm"),
            "norm_prod": ("product of the layers' norms (relu2: p <- p^2 rho_k along the layers)", "norm"),
            "rhoL": ("rho to the power of the number of layers L (relu2: 2^(L-1) + 1)", "norm"),
        },
        lambda epoch: epoch.norms,
        ("weights",),
    ),
    "margins": Measure(
        {
            "q_min": ("smallest margin q_i = z_y - max of the other logits, of the training set", "logit"),
            "q_max": ("largest margin q_i", "logit"),
            "q_bar_min": ("normalized margin q_min / rhoL", "logit/norm"),
            "q_bar2_min": ("normalized margin q_min / norm_prod", "logit/norm"),
            "n_supp_{k}": ("how many margins q_i lie below q_min + log(10^{k}), k = 1 to 7", "count"),
        },
        _margins,
        ("logits", "weights"),
    ),
    "effort": Measure(
        {
            "train_time": ("time in gradient steps, rejected attempts included", "s"),
            "eval_time": ("time in evaluations, rejected attempts included", "s"),
            "attempts": ("attempts that this epoch took", "count"),
        },
        None,
    ),
    "margin_quantiles": Measure(
        {"q_{k}pct": ("quantile of the margins q_i: {k} % of them lie below, k = 1, 10, 50", "logit")},
        _margin_quantiles,
        ("logits",),
        ASKED_FOR,
    ),
    "gradient_norm": Measure(
        {"gradient_norm": ("L2 norm of the gradient of the training loss, in the frame", "frame/norm")},
        _gradient_norm,
        ("gradient",),
        ASKED_FOR,
    ),
}
ALWAYS = tuple(name for name, measure in MEASURES.items() if measure.cadence == EVERY_EPOCH)
ON_REQUEST = tuple(name for name, measure in MEASURES.items() if measure.cadence == ASKED_FOR)

# What `info` holds beside `stats`.
INFO = {
    "eid": ("the epoch, from 1 on", ""),
    "lr": ("learning rate in the frame: the true one times exp(log_frame)", "frame"),
    "log_frame": ("natural log of the frame during this attempt", "log"),
    "rt_loss": ("mean of the batch losses, in the frame", "frame"),
    "time": ("time of the epoch, rejected attempts included", "s"),
}


def record(epoch: Epoch, names: Iterable[str]) -> dict[str, Any]:
    """The numbers of these measures, by key, plain Python numbers."""
    stats: dict[str, Any] = {}
    for name in names:
        if (function := MEASURES[name].function) is not None:
            stats |= function(epoch)
    return stats


def _of_key(key: str) -> tuple[str, str, str]:
    """(meaning, unit, cadence) of a key of `stats`; empty texts for a key that no measure has."""
    for measure in MEASURES.values():
        for pattern, (meaning, unit) in measure.keys.items():
            match = re.fullmatch(re.escape(pattern).replace(re.escape("{k}"), r"(\d+)"), key)
            if match:
                return meaning.replace("{k}", match[1] if match.groups() else ""), unit, measure.cadence
    return "", "", ""


def describe(key: str) -> tuple[str, str]:
    """(meaning, unit) of a key of `stats`; two empty texts for a key that no measure has."""
    return _of_key(key)[:2]


def cadence(key: str) -> str:
    """When a key of `stats` is recorded: EVERY_EPOCH or ASKED_FOR; '' for a key that no measure has."""
    return _of_key(key)[2]


def key_table() -> list[tuple[str, str, str, str]]:
    """(key, meaning, unit, when it is recorded) of all keys, for tables."""
    rows = []
    for name, measure in MEASURES.items():
        when = measure.cadence if measure.cadence == EVERY_EPOCH else f"--measure {name}"
        for pattern, (meaning, unit) in measure.keys.items():
            rows.append((pattern.replace("{k}", "k"), meaning.replace("{k}", "k"), unit, when))
    return rows
