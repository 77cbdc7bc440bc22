"""A certified lower bound on an image's distance to other classes, from the network near that image.

In a small ball around an image most units keep their sign, and most windows of a max pool their largest element.
Bounds of the units tell which. Decided units are linear, so that the gap z_y - z_j changes by at most the norm of its
gradient there; only undecided units need norms of the layers, of the remaining rows:

    |change of the gap| <= r ||v_1||_q + sum_k || rest_k v_{k+1} || N_k d_k

with r the radius, v_{k+1} the gap's gradient by the output of layer k along the decided units (of undecided ones, the
middle), rest_k how far their slopes can lie from the middle, N_k the norm of layer k's undecided rows, d_k a bound on
the change of layer k's input, and q the dual of the image's norm. Local Lipschitz bounds of this kind: Weng et al.
2018 (arXiv 1804.09699), Huang et al. 2021 (arXiv 2111.01395).

Everything is in float64. Each step subtracts an allowance for rounding (`ROUNDING`).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import cholesky
from scipy.sparse.linalg import eigsh

from attacks.operator_norms import FLOAT32, average_as_matrix, conv_as_matrix, conv_norm, fc_norm, pool_norm

# A sum of n products has an error below n * 1.2e-16 times the sum of their magnitudes, and n is below 1e5 here. Norms
# by eigenvalues have relative errors of this order, too.
ROUNDING = 1e-10
LOOKS = 9  # radii tried per image
CLOSE = 1.03  # the search ends when the smallest radius that failed is within this factor of the certified one
NEAR = 3e-3  # relative precision of a norm
FEW = 128  # rows of a matrix up to which all eigenvalues are computed
MOST_ROWS = 1500  # with more rows and columns than this, the norm of the whole layer is used
DENSE = 2**21  # entries up to which a matrix is dense
MOST_NUMBERS = 3 * 10**7  # entries of all layers as matrices


@dataclass
class Layer:
    """A layer as a matrix, and what follows it.

    Attributes:
      matrix: [inputs, outputs], dense or sparse, including every factor. bias: [outputs].
      square: its entries squared. rows: the 2-norm of each column. norm: a bound of its 2-norm.
      size: its Frobenius norm.
      relu: whether a relu follows. pool: (h, w, c) of the outputs where a 2x2 max pool follows, else None.
    """

    matrix: Any
    bias: np.ndarray
    square: Any
    rows: np.ndarray
    norm: float
    size: float
    relu: bool
    pool: tuple[int, int, int] | None


@dataclass
class Slopes:
    """What is undecided after a layer, inside a ball.

    Attributes:
      middle: the middle slope of each unit, [outputs]. rest: how far slopes can lie from it, by output of the pool
        (without a pool, by unit). open: units that an undecided output may depend on, bool [outputs].
      spread: how far each undecided output of the pool can move. norm: N_k. change: d_k.
    """

    middle: np.ndarray
    rest: np.ndarray
    open: np.ndarray
    spread: np.ndarray
    norm: float
    change: float


def why_not(model: Any) -> str | None:
    """Return why there is no local certificate of this network; None where there is one."""
    specs = model.specs
    if model.act_type not in ("relu", "linear"):
        return f"the activation {model.act_type} is neither relu nor linear"
    if specs[-1].act:
        return "an activation follows the last layer"
    if any(spec.kind == "P" and (k == 0 or specs[k - 1].kind != "C") for k, spec in enumerate(specs)):
        return "a max pool does not follow a convolution"
    if any(spec.kind == "P" and not spec.plain for spec in specs):
        return "a max pool is not 2x2 of stride 2"
    numbers = sum(spec.flops // 2 for spec in specs)
    if numbers > MOST_NUMBERS:
        return f"its layers have {numbers:.2g} entries as matrices; at most {MOST_NUMBERS:.1g} are supported"
    return None


def windows(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Arrange [h w c] as [h/2 w/2 c, 4]: the windows of a 2x2 pool."""
    h, w, c = (shape[0] // 2, shape[1] // 2, shape[2])
    cut = values.reshape(shape)[: 2 * h, : 2 * w]
    return cut.reshape(h, 2, w, 2, c).transpose(0, 2, 4, 1, 3).reshape(-1, 4)


def from_windows(values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the inverse of `windows`; elements outside all windows are 0 (False)."""
    h, w, c = (shape[0] // 2, shape[1] // 2, shape[2])
    full = np.zeros(shape, values.dtype)
    full[: 2 * h, : 2 * w] = values.reshape(h, w, c, 2, 2).transpose(0, 3, 1, 4, 2).reshape(2 * h, 2 * w, c)
    return full.ravel()


def _to_windows(v: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Copy each output of a 2x2 pool to all four of its window: [h/2 w/2 c, m] -> [h w c, m]."""
    h, w, c = shape
    wide = v.reshape(h // 2, w // 2, c, -1).repeat(2, axis=0).repeat(2, axis=1)
    return np.pad(wide, [(0, h % 2), (0, w % 2), (0, 0), (0, 0)]).reshape(h * w * c, -1)


def norm_of(layer: Layer, inputs: np.ndarray, outputs: np.ndarray) -> float:
    """Return a bound of the 2-norm of some rows (inputs, bool) and columns (outputs, bool) of a layer."""
    if not inputs.any() or not outputs.any():
        return 0.0
    if min(inputs.sum(), outputs.sum()) > MOST_ROWS:
        return layer.norm
    part = layer.matrix[inputs][:, outputs]
    gram = part @ part.T if part.shape[0] <= part.shape[1] else part.T @ part
    return min(math.sqrt(largest_eigenvalue_bound(gram)), layer.norm)


def largest_eigenvalue_bound(gram: Any) -> float:
    """Return a tight upper bound of the largest eigenvalue of a positive semidefinite matrix, dense or sparse.

    For a large matrix, Lanczos approximates it from below. A Cholesky decomposition of b I - gram then certifies that
    all eigenvalues are below a slightly larger b: only positive definite matrices have one, and in floats it
    certifies that up to n * 1.2e-16 of the trace (Rump 2006, BIT 46).
    """
    n = gram.shape[0]
    dense = gram.toarray() if sparse.issparse(gram) else gram
    slack = ROUNDING * float(np.trace(dense))
    if n <= FEW or not slack:
        return float(np.linalg.eigvalsh(dense)[-1]) + slack if slack else 0.0
    start = np.random.default_rng(0).standard_normal(n)
    guess = float(eigsh(gram, k=1, v0=start, tol=NEAR, ncv=12, return_eigenvectors=False)[0]) * (1 + NEAR) + slack
    while True:
        try:
            cholesky(guess * np.eye(n) - dense, overwrite_a=True, check_finite=False)
            return guess * (1 + 2.3e-16 * n**2) + slack
        except np.linalg.LinAlgError:
            guess = 1.03 * guess + slack


class LocalCertificate:
    """Radii, image by image, within which no image has another class.

    Args:
      model: a `models.network.Network` that `why_not` accepts. Its weights are copied.
      p: the norm of the radius: 1, 2 or infinity.
    """

    def __init__(self, model: Any, p: float = 2):
        self.q = {1: np.inf, 2: 2, np.inf: 1}[p]
        self.layers: list[Layer] = []
        self.longest = math.sqrt(math.prod(model.specs[0].in_shape)) if p == np.inf else 1.0  # L2 of a radius of 1
        before: Any = None  # average pools since the last layer with weights, and their norm
        weights = iter(model.effective_weights())
        for n, (spec, layer, _) in enumerate(model.stages()):
            if spec.kind == "A":
                pool, norm = average_as_matrix(spec), pool_norm(spec)
                before = (pool, norm) if before is None else (before[0] @ pool, before[1] * norm)
            elif layer is not None:
                self._append(model, layer, next(weights), spec, before, model.specs[n + 1 : n + 2])
                before = None
        first = self.layers[0].matrix
        self.first_rows = np.linalg.norm(first.toarray() if sparse.issparse(first) else first, self.q, axis=0)

    def _append(self, model: Any, own: Any, weight: np.ndarray, spec: Any, before: Any, after: list[Any]) -> None:
        _, bias = own.folded()
        matrix: Any = conv_as_matrix(weight, spec) if spec.kind == "C" else weight
        norm = conv_norm(weight, spec) if spec.kind == "C" else fc_norm(weight)
        bias = np.broadcast_to(bias, spec.out_shape).ravel().copy()
        if before is not None:
            matrix, norm = before[0] @ matrix, before[1] * norm
        if own is model.layers[0] and model.input_normalization is not None:
            factor, shift = (np.asarray(part, np.float64) for part in model.input_normalization)
            # The factor is in the weight already: (x + shift / factor) (factor W).
            bias = bias + np.broadcast_to(shift / factor, model.specs[0].in_shape).ravel() @ matrix
        if sparse.issparse(matrix):
            matrix = matrix.toarray() if math.prod(matrix.shape) <= DENSE else sparse.csr_matrix(matrix)
        square = matrix.power(2) if sparse.issparse(matrix) else matrix**2
        pool = spec.out_shape if after and after[0].kind == "P" else None
        relu = spec.act and model.act_type == "relu"
        norm *= 1 + ROUNDING
        rows = np.sqrt(np.asarray(square.sum(axis=0)).ravel())
        self.layers.append(Layer(matrix, bias, square, rows, norm, math.sqrt(square.sum()), relu, pool))

    def radius(self, image: np.ndarray, label: int, start: float) -> float:
        """Return the largest radius that a search certifies; at least `start`, which must be certified already.

        Each radius tried is a certificate by itself; a bound at a radius also holds at every smaller one.

        Args:
          image: float [h, w, c] in [0, 1]. label: the class that the network gives it.
        """
        x = image.astype(np.float64).ravel()
        proved, failed = start, math.inf
        r = 2 * start
        for _ in range(LOOKS):
            if not r > 0 or failed <= CLOSE * proved:
                break
            shown = r * self._share(x, label, r)
            proved = max(proved, min(shown, r))
            if shown < r:
                failed = min(failed, r)
            r = (
                math.sqrt(proved * failed)
                if math.isfinite(failed)
                else max(1.5 * r, min(math.sqrt(r * shown), 10 * r))
            )
        return proved

    def _share(self, x: np.ndarray, label: int, r: float) -> float:
        """Return the smallest of margin / (largest change in the ball of radius r) over the other classes."""
        open_, z, change = self._forward(x, r)
        others = np.delete(np.arange(len(z)), label)
        margin = z[label] - z[others] - FLOAT32 * np.abs(z).max()
        last = self.layers[-1]
        v = last.matrix[:, [label]] - last.matrix[:, others]
        moved = ROUNDING * last.size * change * np.ones(len(others))
        for layer, slopes in zip(reversed(self.layers[:-1]), reversed(open_), strict=True):
            rest = np.abs(v) * slopes.rest[:, None]
            by_norm = np.sqrt((rest**2).sum(axis=0)) * slopes.norm * slopes.change
            moved += np.minimum(by_norm, slopes.spread @ rest)
            v = slopes.middle[:, None] * (v if layer.pool is None else _to_windows(v, layer.pool))
            moved += ROUNDING * layer.size * np.sqrt((v**2).sum(axis=0)) * slopes.change
            v = layer.matrix @ v
        moved += r * np.linalg.norm(v, self.q, axis=0)
        if not np.isfinite(moved).all():
            return 0.0
        with np.errstate(divide="ignore", invalid="ignore"):  # nothing moves: the whole ball is proved
            share = np.where(moved == 0, np.inf, margin / (moved * (1 + ROUNDING)))
        return float(np.where(margin > 0, share, 0.0).min())

    def _forward(self, x: np.ndarray, r: float) -> tuple[list[Slopes], np.ndarray, float]:
        """Return what is undecided after each layer, the logits, and a bound of the change of the last input."""
        h, alive, change = x, np.ones(len(x), bool), r * self.longest
        found = []
        for k, layer in enumerate(self.layers):
            z = h @ layer.matrix + layer.bias
            if k == len(self.layers) - 1:
                break
            spread = r * self.first_rows if k == 0 else np.sqrt(alive @ layer.square) * change
            spread = spread * (1 + ROUNDING) + ROUNDING * (layer.rows * np.linalg.norm(h) + np.abs(layer.bias))
            slopes, used, low, high, h = _behind(layer, z, spread)
            slopes.change = change
            slopes.norm = norm_of(layer, alive, slopes.open)
            far = float(np.linalg.norm(np.maximum(high - h, h - low)))
            if k < len(self.layers) - 2 or far < change * layer.norm:
                change = min(norm_of(layer, alive, used) * change, far) * (1 + ROUNDING)
            else:
                change = layer.norm * change
            alive = high > low
            found.append(slopes)
        return found, z, change


def _behind(layer: Layer, z: np.ndarray, spread: np.ndarray) -> tuple[Slopes, np.ndarray, Any, Any, Any]:
    """Return what is undecided after a layer, which units matter, and bounds and values after its relu and pool."""
    low, high = z - spread, z + spread
    if layer.pool is None:
        groups = [part[:, None] for part in (z, low, high, spread)]
    else:
        groups = [windows(part, layer.pool) for part in (z, low, high, spread)]
    z_, low_, high_, spread_ = groups
    floor = low_.max(axis=1, keepdims=True)
    may = high_ >= floor  # be the largest
    if layer.relu:
        may &= high_ > 0
    count = may.sum(axis=1)
    several, one = count > 1, count == 1
    decided = one & ((floor[:, 0] >= 0) | (not layer.relu))
    # Slopes lie in the hull of the candidates' unit vectors, and 0 where a relu may be off. Its middle: half of a
    # single candidate, else all candidates alike, and no corner is farther from that than sqrt(1 - 1 / count).
    share = np.where(decided, 1.0, np.where(several, 1 / np.maximum(count, 1), 0.5))
    rest = np.where(several, np.sqrt(1 - 1 / np.maximum(count, 1)), np.where(decided | ~one, 0.0, 0.5))
    middle = may * share[:, None]
    undecided = may & (rest > 0)[:, None]
    moved = np.sqrt(((spread_ * undecided) ** 2).sum(axis=1))
    outs = [part.max(axis=1) for part in (low_, high_, z_)]
    if layer.relu:
        outs = [np.maximum(part, 0.0) for part in outs]

    def units(part: np.ndarray) -> np.ndarray:
        return part[:, 0] if layer.pool is None else from_windows(part, layer.pool)

    return Slopes(units(middle), rest, units(undecided), moved, 0.0, 0.0), units(may), *outs
