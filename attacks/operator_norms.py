"""2-norms of layers as linear operators: exact, or upper bounds."""

import math
from typing import Any

import numpy as np
from scipy import sparse

MAX_MATRIX = 1 << 20  # entries; larger convolutions are bounded with an FFT
FLOAT32 = 1e-5  # relative to the largest logit: allowance for float32 errors in a margin


def fc_norm(weight: np.ndarray) -> float:
    """Return the 2-norm of a matrix [cin, cout], from the eigenvalues of its smaller Gram matrix."""
    w = weight.astype(np.float64)
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    return math.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0))


def conv_as_matrix(kernel: np.ndarray, in_shape: tuple[int, ...]) -> Any:
    """Return a SAME convolution of inputs of this size as a sparse matrix, [h w cin, h w cout].

    Args: as for `conv_norm`.
    """
    (h, w, _), (kh, kw, _, _) = in_shape, kernel.shape
    taps = []
    for i in range(kh):
        for j in range(kw):
            offsets = (kh - 1) // 2 - i, (kw - 1) // 2 - j
            if abs(offsets[0]) < h and abs(offsets[1]) < w:  # else the tap reads zeros only
                down, right = (sparse.eye(n, k=k) for n, k in zip((h, w), offsets, strict=True))
                taps.append(sparse.kron(sparse.kron(down, right), kernel[i, j]))
    return sparse.csr_matrix(sum(taps))


def conv_norm(kernel: np.ndarray, in_shape: tuple[int, ...]) -> float:
    """Return the 2-norm of a SAME convolution as an operator on inputs of exactly this size, or an upper bound.

    It is exact, from the matrix, where that is small. Otherwise it comes from an FFT: with zero padding, the operator
    is a block of the circular convolution on h + kh - 1 by w + kw - 1, whose norm is the largest singular value of
    the kernel's Fourier coefficients (Sedghi et al. 2019, arXiv 1805.10408, theorem 6); the larger the
    input, the closer the two. Power iteration approaches the norm from below, and so would prove nothing.

    Args:
      kernel: [kh, kw, cin, cout]. in_shape: (h, w, cin).
    """
    if math.prod(in_shape) * math.prod(in_shape[:2]) * kernel.shape[3] <= MAX_MATRIX:
        return fc_norm(conv_as_matrix(kernel, in_shape).toarray())
    return fft_norm(kernel, in_shape)


def fft_norm(kernel: np.ndarray, in_shape: tuple[int, ...]) -> float:
    """Return the upper bound of `conv_norm`."""
    kh, kw = kernel.shape[:2]
    size = (in_shape[0] + kh - 1, in_shape[1] + kw - 1)
    # Real kernels have conjugate coefficients at opposite frequencies: half of them suffice.
    spectrum = np.fft.rfft2(kernel.astype(np.float64), size, axes=(0, 1))  # [h', w'/2 + 1, cin, cout]
    rows = max(1, 2**22 // spectrum[0].size)  # in blocks: the batched SVD copies its input
    return float(
        max(np.linalg.svd(spectrum[k : k + rows], compute_uv=False).max() for k in range(0, len(spectrum), rows))
    )
