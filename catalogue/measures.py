"""What is recorded of an epoch: every key, its meaning, its unit, when it is recorded, and how it is drawn.

Plain data. Tables in docs and reports, figures and TensorBoard's descriptions follow from it. A new measure is one
entry of MEASURES here, and one function in `training.measures`.
"""

import re
from dataclasses import dataclass

EVERY_EPOCH, ASKED_FOR = "every accepted epoch", "--measure"


@dataclass(frozen=True)
class Measure:
    """A group of numbers that one function computes.

    Attributes:
      keys: {key in `stats`: (one-line meaning, unit)}. A key may contain '{k}', which stands for a number.
      cadence: EVERY_EPOCH, or ASKED_FOR: at the epochs that --measure_every selects.
    """

    keys: dict[str, tuple[str, str]]
    cadence: str = EVERY_EPOCH


MEASURES = {
    "losses": Measure(
        {
            "loss": ("mean training loss, in the frame: the true loss times exp(-log_frame)", "frame"),
            "log_loss": ("natural log of the true training loss; finite at a loss of 1e-3000", "log"),
            "log_frame": ("natural log of the frame", "log"),
            "acc": ("training accuracy", "fraction"),
            "test_loss": ("mean test loss, true", "nat"),
            "test_acc": ("test accuracy", "fraction"),
        }
    ),
    "norms": Measure(
        {
            "rho": ("L2 norm of all weights", "norm"),
            "rho_{k}": ("L2 norm of layer {k}, the first layer being 0 (its bias included)", "norm"),
            "norm_prod": ("product of the layers' norms (relu2: p <- p^2 rho_k along the layers)", "norm"),
            "rhoL": ("rho to the power of the number of layers L (relu2: 2^(L-1) + 1)", "norm"),
        }
    ),
    "margins": Measure(
        {
            "q_min": ("smallest margin q_i = z_y - max of the other logits, of the training set", "logit"),
            "q_max": ("largest margin q_i", "logit"),
            "q_bar_min": ("normalized margin q_min / rhoL", "logit/norm"),
            "q_bar2_min": ("normalized margin q_min / norm_prod", "logit/norm"),
            "n_supp_{k}": ("how many margins q_i lie below q_min + log(10^{k}), k = 1 to 7", "count"),
        }
    ),
    "smoothed": Measure(
        {
            "smoothed_q_bar": (
                "smoothed margin G / rhoL, G = -log(e^S - 1), S the summed loss; NaN until S < log 2",
                "logit/norm",
            ),
            "smoothed_q_bar2": ("smoothed margin G / norm_prod; NaN until S < log 2", "logit/norm"),
            "balance": ("how equal the layers' norms are, 0 to 1: L^(L/2) q_bar_min / q_bar2_min", "ratio"),
        }
    ),
    "direction": Measure(
        {"angle_to_last_epoch": ("angle between all weights and those of the epoch before", "radian")}
    ),
    "effort": Measure(
        {
            "train_time": ("time in gradient steps, rejected attempts included", "s"),
            "eval_time": ("time in evaluations, rejected attempts included", "s"),
            "attempts": ("attempts that this epoch took", "count"),
        }
    ),
    "margin_quantiles": Measure(
        {"q_{k}pct": ("quantile of the margins q_i: {k} % of them lie below, k = 1, 10, 50", "logit")}, ASKED_FOR
    ),
    "gradient_norm": Measure(
        {"gradient_norm": ("L2 norm of the gradient of the training loss, in the frame", "frame/norm")}, ASKED_FOR
    ),
    "theory": Measure(
        {
            "beta": ("cosine between all weights and minus the gradient; 1 in the limit of the flow", "cosine"),
            "beta_{k}": ("the same of layer {k}", "cosine"),
            "nu": ("mean over examples of sum_j p_nj s_nj, over the loss (docs/theory.md)", "logit"),
            "euler_residual": (
                "relative error of -<w_k, g_k> = e_k nu in the worst layer; 0 if homogeneous",
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
            "since_eid": ("the stored epoch from which the next four are measured", "epoch"),
            "beta_delta": ("cosine between the weights then and their change since", "cosine"),
            "direction_moved": ("length of the change of weights / rho since", "ratio"),
            "flow_bound": ("the most that the flow could move it; NaN where the smoothed margin fell", "ratio"),
            "flow_ratio": ("direction_moved / flow_bound; at most 1 under the flow", "ratio"),
            "log_time": (
                "natural log of T, the flow's time on the summed loss: the sum of the accepted rates",
                "log",
            ),
            "loss_rate": ("log S + log T + (2 - 2/L) log log T; bounded under the flow", "log"),
            "norm_rate": ("rho smoothed_q_bar^(1/L) / (log T)^(1/L); tends to 1 under the flow", "ratio"),
        },
        ASKED_FOR,
    ),
    "sharpness": Measure(
        {
            "sharpness": ("largest eigenvalue of the training loss's Hessian, over the loss", "1/norm²"),
            "lr_sharpness": ("that eigenvalue times the epoch's learning rate; above 2 a step overshoots", "ratio"),
            "sharpness_products": ("Hessian-vector products that this took", "count"),
        },
        ASKED_FOR,
    ),
    "norm_margins": Measure(
        {
            "norm_linf": ("largest magnitude of a weight", "norm"),
            "norm_spectral": ("largest spectral norm of a weight as a matrix [inputs, outputs]", "norm"),
            "q_bar_linf": ("q_min / norm_linf^L, L the order of homogeneity (docs/optimizers.md)", "logit/norm"),
            "q_bar_spectral": ("q_min / norm_spectral^L", "logit/norm"),
            "smoothed_q_bar_linf": ("smoothed margin G / norm_linf^L; NaN until S < log 2", "logit/norm"),
            "smoothed_q_bar_spectral": ("smoothed margin G / norm_spectral^L; NaN until S < log 2", "logit/norm"),
        },
        ASKED_FOR,
    ),
    "max_margin": Measure(
        {
            "q_bar_svm": (
                "the largest q_bar_min of any weights: the hard-margin SVM's (linear networks)",
                "logit/norm",
            ),
            "q_bar_linf_max": ("the largest q_bar_linf of any weights, by a linear program", "logit/norm"),
        },
        ASKED_FOR,
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


@dataclass(frozen=True)
class Chart:
    """A figure that shows recorded numbers against the epoch: its caption and its panels."""

    caption: str
    panels: tuple[Panel, ...]


FIGURES = {  # the other numbers that --measure asks for have a panel each in the figure `measures`
    "direction": Chart(
        "Balance of the layers' norms, and the angle by which all weights turn in an epoch.",
        (
            Panel("balance of the layers' norms", ("balance",), level=1),
            Panel("angle to the weights of the epoch before, rad", ("angle_to_last_epoch",), log=True),
        ),
    ),
    "theory": Chart(
        "Quantities that arXiv 1906.05890 bounds for gradient flow, as measured (docs/theory.md).",
        (
            Panel("cosine of w and -g; of w and its change", ("beta", "beta_delta"), level=1),
            Panel("flow: d log(smoothed margin) / d log(rho)", ("growth_rate",), log=True),
            Panel("movement of w / rho between stored epochs", ("direction_moved", "flow_bound"), log=True),
            Panel("movement / the flow's bound", ("flow_ratio",), log=True, level=1),
            Panel("theorem 4.3: loss_rate, bounded", ("loss_rate",)),
            Panel("theorem 4.3: norm_rate, to 1", ("norm_rate",), level=1),
        ),
    ),
    "kkt": Chart(
        "Distance of the weights from a KKT point of the max-margin problem (docs/theory.md).",
        (
            Panel(
                "distance from stationarity, relative",
                ("kkt_stationarity", "kkt_stationarity_best", "kkt_certificate"),
                level=0,
            ),
            Panel("complementarity: 1 - q_min / mean gap", ("kkt_complementarity",), log=True),
            Panel("gaps that support the margin", ("n_eff",), log=True),
            Panel("residual of Euler's identity", ("euler_residual",), log=True),
        ),
    ),
    "stability": Chart(
        "The largest eigenvalue of the loss's Hessian: over the loss, and times the learning rate against 2.",
        (
            Panel("largest eigenvalue of the Hessian / loss", ("sharpness",), log=True),
            Panel("largest eigenvalue × learning rate", ("lr_sharpness",), log=True, level=2),
        ),
    ),
}
ALWAYS = tuple(name for name, measure in MEASURES.items() if measure.cadence == EVERY_EPOCH)
ON_REQUEST = tuple(name for name, measure in MEASURES.items() if measure.cadence == ASKED_FOR)
OF_STEPS = ("direction", "effort")  # what training itself did; the others are of a network
OF_A_NETWORK = tuple(name for name in MEASURES if name not in OF_STEPS)

# What `info` holds besides `stats`.
INFO = {
    "eid": ("the epoch, from 1 on", ""),
    "lr": ("learning rate in the frame: the true one times exp(log_frame)", "frame"),
    "log_frame": ("natural log of the frame during this attempt", "log"),
    "rt_loss": ("mean of the batch losses, in the frame", "frame"),
    "time": ("time of the epoch, rejected attempts included", "s"),
}


def describe(key: str) -> tuple[str, str, str]:
    """Return (meaning, unit, cadence) of a key of `stats`; empty texts for a key that no measure has."""
    for measure in MEASURES.values():
        for pattern, (meaning, unit) in measure.keys.items():
            match = re.fullmatch(re.escape(pattern).replace(re.escape("{k}"), r"(\d+)"), key)
            if match:
                return meaning.replace("{k}", match[1] if match.groups() else ""), unit, measure.cadence
    return "", "", ""


SHORT = {  # for legends, where several numbers share a panel
    "beta": "w and −g",
    "beta_delta": "w and its change",
    "direction_moved": "movement",
    "flow_bound": "the flow's bound",
    "kkt_stationarity": "multipliers of the loss",
    "kkt_stationarity_best": "best multiple of these",
    "kkt_certificate": "best multipliers ≥ 0",
}


def key_table() -> list[tuple[str, str, str, str]]:
    """Return (key, meaning, unit, when it is recorded) of all keys, for tables."""
    rows = []
    for name, measure in MEASURES.items():
        when = measure.cadence if measure.cadence == EVERY_EPOCH else f"--measure {name}"
        for pattern, (meaning, unit) in measure.keys.items():
            rows.append((pattern.replace("{k}", "k"), meaning.replace("{k}", "k"), unit, when))
    return rows
