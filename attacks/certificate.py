"""A provable lower bound on L2 distances: margin over Lipschitz constant (Tsuzuku et al., NeurIPS 2018).

z_j - z_y changes by at most L ||w_j - w_y|| ||x' - x||, with L a Lipschitz constant of all below the
last layer, here the product of the layers' own. So no x' nearer than the smallest
(z_y - z_j) / (L ||w_j - w_y||) is classified as anything but y.
"""

import math

import numpy as np

from models.architectures import LayerSpec


def fc_norm(weight: np.ndarray) -> float:
    """2-norm of a matrix [cin, cout], by the eigenvalues of its smaller Gram matrix."""
    w = weight.astype(np.float64)
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    return math.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0))


def conv_norm(kernel: np.ndarray, in_shape: tuple[int, int, int]) -> float:
    """An upper bound on the 2-norm of a SAME convolution as an operator on inputs of this very size.

    With zero padding the operator is a piece of the circular convolution on h + kh - 1 by w + kw - 1,
    whose norm is the largest singular value of the kernel's Fourier coefficients (Sedghi et al. 2019,
    arXiv 1805.10408, theorem 6). Power iteration on the operator itself would approach its norm
    from below, and so prove nothing; a test shows how near the two are.

    Args:
      kernel: [kh, kw, cin, cout]. in_shape: (h, w, cin).
    """
    kh, kw = kernel.shape[:2]
    size = (in_shape[0] + kh - 1, in_shape[1] + kw - 1)
    # Real kernels have conjugate coefficients at opposite frequencies: half of them is enough.
    spectrum = np.fft.rfft2(kernel.astype(np.float64), size, axes=(0, 1))  # [h', w'/2 + 1, cin, cout]
    rows = max(1, 2**22 // spectrum[0].size)  # in pieces: the batched SVD copies what it is given
    return float(
        max(
            np.linalg.svd(spectrum[k : k + rows], compute_uv=False).max()
            for k in range(0, len(spectrum), rows)
        )
    )


def lipschitz(specs: list[LayerSpec], weights: list[np.ndarray], act_type: str) -> tuple[float, np.ndarray]:
    """Lipschitz constants of the gaps z_j - z_k, in L2.

    Args:
      specs: the layers. weights: of the layers that have one, in order.
      act_type: relu and linear are 1-Lipschitz; relu2 has no Lipschitz constant.

    Returns: (L, D), with L D[j, k] the constant of z_j - z_k: L of all below the last layer, float;
      D the distances of the last layer's columns, float64 [C, C]. L is infinite for relu2.
    """
    bound, weights = 1.0, list(weights)
    for spec in specs[:-1]:
        if spec.kind == "C":
            bound *= conv_norm(weights.pop(0), spec.in_shape)
        elif spec.kind == "F":
            bound *= fc_norm(weights.pop(0))
        elif spec.kind == "A":
            bound /= 2  # the mean of four is 1/2-Lipschitz; a max over disjoint windows is 1-Lipschitz
        if spec.act and act_type == "relu2":
            bound = math.inf
    last = weights.pop(0).astype(np.float64)
    if not specs[-1].act:
        columns = last.T  # [C, features]
        difference = np.stack([np.linalg.norm(columns - column, axis=1) for column in columns])
    else:  # after an activation a gap is sqrt(2) times as steep as the logits' vector, at most
        difference = np.full((last.shape[1],) * 2, math.sqrt(2) * fc_norm(last))
        bound = math.inf if act_type == "relu2" else bound
    return bound, difference


def certified(logits: np.ndarray, labels: np.ndarray, bound: float, difference: np.ndarray) -> np.ndarray:
    """The radius in which no image of another class lies, float64 [B]; 0 for a misclassified image.

    Args:
      logits: float32 [B, C]. labels: int [B], classes to leave. bound, difference: see `lipschitz`.
    """
    z = logits.astype(np.float64)
    rows = np.arange(len(z))
    # What float32 may have got wrong is taken off the margin.
    rounding = 1e-5 * np.abs(z).max(axis=1, keepdims=True)
    margin = np.maximum(z[rows, labels][:, None] - z - rounding, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = margin / (bound * difference[labels])
    radius[rows, labels] = np.inf
    return np.nan_to_num(radius.min(axis=1), nan=0.0)
