"""Margins and norms of a whole data set, in float64 NumPy (arXiv 1906.05890, section 2). No TensorFlow here.

Inputs are what the device computed: float32 logits and float32 weights. tests/margins_test.py has an independent
brute-force version of every formula.
"""

import math

import numpy as np


def margins(d: np.ndarray) -> np.ndarray:
    """q_i = z_{i,y_i} - max_{j != y_i} z_ij, float64 [N], from the gaps [N, C] (`models.losses.gaps`)."""
    q: np.ndarray = -d.max(axis=1)
    return q


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Part of the examples whose first largest logit is the label's. logits: [N, C]; labels: [N]."""
    return float((logits.argmax(axis=1) == labels).mean())


def norms(layers: list[list[np.ndarray]], act_type: str) -> dict[str, float]:
    """rho, rho_k, norm_prod and rhoL (arXiv 1906.05890).

    Args:
      layers: for each layer its tensors that count: the weight, and for the first layer its bias. (In
        a homogeneous network no other layer has a bias. Where others do, their biases do not count.)
      act_type: 'relu2' raises the degree of homogeneity with every layer; others are of degree 1.
    """
    # Not np.vdot: the threads that BLAS leaves spinning would slow the training step after it by half.
    rho_k = [math.sqrt(sum(np.square(tensor, dtype=np.float64).sum() for tensor in tensors)) for tensors in layers]
    rho = math.sqrt(sum(r * r for r in rho_k))
    if act_type == "relu2":
        norm_prod = 1.0
        for r in rho_k:
            norm_prod = norm_prod**2 * r
        rhoL = rho ** (2 ** (len(rho_k) - 1) + 1)
    else:
        norm_prod = math.prod(rho_k)
        rhoL = rho ** len(rho_k)
    return {"rho": rho, **{f"rho_{k}": r for k, r in enumerate(rho_k)}, "norm_prod": norm_prod, "rhoL": rhoL}


def margin_stats(q: np.ndarray, rhoL: float, norm_prod: float) -> dict[str, float]:
    """q_min, q_max, the normalized margins, and n_supp_k: how many q_i < q_min + log(10**k).

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
