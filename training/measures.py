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
from training import theory

EVERY_EPOCH, ASKED_FOR = "every accepted epoch", "--measure"


@dataclass(frozen=True)
class Measure:
    """A group of numbers that one function computes.

    Attributes:
      keys: {key in `stats`: (meaning in one line, unit)}. A key may hold '{k}', which stands for a number.
      function: an `Epoch` -> {key: number}; None for numbers that the training loop itself knows.
      needs: what of the network it looks at: 'logits', 'weights', 'gradient', 'hessian', 'run'.
      cadence: EVERY_EPOCH, or ASKED_FOR: at the epochs that --measure_every says.
      lacks: a network -> in one line which keys it has not, and why; None where it has all.
    """

    keys: dict[str, tuple[str, str]]
    function: Callable[["Epoch"], dict[str, Any]] | None
    needs: tuple[str, ...] = ()
    cadence: str = EVERY_EPOCH
    lacks: Callable[[Any], str | None] = lambda model: None


class Epoch:
    """A network after an epoch, as measures see it. What several measures need is computed once.

    Args:
      context: its model holds the weights.
      log_frame: natural log of the frame.
      evaluated: (mean loss in the frame, logits [N, C]) of the training set, where they are known.
      tick: as in `models.network`.
      info: of this epoch, where it is known. infos: of all epochs of the run up to this one, likewise.
      stored: -> (epoch, weights) of the last one before it that is stored; None where there is none.
      kept: what a measure leaves for itself at the next epoch, {name: array}; checkpoints hold it.
    """

    def __init__(
        self,
        context: Any,
        log_frame: float,
        evaluated: tuple[float, np.ndarray] | None = None,
        tick: Callable[[int], None] = lambda done: None,
        info: dict[str, Any] | None = None,
        infos: list[dict[str, Any]] | None = None,
        stored: Callable[[], tuple[int, list[np.ndarray]] | None] = lambda: None,
        kept: dict[str, np.ndarray] | None = None,
    ):
        self.model, self.log_frame, self._evaluated, self._tick = context.model, log_frame, evaluated, tick
        self.context, self.info, self.infos, self.stored = context, info, infos or [], stored
        self.kept = {} if kept is None else kept
        (_, self.labels), (_, self.test_labels) = context.dataset

    @cached_property
    def _train(self) -> tuple[float, np.ndarray]:
        if self._evaluated is not None:
            return self._evaluated
        _, loss, logits = self.model.evaluate(*self.context.train_set, self.log_frame, tick=self._tick)
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
        logits: np.ndarray = self.model.evaluate(*self.context.test_set, tick=self._tick)[2]
        return logits

    @cached_property
    def gaps(self) -> np.ndarray:
        """float64 [N, C], of the training set: `models.losses.gaps`."""
        from models import losses  # has TensorFlow

        return losses.gaps(self.logits, self.labels)

    @cached_property
    def log_losses(self) -> np.ndarray:
        """Natural log of each training example's true loss, float64 [N]."""
        from models import losses  # has TensorFlow

        return losses.log_losses(losses.log_odds_of_gaps(self.gaps))

    @cached_property
    def log_loss(self) -> float:
        """Natural log of the true mean training loss."""
        from models import losses  # has TensorFlow

        return losses.log_mean_exp(self.log_losses)

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
        found: list[np.ndarray] = self.model.gradient(*self.context.train_set, self.log_loss, tick=self._tick)
        return found


# The functions


def _losses(epoch: Epoch) -> dict[str, Any]:
    from models import losses  # has TensorFlow

    test_gaps = losses.gaps(epoch.test_logits, epoch.test_labels)
    test_losses = np.exp(losses.log_losses(losses.log_odds_of_gaps(test_gaps)))
    return {
        "loss": epoch.loss,
        "log_loss": epoch.log_loss,
        "log_frame": epoch.log_frame,
        "acc": margins.accuracy(epoch.logits, epoch.labels),
        "test_loss": float(test_losses.mean()),
        "test_acc": margins.accuracy(epoch.test_logits, epoch.test_labels),
    }


def _margins(epoch: Epoch) -> dict[str, Any]:
    return margins.margin_stats(epoch.q, epoch.norms["rhoL"], epoch.norms["norm_prod"])


def _smoothed(epoch: Epoch) -> dict[str, Any]:
    return margins.smoothed_stats(epoch.log_loss, len(epoch.labels), epoch.norms, epoch.model.degrees)


def _why_not_smoothed(model: Any) -> str | None:
    order = sum(model.degrees)
    if order != margins.published_order(len(model.layers), model.act_type):
        return f"smoothed_q_bar is NaN: the network is homogeneous of order {order}, and rhoL is another power of rho"
    return None


def _margin_quantiles(epoch: Epoch) -> dict[str, Any]:
    return {f"q_{k}pct": float(np.quantile(epoch.q, k / 100)) for k in (1, 10, 50)}


def _gradient_norm(epoch: Epoch) -> dict[str, Any]:
    in_the_frame = math.exp(epoch.log_loss - epoch.log_frame)
    return {"gradient_norm": theory.norm(epoch.gradient) * in_the_frame}


def _sharpness(epoch: Epoch) -> dict[str, Any]:
    from flatness import curvature  # has TensorFlow

    context, info = epoch.context, epoch.info
    hessian = curvature.Hessian(curvature.examples_of(context))
    noise = np.random.default_rng([context.f.seed, info["eid"] if info else 0]).standard_normal(hessian.shape[0])
    value, vector = curvature.largest_eigenvalue(hessian, epoch.kept.get("eigenvector"), noise)
    epoch.kept["eigenvector"] = vector.astype(np.float32)
    found = {"sharpness": hessian.over_the_loss(value), "sharpness_products": hessian.products}
    if info:
        found["lr_sharpness"] = hessian.times_lr(value, info)
    return found


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
    "smoothed": Measure(
        {
            "smoothed_q_bar": (
                "smoothed margin G / rhoL, G = -log(e^S - 1), S the summed loss; NaN until S < log 2",
                "logit/norm",
            ),
            "smoothed_q_bar2": ("smoothed margin G / norm_prod; NaN until S < log 2", "logit/norm"),
            "balance": ("how equal the layers' norms are, 0 to 1: L^(L/2) q_bar_min / q_bar2_min", "ratio"),
        },
        _smoothed,
        ("logits", "weights"),
        lacks=_why_not_smoothed,
    ),
    "direction": Measure(
        {"angle_to_last_epoch": ("angle between all weights and those of the epoch before", "radian")}, None
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
    "theory": Measure(
        {
            "beta": ("cosine between all weights and minus the gradient; 1 in the limit of the flow", "cosine"),
            "beta_{k}": ("the same of layer {k}", "cosine"),
            "nu": ("mean over examples of sum_j p_nj s_nj, over the loss (docs/theory.md)", "logit"),
            "euler_residual": (
                "how far -<w_k, g_k> = e_k nu is from true, the worst layer; 0 if homogeneous",
                "ratio",
            ),
            "n_eff": ("how many gaps s_nj support the margin: e to the entropy of their weights", "count"),
            "kkt_stationarity": ("distance from stationarity, multipliers as the loss gives them", "ratio"),
            "kkt_stationarity_best": ("the same with the best multiple of these", "ratio"),
            "kkt_complementarity": ("1 - q_min / mean gap, weighted: 0 if only smallest gaps matter", "ratio"),
            "kkt_certificate": (
                "distance from stationarity, best multipliers >= 0 of the kkt_constraints smallest gaps",
                "ratio",
            ),
            "growth_rate": ("d log smoothed_q_bar / d log rho under the flow here; never negative", "ratio"),
            "since_eid": ("the stored epoch that the next four are counted from", "epoch"),
            "beta_delta": ("cosine between the weights then and their change since", "cosine"),
            "direction_moved": ("length of the change of weights / rho since", "ratio"),
            "flow_bound": ("the most that the flow could move it; NaN where the smoothed margin fell", "ratio"),
            "flow_ratio": ("direction_moved / flow_bound; at most 1 under the flow", "ratio"),
            "log_time": (
                "natural log of T, the flow's time: the accepted learning rates, summed, of the summed loss",
                "log",
            ),
            "loss_rate": ("log S + log T + (2 - 2/L) log log T; bounded under the flow", "log"),
            "norm_rate": ("rho smoothed_q_bar^(1/L) / (log T)^(1/L); tends to 1 under the flow", "ratio"),
        },
        theory.of_epoch,
        ("logits", "weights", "gradient", "run"),
        ASKED_FOR,
        theory.why_not,
    ),
    "sharpness": Measure(
        {
            "sharpness": ("largest eigenvalue of the training loss's Hessian, over the loss", "1/norm²"),
            "lr_sharpness": ("that eigenvalue times the epoch's learning rate; above 2 a step overshoots", "ratio"),
            "sharpness_products": ("Hessian-vector products that this took", "count"),
        },
        _sharpness,
        ("hessian", "run"),
        ASKED_FOR,
    ),
    "max_margin": Measure(
        {
            "q_bar_svm": (
                "the largest q_bar_min of any weights: the hard-margin SVM's (linear networks)",
                "logit/norm",
            )
        },
        theory.max_margin,
        (),
        ASKED_FOR,
        theory.why_no_max_margin,
    ),
}


@dataclass(frozen=True)
class Panel:
    """A panel of a figure: numbers against the epoch.

    Attributes:
      title, keys: what it shows. log: whether its axis is logarithmic. level: a value that is marked.
    """

    title: str
    keys: tuple[str, ...]
    log: bool = False
    level: float | None = None


PANELS = {  # {figure: its panels}; what else --measure asks for has a panel in the figure `measures`
    "direction": (
        Panel("balance of the layers' norms", ("balance",), level=1),
        Panel("angle to the weights of the epoch before, rad", ("angle_to_last_epoch",), log=True),
    ),
    "theory": (
        Panel("cosine of w and -g; of w and its change", ("beta", "beta_delta"), level=1),
        Panel("flow: d log(smoothed margin) / d log(rho)", ("growth_rate",), log=True),
        Panel("movement of w / rho between stored epochs", ("direction_moved", "flow_bound"), log=True),
        Panel("movement / the flow's bound", ("flow_ratio",), log=True, level=1),
        Panel("theorem 4.3: loss_rate, bounded", ("loss_rate",)),
        Panel("theorem 4.3: norm_rate, to 1", ("norm_rate",), level=1),
    ),
    "kkt": (
        Panel(
            "distance from stationarity, relative",
            ("kkt_stationarity", "kkt_stationarity_best", "kkt_certificate"),
            level=0,
        ),
        Panel("complementarity: 1 - q_min / mean gap", ("kkt_complementarity",), log=True),
        Panel("gaps that support the margin", ("n_eff",), log=True),
        Panel("residual of Euler's identity", ("euler_residual",), log=True),
    ),
    "stability": (
        Panel("largest eigenvalue of the Hessian / loss", ("sharpness",), log=True),
        Panel("largest eigenvalue × learning rate", ("lr_sharpness",), log=True, level=2),
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
