"""What arXiv 1906.05890 proves of gradient flow, as numbers of a network at one epoch (docs/theory.md).

With s_nj = z_{n,y} - z_{n,j} the gaps of example n, q_min the smallest, l_n its loss and S the sum of all losses,
everything follows from one gradient g of the mean loss over the whole training set and from the gaps. Losses and
gradients are in a frame (`models.losses`), here exp(log_loss), so that nothing leaves float64's range.

Functions of arrays are float64 NumPy.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.optimize import linprog, nnls

from models.lr_scheduler import steps_of
from models.margins import angle, smoothed_margin
from support.device import compiled

LEAST_EIGENVALUE = 1e-12  # of the Gram matrix, relative: what is below is rounding

Layers = list[list[np.ndarray]]  # for each layer its weight, its bias, ... or their gradients


def dot(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Return <a, b> of lists of arrays, summed in float64."""
    return math.fsum(float(np.multiply(x, y, dtype=np.float64).sum()) for x, y in zip(a, b, strict=True))


def norm(a: list[np.ndarray]) -> float:
    """Return the L2 norm of a list of arrays, taken as one vector."""
    return math.sqrt(dot(a, a))


def constraint_weights(d: np.ndarray, log_losses: np.ndarray, log_frame: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the gaps s_nj and p_nj = -dl_n/ds_nj = exp(-s_nj - l_n), in the frame: both float64 [N (C-1)].

    Args:
      d: -s_nj, and -inf at the label: [N, C] (`models.margins.gaps`).
      log_losses: natural log of l_n, [N]. log_frame: natural log of the frame.
    """
    others = np.isfinite(d)
    p = np.exp(d - np.exp(log_losses)[:, None] - log_frame)
    return -d[others], p[others]


def at_a_point(
    weights: Layers, gradients: Layers, degrees: list[int], s: np.ndarray, p: np.ndarray, n: int
) -> dict[str, float]:
    """Return beta and each layer's, nu, Euler's identity as a residual, and how many constraints matter.

    beta = -<w, g> / (|w| |g|); on the flow it tends to 1 (appendix C). nu = (1/N) sum p s. Euler's identity for a
    network that is homogeneous of degree e_k in layer k: -<w_k, g_k> = e_k nu for every k, and -<w, g> = L nu.

    Args:
      weights, gradients: of the mean loss in the frame. degrees: e_k. s, p: of `constraint_weights`.
      n: how many examples.

    Returns: beta, beta_{k}, nu; euler_residual, the largest |-<w_k, g_k> / e_k - nu| of the layers and the whole,
      relative to (1/N) sum p |s|; n_eff, e to the entropy of p / sum p.
    """
    inner = [-dot(w, g) for w, g in zip(weights, gradients, strict=True)]
    lengths = [(norm(w), norm(g)) for w, g in zip(weights, gradients, strict=True)]
    whole = math.hypot(*(w for w, _ in lengths)) * math.hypot(*(g for _, g in lengths))
    nu, scale = float(p @ s) / n, float(p @ np.abs(s)) / n
    residuals = [abs(i / e - nu) for i, e in zip(inner, degrees, strict=True)]
    residuals.append(abs(math.fsum(inner) / sum(degrees) - nu))
    share = p / p.sum()
    share = share[share > 0]
    return {
        "beta": _ratio(math.fsum(inner), whole),
        **{f"beta_{k}": _ratio(i, w * g) for k, (i, (w, g)) in enumerate(zip(inner, lengths, strict=True))},
        "nu": nu,
        "euler_residual": _ratio(max(residuals), scale),
        "n_eff": math.exp(-float(share @ np.log(share))),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def kkt(beta: float, s: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Return how far w is from a KKT point of min |w|^2 / 2 s.t. all gaps >= 1, with multipliers in proportion to p.

    Section 4.2 and appendix C, relative to |w|: stationarity |w/|w| + g/|g|| = sqrt(2 (1 - beta)); with the best
    multiple of g instead, sqrt(1 - beta^2); complementarity 1 - q_min / (sum p s / sum p). NaN unless q_min > 0.
    """
    q_min = float(s.min())
    if not q_min > 0:
        return dict.fromkeys(("kkt_stationarity", "kkt_stationarity_best", "kkt_complementarity"), math.nan)
    return {
        "kkt_stationarity": math.sqrt(max(2 * (1 - beta), 0)),
        "kkt_stationarity_best": math.sqrt(max(1 - beta * beta, 0)) if beta > 0 else 1.0,
        "kkt_complementarity": max(1 - q_min * float(p.sum()) / float(p @ s), 0.0),
    }


def certificate(gram: np.ndarray, b: np.ndarray) -> float:
    """Return min over multipliers >= 0 of |w/|w| - sum_i a_i h_i|, by non-negative least squares on the Gram matrix.

    Args:
      gram: <h_i, h_j>, h_i the gradient of gap i, [K, K]. b: <w/|w|, h_i>, [K].
    """
    length = np.sqrt(np.diag(gram))
    used = length > 0
    gram, b = gram[np.ix_(used, used)] / np.outer(length[used], length[used]), b[used] / length[used]
    if not len(b):
        return 1.0
    values, vectors = np.linalg.eigh(gram)
    kept = values > LEAST_EIGENVALUE * values[-1]
    root = np.sqrt(values[kept])
    target = vectors[:, kept].T @ b / root
    _, within = nnls(root[:, None] * vectors[:, kept].T, target)
    outside = max(1 - float(target @ target), 0.0)  # of w/|w|, what no multiple of the gradients reaches
    return math.sqrt(within * within + outside)


def constraint_gram(model: Any, pixels: Any, labels: Any, others: Any) -> Any:
    """Return <h_i, h_j> of the gradients h_i of the gaps z_label - z_other by all weights.

    TensorFlow's ops: tensors in, a float64 tensor [K, K] out.

    Args:
      pixels: integers [K, h, w, c]. labels, others: classes, int32 [K].
    """
    with tf.GradientTape() as tape:
        z, seen = model.walk(model.pixels(pixels))
        rows = tf.range(tf.size(labels))
        gap = tf.gather_nd(z, tf.stack([rows, labels], 1)) - tf.gather_nd(z, tf.stack([rows, others], 1))
    by_layer = tape.gradient(gap, [z for _, z in seen])  # example i's gap depends on example i only
    return tf.add_n([layer.gram(x, dz) for layer, (x, _), dz in zip(model.layers, seen, by_layer, strict=True)])


def growth_rate(beta: float, nu: float, order: int, log_loss: float, n: int) -> float:
    """Return d log(smoothed normalized margin) / d log rho under the flow (from theorem 4.1's proof): >= 0.

    L (B / beta^2 - 1), B = nu / (G (1 - e^-S)) with nu summed over the examples and out of the frame.

    Args:
      nu: mean, in the frame exp(log_loss).
    """
    g, total = smoothed_margin(log_loss, n), math.exp(min(log_loss + math.log(n), 0.0))
    if math.isnan(g) or not beta:
        return math.nan
    b = nu / g * (total / -math.expm1(-total) if total else 1.0)
    return order * (b / beta**2 - 1)


def movement(before: list[np.ndarray], after: list[np.ndarray]) -> dict[str, float]:
    """Return how the weights moved between two stored epochs, before to after.

    Returns: beta_delta, cos of the angle between w1 and w2 - w1; direction_moved, |w2/|w2| - w1/|w1||.
    """
    step = [np.subtract(b, a, dtype=np.float64) for a, b in zip(before, after, strict=True)]
    return {
        "beta_delta": _ratio(dot(before, step), norm(before) * norm(step)),
        "direction_moved": 2 * math.sin(angle(before, after) / 2),
    }


def flow_bound(before: dict[str, Any], after: dict[str, Any], order: int, n: int) -> float:
    """Return the most that the direction can move under the flow, |w2/|w2| - w1/|w1|| (derived; docs/theory.md).

    sqrt(log(m2 / m1) log(rho2 / rho1) / L), m the smoothed normalized margin. NaN where m or rho fell: there no
    flow leads from one to the other.

    Args:
      before, after: the epochs' stats (log_loss, rho).
    """
    if not (before["rho"] > 0 and after["rho"] > 0):
        return math.nan
    growth = math.log(after["rho"] / before["rho"])
    g = [smoothed_margin(stats["log_loss"], n) for stats in (before, after)]
    rise = math.log(g[1] / g[0]) - order * growth if not any(map(math.isnan, g)) else math.nan
    return math.sqrt(rise * growth / order) if rise >= 0 and growth >= 0 else math.nan


def log_flow_time(infos: list[dict[str, Any]], steps: int, n: int) -> float:
    """Return the log of T, the time of the flow on the summed loss that the accepted steps stand for.

    A step with the true learning rate r on the mean loss is one of r / N on the sum.

    Args:
      infos: of all epochs so far. steps: gradient steps an epoch. n: how many training examples.
    """
    logs = np.array([math.log(info["lr"]) - info["log_frame"] for info in infos])
    return float(np.logaddexp.reduce(logs)) + math.log(steps / n)


def rates(log_loss: float, log_time: float, order: int, n: int) -> dict[str, float]:
    """Return the two quantities of theorem 4.3 (S = Theta(1 / (T (log T)^(2-2/L))), rho = Theta((log T)^(1/L))).

    Returns: loss_rate, log S + log T + (2 - 2/L) log log T: stays bounded; norm_rate, (G / log T)^(1/L), which is
      rho times the L-th root of the smoothed normalized margin over (log T)^(1/L): tends to 1. NaN until log T > 0
      (the second, until S < log 2).
    """
    if not log_time > 0:
        return {"loss_rate": math.nan, "norm_rate": math.nan}
    g = smoothed_margin(log_loss, n)
    return {
        "loss_rate": log_loss + math.log(n) + log_time + (2 - 2 / order) * math.log(log_time),
        "norm_rate": (g / log_time) ** (1 / order),
    }


def largest_margins(x: np.ndarray, y: np.ndarray, bias: bool) -> tuple[float, float]:
    """Return the largest normalized margins of a linear network of two classes: max over w of min_n gap_n / |w|.

    In L2 that is sqrt(2) times the hard-margin SVM's (scikit-learn's SVC) through 0: the best weights of the two
    classes are v/2 and -v/2. The spectral norm of such weights is their L2 norm, and no weights of this difference
    have a smaller one, so the largest margin over it is the same. In L-infinity it is a linear program's (SciPy's
    HiGHS): v with |v_j| <= 2. With a bias in the network, every image has one more pixel, 1.

    Args:
      x: what the layer sees, float64 [N, d]. y: labels 0 and 1, [N].

    Returns: over L2, over L-infinity; NaN where no such network classifies all examples right.
    """
    from sklearn.svm import SVC  # every run would wait for it

    if bias:
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    signed = np.where(y == 0, 1.0, -1.0)[:, None] * x
    one_side = linprog(np.zeros(signed.shape[1]), -signed, -np.ones(len(signed)), bounds=(None, None))
    if one_side.status == 2:  # no plane has all on one side: the SVM would not end
        return math.nan, math.nan
    symmetric = np.concatenate([signed, -signed])  # so the best plane goes through 0
    svm = SVC(kernel="linear", C=1e9, tol=1e-9, cache_size=500).fit(symmetric, np.repeat([1, -1], len(x)))
    v = svm.coef_[0]
    margin = float((signed @ v).min() / np.linalg.norm(v))
    if not margin > 0:
        return math.nan, math.nan
    # Variables (v, t): maximize t where signed v >= t.
    rows, d = np.concatenate([-signed, np.ones((len(x), 1))], axis=1), signed.shape[1]
    goal = np.concatenate([np.zeros(d), [-1.0]])
    linear = linprog(goal, rows, np.zeros(len(x)), bounds=[(-2, 2)] * d + [(None, None)])
    return math.sqrt(2) * margin, -float(linear.fun)


# What `training.measures` records of an epoch


def of_epoch(now: Any, history: Any) -> dict[str, Any]:
    """Compute everything above, without what `why_not` excludes.

    Args: a `training.measures.Evaluation` and its `training.measures.History`.
    """
    model, n = now.model, len(now.labels)
    weights = [w.numpy() for w in model.weights]
    s, p = constraint_weights(now.gaps, now.log_losses, now.log_loss)
    layers, gradients = (_by_layer(model, arrays) for arrays in (weights, now.gradient))
    found: dict[str, Any] = at_a_point(layers, gradients, model.degrees, s, p, n)
    before = history.stored()
    if before is not None:
        trained = [tensor for tensor, v in zip(before[1], model.tensors, strict=True) if v.trainable]
        found |= {"since_eid": before[0]} | movement(trained, weights)
    if model.why_not_homogeneous:
        return found
    order = sum(model.degrees)
    found |= kkt(found["beta"], s, p)
    found["kkt_certificate"] = _certificate_of(now, norm(weights))
    found["growth_rate"] = growth_rate(found["beta"], found["nu"], order, now.log_loss, n)
    stats = {info["eid"]: info["stats"] for info in history.infos}
    if before is not None and "rho" in stats.get(before[0], {}):
        here = {"log_loss": now.log_loss, "rho": now.norms["rho"]}
        bound = found["flow_bound"] = flow_bound(stats[before[0]], here, order, n)
        found["flow_ratio"] = _ratio(found["direction_moved"], bound)
    infos = [info for info in history.infos if info["lr"]]  # an imported network has no learning rate
    if infos:
        f = now.context.f
        found["log_time"] = log_flow_time(infos, steps_of(n, f.B, f.drop_last), n)
        found |= rates(now.log_loss, found["log_time"], order, n)
    return found


def why_not(model: Any) -> str | None:
    """Return which of the theory's quantities a network lacks, and why."""
    if model.why_not_homogeneous is None:
        return None
    return (
        f"kkt_*, growth_rate, flow_* and the rates are left out: {model.why_not_homogeneous}, so it is not "
        "homogeneous; euler_residual says how far from it"
    )


def _by_layer(model: Any, arrays: list[np.ndarray]) -> Layers:
    """Group arrays in the order of the model's `weights` by layer."""
    layers: Layers = [[] for _ in model.layers]
    trained = [place for place in model.places() if place.variable.trainable]
    for place, array in zip(trained, arrays, strict=True):
        layers[place.layer].append(array)
    return layers


def _certificate_of(now: Any, rho: float) -> float:
    s = -now.gaps  # [N, C], inf at the label
    smallest = np.argsort(s, axis=None, kind="stable")[: min(now.context.f.kkt_constraints, s.size - len(s))]
    n, j = np.unravel_index(smallest, s.shape)
    if not s[n[0], j[0]] > 0:
        return math.nan
    (x, y), _ = now.context.dataset
    graph = partial(compiled, partial(constraint_gram, now.model), reduce_retracing=True)
    gram_of = now.context.kept("constraint_gram", None, graph)
    gram = gram_of(x[n], y[n], j.astype(np.int32)).numpy()
    return certificate(gram, sum(now.model.degrees) * s[n, j] / rho)  # <w, h> = L s: Euler's identity of a gap


def max_margin(now: Any, history: Any) -> dict[str, float]:
    """Return `largest_margins` of the training set; nothing for a network that `why_no_max_margin` refuses."""
    if why_no_max_margin(now.model):
        return {}

    def find() -> tuple[float, float]:
        (x, y), _ = now.context.dataset
        seen = np.asarray(now.model.before(0, now.model.pixels(x)), np.float64).reshape(len(x), -1)
        return largest_margins(seen, y, now.model.layers[0].bias is not None)

    l2, linf = now.context.kept("max_margin", None, find)
    return {"q_bar_svm": l2, "q_bar_linf_max": linf}


def why_no_max_margin(model: Any) -> str | None:
    """Return why a network's largest margin is not known; None for a linear network of two classes."""
    if len(model.specs) == 1 and model.n_classes == 2 and not model.specs[0].act and model.layers[0].bn is None:
        return None
    return "q_bar_svm is left out: it is known only for a linear network of two classes, [['F', 2, {'act': False}]]"
