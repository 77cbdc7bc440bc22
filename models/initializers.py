"""Initial weights. NumPy, so that a seed means the same weights on every device.

Definitions as in TensorFlow 1.13, which the margin paper's code used: `he_*` (He et al. 2015) and
`glorot_*` (Glorot & Bengio 2010) scale with the fans; `*_normal` there is a normal truncated at two
standard deviations, its width corrected for the truncation; the plain ones have width 1.
`torch_default` is PyTorch's: uniform within ±1/sqrt(fan_in), a bias as wide as its layer's weight.
"""

import math
from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]

# Standard deviation of a standard normal truncated to [-2, 2].
_TRUNCATED_STD = 0.87962566103423978


def _truncated_normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(np.count_nonzero(outside))
    return values


def _fans(shape: Shape) -> tuple[int, int]:
    """Return (fan_in, fan_out) of [cin, cout] or [kh, kw, cin, cout]; a 1-d shape counts for both."""
    if len(shape) == 1:
        return shape[0], shape[0]
    receptive_field = math.prod(shape[:-2])
    return receptive_field * shape[-2], receptive_field * shape[-1]


def _scaled_normal(rng: np.random.Generator, shape: Shape, fan: float) -> np.ndarray:
    return _truncated_normal(rng, shape) * (math.sqrt(2 / fan) / _TRUNCATED_STD)


def _scaled_uniform(rng: np.random.Generator, shape: Shape, fan: float) -> np.ndarray:
    return rng.uniform(-1, 1, shape) * math.sqrt(6 / fan)


INITIALIZERS: dict[str, Callable[..., np.ndarray]] = {
    "glorot_uniform": lambda rng, shape: _scaled_uniform(rng, shape, sum(_fans(shape))),
    "glorot_normal": lambda rng, shape: _scaled_normal(rng, shape, sum(_fans(shape))),
    "he_normal": lambda rng, shape: _scaled_normal(rng, shape, _fans(shape)[0]),
    "he_uniform": lambda rng, shape: _scaled_uniform(rng, shape, _fans(shape)[0]),
    "truncated_normal": _truncated_normal,
    "random_normal": lambda rng, shape: rng.standard_normal(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "torch_default": lambda rng, shape, fan_in=None: rng.uniform(-1, 1, shape) / math.sqrt(fan_in or _fans(shape)[0]),
}


def initial_value(
    rng: np.random.Generator,
    shape: Shape,
    name: str,
    normalized: bool = False,
    rescale: float = 1.0,
    weight_shape: Shape | None = None,
) -> np.ndarray:
    """Draw one tensor, float32.

    Args:
      rng: the source of randomness.
      shape: [cin, cout], [kh, kw, cin, cout], or [cout] of a bias.
      name: a key of INITIALIZERS.
      normalized: scale the tensor to have L2 norm `rescale`; else multiply it by `rescale`.
      weight_shape: of a bias, the shape of its layer's weight; only torch_default asks.

    Raises: KeyError for an unknown name.
    """
    fans = {"fan_in": _fans(weight_shape or shape)[0]} if name == "torch_default" else {}
    value = INITIALIZERS[name](rng, shape, **fans) * rescale
    norm = np.linalg.norm(value)
    if normalized and norm > 0:
        value *= rescale / norm
    return value.astype(np.float32)
