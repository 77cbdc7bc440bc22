"""Losses, margins and norms of a whole dataset, in float64 NumPy (arXiv 1906.05890, section 2). No TensorFlow here.

Inputs are what the device computed: float32 logits and float32 weights. tests/margins_test.py has an independent
brute-force version of every formula.
"""

import math

import numpy as np

CHUNK = 2**15  # numbers: their float64 copies stay in the processor's cache
# Below exp(CUTOFF), softplus(s) and exp(s) are the same float64, and log(softplus(s)) is s.
CUTOFF = -37.0


# Losses


def gaps(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return d_ij = z_ij - z_{i,y_i}, float64 [N, C], and -inf at j = y_i.

    Args:
      logits: float32 [N, C]. labels: integers [N].
    """
    z = logits.astype(np.float64)
    rows = np.arange(len(z))
    d = z - z[rows, labels][:, None]
    d[rows, labels] = -np.inf
    return d


def log_odds_of_gaps(d: np.ndarray) -> np.ndarray:
    """Return s_i = logsumexp_j d_ij, float64 [N], from `gaps`, [N, C]."""
    top = d.max(axis=1)
    return top + np.log(np.exp(d - top[:, None]).sum(axis=1))


def log_losses(s: np.ndarray) -> np.ndarray:
    """Return the log of each example's true cross-entropy softplus(s), float64 [N]; finite for any finite s."""
    return np.where(s < CUTOFF, s, np.log(np.logaddexp(0, np.maximum(s, CUTOFF))))


def log_mean_exp(values: np.ndarray) -> float:
    """Return log(mean(exp(values))), computed inside float64's range."""
    top = values.max()
    return float(top + np.log(np.exp(values - top).mean()))


# Margins and norms


def margins(d: np.ndarray) -> np.ndarray:
    """Return q_i = z_{i,y_i} - max_{j != y_i} z_ij, float64 [N], from the gaps [N, C] (`gaps`)."""
    q: np.ndarray = -d.max(axis=1)
    return q


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Part of the examples whose first largest logit is the label's. logits: [N, C]; labels: [N]."""
    return float((logits.argmax(axis=1) == labels).mean())


def published_order(n_layers: int, act_type: str) -> int:
    """Return the power of rho that the published code divides by: that of `rhoL`."""
    return 2 ** (n_layers - 1) + 1 if act_type == "relu2" else n_layers


def norms(layers: list[list[np.ndarray]], act_type: str) -> dict[str, float]:
    """Return rho, rho_k, norm_prod and rhoL (arXiv 1906.05890).

    Args:
      layers: for each layer its tensors that count: the weight, and for the first layer its bias. (In
        a homogeneous network no other layer has a bias. Where others do, their biases do not count.)
      act_type: 'relu2' raises the degree of homogeneity with every layer; others are of degree 1.
    """
    # Not np.vdot: BLAS threads that keep spinning would slow down the following training step by half.
    rho_k = [math.sqrt(sum(np.square(tensor, dtype=np.float64).sum() for tensor in tensors)) for tensors in layers]
    rho = math.sqrt(sum(r * r for r in rho_k))
    norm_prod = 1.0
    for r in rho_k:
        norm_prod = (norm_prod * norm_prod if act_type == "relu2" else norm_prod) * r
    rhoL = power(rho, published_order(len(rho_k), act_type))
    return {"rho": rho, **{f"rho_{k}": r for k, r in enumerate(rho_k)}, "norm_prod": norm_prod, "rhoL": rhoL}


def power(norm: float, order: int) -> float:
    """Return norm^order; infinite or 0 where that leaves float64's range, as for many layers of relu2."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float64(norm) ** order)


def smoothed_margin(log_loss: float, n: int) -> float:
    """Return G = -log(e^S - 1), S = the sum of the losses: the smoothed margin before it is normalized.

    It lies between q_min - log(n (C - 1)) - S and q_min (arXiv 1906.05890, section 4.4, appendix F).

    Args:
      log_loss: natural log of the mean training loss. n: how many training examples.

    Returns: finite at any log_loss below log(log(2) / n), where G is positive; NaN elsewhere.
    """
    log_sum = log_loss + math.log(n)
    if not log_sum < math.log(math.log(2)):
        return math.nan
    s = math.exp(log_sum)
    if s < 1e-4:
        return -(log_sum + s / 2 + s * s / 24)  # expm1's series: s itself may be 0 in float64
    return -math.log(math.expm1(s))


def smoothed_stats(log_loss: float, n: int, norms: dict[str, float], degrees: list[int]) -> dict[str, float]:
    """Return the smoothed margin over both norms of `q_bar_min` and `q_bar2_min`, and `balance`.

    NaN over a norm that is not the network's own: rhoL has to be rho to the order of homogeneity, norm_prod the
    product of rho_k^e_k. (The published rhoL of relu2 is not, for three layers and more.)

    Args:
      norms: of `norms`. degrees: e_k, as of `balance`. log_loss, n: of `smoothed_margin`.
    """
    g = smoothed_margin(log_loss, n)
    rho_k = [norms[f"rho_{k}"] for k in range(len(degrees))]
    found = {"smoothed_q_bar": math.nan, "smoothed_q_bar2": math.nan, "balance": balance(rho_k, degrees)}
    if math.isnan(g) or math.isnan(found["balance"]):  # no smoothed margin yet, or a layer of zeros
        return found
    # By logs: the network's own powers can leave float64's range where the published rhoL does not.
    logs = {
        "rhoL": sum(degrees) * math.log(norms["rho"]),
        "norm_prod": sum(e * math.log(r) for r, e in zip(rho_k, degrees, strict=True)),
    }
    for name, norm in (("smoothed_q_bar", "rhoL"), ("smoothed_q_bar2", "norm_prod")):
        recorded = norms[norm]
        if 0 < recorded < math.inf and math.isclose(math.log(recorded), logs[norm], rel_tol=1e-9, abs_tol=1e-9):
            found[name] = g / recorded
    return found


def norm_margins(tensors: list[np.ndarray], q_min: float, log_loss: float, n: int, order: int) -> dict[str, float]:
    """Return the margin, and the smoothed margin, over L-infinity and spectral norms to the power of the order.

    These are the margins that steepest descent in the norm maximizes in homogeneous networks (arXiv 2410.22069).

    Args:
      tensors: of each layer the weight, and the first layer's bias: matrices [inputs, outputs], a bias one row.
      q_min: smallest margin. log_loss, n: of `smoothed_margin`. order: L, the order of homogeneity.
    """
    matrices = [np.reshape(w, (-1, w.shape[-1])).astype(np.float64) for w in tensors]
    found = {
        "norm_linf": float(max(np.abs(m).max() for m in matrices)),
        "norm_spectral": float(max(np.linalg.norm(m, 2) for m in matrices)),
    }
    g = smoothed_margin(log_loss, n)
    for name in ("linf", "spectral"):
        norm = power(found[f"norm_{name}"], order)
        found[f"q_bar_{name}"] = q_min / norm if norm else math.nan
        found[f"smoothed_q_bar_{name}"] = g / norm if norm else math.nan
    return found


def balance(rho_k: list[float], degrees: list[int]) -> float:
    """Return how equal the layers' norms are: in (0, 1], and 1 where the normalized margins' ratio is at its best.

    prod_k (rho_k^2 L / (rho^2 e_k))^(e_k / 2): the product of norms over its maximum at the same rho. Where all
    degrees are 1 that is L^(L/2) q_bar_min / q_bar2_min, and 1 means layers of one norm.

    Args:
      rho_k: the layers' norms. degrees: e_k, the network's degree of homogeneity in layer k; L is their sum.
    """
    squares, order = sum(r * r for r in rho_k), sum(degrees)
    if not squares or not all(rho_k):
        return math.nan
    logs = (e / 2 * math.log(r * r * order / (squares * e)) for r, e in zip(rho_k, degrees, strict=True))
    return math.exp(sum(logs))


def angle(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """Return the angle between two networks' weights, each taken as one vector, in radians; float64.

    From the chord c between the unit vectors, c^2 |a| |b| = |b - a|^2 - (|b| - |a|)^2: where the lengths are near
    each other, as those of two epochs, it keeps its digits however small the angle is.
    """
    aa, bb, dd = 0.0, 0.0, 0.0
    for a, b in zip(before, after, strict=True):
        flat_a, flat_b = a.ravel(), b.ravel()
        for k in range(0, a.size, CHUNK):
            x, y = flat_a[k : k + CHUNK].astype(np.float64), flat_b[k : k + CHUNK].astype(np.float64)
            aa, bb = aa + np.einsum("i,i->", x, x), bb + np.einsum("i,i->", y, y)  # not np.vdot: see `norms`
            y -= x
            dd += np.einsum("i,i->", y, y)
    if not aa * bb:
        return math.nan
    longer = (bb - aa) / (math.sqrt(aa) + math.sqrt(bb))  # |b| - |a|
    chord = math.sqrt(max(dd - longer**2, 0.0) / math.sqrt(aa * bb))
    return 2 * math.asin(min(chord / 2, 1.0))


def margin_stats(q: np.ndarray, rhoL: float, norm_prod: float) -> dict[str, float]:
    """Return q_min, q_max, the normalized margins, and n_supp_k: how many q_i < q_min + log(10**k).

    Args:
      q: margins [N]. rhoL, norm_prod: of `norms`.
    """
    q_min = float(q.min())
    return {
        "q_min": q_min,
        "q_max": float(q.max()),
        "q_bar_min": q_min / rhoL if rhoL else math.nan,
        "q_bar2_min": q_min / norm_prod if norm_prod else math.nan,
        **{f"n_supp_{k}": int((q < q_min + math.log(10**k)).sum()) for k in range(1, 8)},
    }
