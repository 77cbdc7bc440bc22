"""2-norms of layers as linear operators: exact, or upper bounds."""

import math
from typing import Any

import numpy as np
from scipy import sparse

from models.architectures import LayerSpec

MAX_MATRIX = 1 << 20  # entries; larger convolutions are bounded with an FFT
FLOAT32 = 1e-5  # relative to the largest logit: allowance for float32 errors in a margin


def fc_norm(weight: np.ndarray) -> float:
    """Return the 2-norm of a matrix [cin, cout], from the eigenvalues of its smaller Gram matrix."""
    w = weight.astype(np.float64)
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    return math.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0))


def reads(n: int, tap: int, outputs: int, stride: int, before: int = 0) -> Any:
    """Return which input each output reads with one tap of a window along an axis: sparse, 0 or 1, [n, outputs]."""
    output = np.arange(outputs)
    read = output * stride - before + tap
    inside = (read >= 0) & (read < n)
    return sparse.csr_matrix((np.ones(inside.sum()), (read[inside], output[inside])), (n, outputs))


def conv_as_matrix(kernel: np.ndarray, spec: LayerSpec) -> Any:
    """Return a convolution as a sparse matrix, [h w cin, h' w' cout].

    Args: as for `conv_norm`.
    """
    (h, w, _), (h_out, w_out, _), (top, _, left, _) = spec.in_shape, spec.out_shape, spec.pads
    total = sparse.csr_matrix((math.prod(spec.in_shape), math.prod(spec.out_shape)))
    for i, j in np.ndindex(*spec.window):
        down, right = reads(h, i, h_out, spec.stride[0], top), reads(w, j, w_out, spec.stride[1], left)
        total += sparse.kron(sparse.kron(down, right), kernel[i, j], "csr")
    return total


def average_as_matrix(spec: LayerSpec) -> Any:
    """Return an average pool as a sparse matrix, [h w c, h' w' c]."""
    axes = [
        sum(reads(n, tap, outputs, stride) for tap in range(window))
        for n, outputs, window, stride in zip(spec.in_shape, spec.out_shape, spec.window, spec.stride, strict=False)
    ]
    return sparse.kron(sparse.kron(*axes), sparse.eye(spec.in_shape[-1]) / math.prod(spec.window), "csr")


def pool_norm(spec: LayerSpec) -> float:
    """Return a Lipschitz constant of a pool, in L2.

    An element lies in at most `overlap` windows, so that maxima of windows change by at most sqrt(overlap) times as
    much as their elements, and means of n elements by sqrt(overlap / n).
    """
    overlap = math.prod(-(-window // stride) for window, stride in zip(spec.window, spec.stride, strict=True))
    return math.sqrt(overlap / math.prod(spec.window) if spec.kind == "A" else overlap)


def conv_norm(kernel: np.ndarray, spec: LayerSpec) -> float:
    """Return the 2-norm of a convolution as an operator on inputs of exactly this size, or an upper bound.

    It is exact, from the matrix, where that is small. Otherwise it comes from an FFT: with zero padding, the operator
    is a block of the circular convolution on h + kh - 1 by w + kw - 1, whose norm is the largest singular value of
    the kernel's Fourier coefficients (Sedghi et al. 2019, arXiv 1805.10408, theorem 6); the larger the
    input, the closer the two. Power iteration approaches the norm from below, and so would prove nothing.

    Other strides and pads select some of that block's outputs, which makes the norm no larger.

    Args:
      kernel: [kh, kw, cin, cout]. spec: the layer.
    """
    if math.prod(spec.in_shape) * math.prod(spec.out_shape) <= MAX_MATRIX:
        return fc_norm(conv_as_matrix(kernel, spec).toarray())
    return fft_norm(kernel, spec.in_shape)


def fft_norm(kernel: np.ndarray, in_shape: tuple[int, ...]) -> float:
    """Return the upper bound of `conv_norm`. in_shape: (h, w, cin)."""
    kh, kw = kernel.shape[:2]
    size = (in_shape[0] + kh - 1, in_shape[1] + kw - 1)
    # Real kernels have conjugate coefficients at opposite frequencies: half of them suffice.
    spectrum = np.fft.rfft2(kernel.astype(np.float64), size, axes=(0, 1))  # [h', w'/2 + 1, cin, cout]
    rows = max(1, 2**22 // spectrum[0].size)  # in blocks: the batched SVD copies its input
    return float(
        max(np.linalg.svd(spectrum[k : k + rows], compute_uv=False).max() for k in range(0, len(spectrum), rows))
    )
