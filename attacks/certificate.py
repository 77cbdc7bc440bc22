"""A provable lower bound on distances: margin over Lipschitz constant (Tsuzuku et al., NeurIPS 2018).

z_j - z_y changes by at most L ||w_j - w_y|| ||x' - x||, with L a Lipschitz constant of all below the
last layer, here the product of the layers' own. So no x' nearer than the smallest
(z_y - z_j) / (L ||w_j - w_y||) is classified as anything but y.

Two layers with only a relu between them are tighter together: a relu is half the identity and half a map that
lengthens nothing, so V relu(W .) has the constant (||V W|| + ||V|| ||W||) / 2, at most ||V|| ||W|| (Combettes and
Pesquet 2020, arXiv 1903.01014). Through a max pool the same idea never gains: its middle is the mean of four, and
||V mean W|| would have to be below ||V|| ||W|| / 4.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from models.architectures import LayerSpec

MAX_MATRIX = 1 << 20  # entries; larger convolutions are bounded by FFT
FLOAT32 = 1e-5  # of the largest logit: what float32 may have got wrong in a margin


def fc_norm(weight: np.ndarray) -> float:
    """2-norm of a matrix [cin, cout], by the eigenvalues of its smaller Gram matrix."""
    w = weight.astype(np.float64)
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    return math.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0))


def conv_matrix(kernel: np.ndarray, in_shape: tuple[int, ...]) -> np.ndarray:
    """A SAME convolution of inputs of this size written out as a matrix, [h w cin, h w cout].

    Args: as for `conv_norm`.
    """
    (h, w, _), (kh, kw, cin, cout) = in_shape, kernel.shape
    matrix = np.zeros((h, w, cin, h, w, cout), kernel.dtype)
    for row, col, i, j in np.ndindex(h, w, kh, kw):  # what output (row, col) takes from input (r, c)
        r, c = row + i - (kh - 1) // 2, col + j - (kw - 1) // 2
        if 0 <= r < h and 0 <= c < w:
            matrix[r, c, :, row, col] = kernel[i, j]
    return matrix.reshape(h * w * cin, h * w * cout)


def conv_norm(kernel: np.ndarray, in_shape: tuple[int, ...]) -> float:
    """The 2-norm of a SAME convolution as an operator on inputs of this very size, or an upper bound.

    Exact, by its matrix, where that is small. Else by FFT: with zero padding the operator is a piece of
    the circular convolution on h + kh - 1 by w + kw - 1, whose norm is the largest singular value of
    the kernel's Fourier coefficients (Sedghi et al. 2019, arXiv 1805.10408, theorem 6); the larger the
    input, the nearer the two. Power iteration would approach the norm from below, and so prove nothing.

    Args:
      kernel: [kh, kw, cin, cout]. in_shape: (h, w, cin).
    """
    if math.prod(in_shape) * math.prod(in_shape[:2]) * kernel.shape[3] <= MAX_MATRIX:
        return fc_norm(conv_matrix(kernel, in_shape))
    return fft_norm(kernel, in_shape)


def fft_norm(kernel: np.ndarray, in_shape: tuple[int, ...]) -> float:
    """The upper bound of `conv_norm`."""
    kh, kw = kernel.shape[:2]
    size = (in_shape[0] + kh - 1, in_shape[1] + kw - 1)
    # Real kernels have conjugate coefficients at opposite frequencies: half of them is enough.
    spectrum = np.fft.rfft2(kernel.astype(np.float64), size, axes=(0, 1))  # [h', w'/2 + 1, cin, cout]
    rows = max(1, 2**22 // spectrum[0].size)  # in pieces: the batched SVD copies what it is given
    return float(
        max(np.linalg.svd(spectrum[k : k + rows], compute_uv=False).max() for k in range(0, len(spectrum), rows))
    )


def lipschitz(specs: list[LayerSpec], weights: list[np.ndarray], act_type: str) -> tuple[float, np.ndarray]:
    """Lipschitz constants of the gaps z_j - z_k, in L2.

    Args:
      specs: the layers. weights: of the layers that have one, in order, with all that multiplies
        (batch norm, the input's normalization) in them: `effective_weights` of a model.
      act_type: relu and linear are 1-Lipschitz; relu2 has no Lipschitz constant.

    Returns: (L, D), with L D[j, k] the constant of z_j - z_k: D the distances of the last layer's columns, or where
      a fully connected layer is right below it, the pair's constant over that layer's norm; float64 [C, C]. L of all
      below the last layer, float; infinite for relu2.
    """
    weights = [weight.astype(np.float64) for weight in weights]
    if act_type == "relu2" and any(spec.act for spec in specs):
        return math.inf, np.zeros((weights[-1].shape[1],) * 2)
    # Constants up to each layer; the last two of them, for pairs. `below`: the layer below, if fully connected.
    bound, bound_below = 1.0, 1.0
    below: np.ndarray | None = None
    for spec in specs[:-1]:
        if spec.kind == "A":
            bound /= 2  # the mean of four is 1/2-Lipschitz; a max over disjoint windows is 1-Lipschitz
        if spec.weight_shape is None:
            below = None
            continue
        weight = weights.pop(0)
        if spec.kind == "C":
            bound, bound_below, below = bound * conv_norm(weight, spec.in_shape), bound, None
            continue
        alone = bound * fc_norm(weight)
        paired = alone if below is None else bound_below * pair_norm(below, weight)
        bound, bound_below, below = min(alone, paired), bound, weight
    last = weights.pop(0)
    if specs[-1].act:  # after an activation a gap is sqrt(2) times as steep as the logits' vector, at most
        return bound, np.full((last.shape[1],) * 2, math.sqrt(2) * fc_norm(last))
    difference = _distances(last)
    if below is not None:
        of_pair = (_distances(below @ last) + fc_norm(below) * difference) / 2
        difference = np.minimum(difference, of_pair * bound_below / bound) if bound else difference
    return bound, difference


def pair_norm(first: np.ndarray, second: np.ndarray) -> float:
    """A Lipschitz constant of x -> relu(x first) second, matrices [cin, cout]; see the module."""
    return (fc_norm(first @ second) + fc_norm(first) * fc_norm(second)) / 2


def _distances(matrix: np.ndarray) -> np.ndarray:
    """The distances of a matrix's columns, [C, C]."""
    columns = matrix.T
    return np.stack([np.linalg.norm(columns - column, axis=1) for column in columns])


def certified(logits: np.ndarray, labels: np.ndarray, bound: float, difference: np.ndarray) -> np.ndarray:
    """The radius in which no image of another class lies, float64 [B]; 0 for a misclassified image.

    Args:
      logits: float32 [B, C]. labels: int [B], classes to leave. bound, difference: see `lipschitz`.
    """
    z = logits.astype(np.float64)
    rows = np.arange(len(z))
    # What float32 may have got wrong is taken off the margin.
    rounding = FLOAT32 * np.abs(z).max(axis=1, keepdims=True)
    margin = np.maximum(z[rows, labels][:, None] - z - rounding, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = margin / (bound * difference[labels])
    radius[rows, labels] = np.inf
    return np.nan_to_num(radius.min(axis=1), nan=0.0)


NORMS = {"L1": 1, "L2": 2, "Linf": np.inf}


class Certifier:
    """Proved lower bounds of distances to other classes, of one network as it is now.

    A radius in L2 is one in L1, too, and divided by the root of the number of pixels, one in L-infinity.

    Args:
      model: a `models.network.Network`.
      norm: of the distances, a key of NORMS.
      local: look at the network near each image, too (`attacks.local_certificate`).
    """

    def __init__(self, model: Any, norm: str, local: bool):
        self.constants = lipschitz(model.specs, model.effective_weights(), model.act_type)
        self.longest = math.sqrt(math.prod(model.specs[0].in_shape)) if norm == "Linf" else 1.0
        self.local: Any = None
        if local:
            from attacks.local_certificate import LocalCertificate

            self.local = LocalCertificate(model, NORMS[norm])

    def __call__(
        self, images: np.ndarray, logits: np.ndarray, labels: np.ndarray, tick: Callable[[float], None]
    ) -> np.ndarray:
        """The radii, float64 [B]; 0 for a misclassified image.

        Args:
          images: float32 [B, h, w, c] in [0, 1]. logits: of them, float32 [B, C]. labels: int [B].
          tick: is told the fraction that is done, and may raise to end it.
        """
        radii = certified(logits, labels, *self.constants) / self.longest
        for k in np.flatnonzero(radii > 0) if self.local else ():
            radii[k] = self.local.radius(images[k], int(labels[k]), float(radii[k]))
            tick(k / len(images))
        return radii
