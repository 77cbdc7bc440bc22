"""The log of the loss in a plane through one network of a run.

Random planes have directions with the norms of the network's own filters (Li et al. 2018, arXiv 1712.09913, section
4): each filter, and each unit's weights in a fully connected layer, is a Gaussian of that filter's length; biases and
batch norm stay. The plane of the path of training is that of the first two principal components of the stored epochs'
weights minus the network's (section 7 there).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.context import Context
from engine.units import Worker
from flatness.span import FastSpan, PlainSpan, Tensors, span_of
from support.errors import UserError
from support.screen import Update

MARGIN = 0.2  # of the path's extent, left around it
LINE = 1e-10  # part of the squared distances below which a second component is rounding of float32 weights
PATH_BYTES = 2**30  # of the epochs of a path, in memory together; of more, some are left out


def filter_normalized(rng: np.random.Generator, names: list[str], weights: Tensors) -> Tensors:
    """Return a random direction; None for tensors that stay.

    Args:
      names, weights: of the network, as in `Network.get_weights`.
    """
    found: Tensors = []
    for name, weight in zip(names, weights, strict=True):
        if not name.endswith("/weight"):
            found.append(None)
            continue
        weight = np.asarray(weight, np.float64)
        axes = tuple(range(weight.ndim - 1))  # the last one counts filters, or units
        draw = rng.standard_normal(weight.shape)
        sizes = [np.sqrt((a**2).sum(axis=axes, keepdims=True)) for a in (weight, draw)]
        found.append(draw * sizes[0] / sizes[1])
    return found


@dataclass(frozen=True)
class Path:
    """A path in the plane of its principal components.

    Attributes:
      directions: two lists of tensors, orthonormal together.
      coordinates: of each epoch, relative to the network, float64 [epochs, 2].
      explained: parts of the squared distances to the network that lie along the two, float64 [2].
      is_line: whether the path has no second component; the second direction is then a random one.
    """

    directions: list[Tensors]
    coordinates: np.ndarray
    explained: np.ndarray
    is_line: bool


def principal(center: Tensors, epochs: list[Tensors]) -> Path:
    """Return the plane of a path, through `center`.

    The components come from the epochs' Gram matrix: there are fewer epochs than weights.

    Args:
      epochs: tensors of each epoch.

    Raises: UserError where all epochs are equal to the center.
    """
    flat = np.stack([np.concatenate([np.ravel(t) for t in epoch]) for epoch in epochs])
    flat -= np.concatenate([np.ravel(t) for t in center])
    rows = flat.astype(np.float64) if flat.nbytes <= PATH_BYTES // 4 else flat
    gram = np.asarray(rows @ rows.T, np.float64)
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0.0)  # of a smaller rank: rounding can make them negative
    if not values[-1] > 0:
        raise UserError("--plane pca: the stored epochs have equal weights, so the path of training does not move")
    is_line = values[-2] <= LINE * values[-1]
    lengths = np.sqrt(values[[-1, -2]])
    if is_line:
        first = vectors[:, -1] @ rows / lengths[0]
        second = np.random.default_rng(0).standard_normal(flat.shape[1])
        second -= first * (first @ second)
        axes = np.stack([first, second / np.linalg.norm(second)])  # [2, n]
        values[-2] = lengths[1] = 0.0
    else:
        axes = (vectors[:, [-1, -2]] / lengths).T @ rows
    ends = np.cumsum([np.size(t) for t in center])[:-1]
    shapes = [np.shape(t) for t in center]
    directions = [
        [part.reshape(shape) for part, shape in zip(np.split(axis, ends), shapes, strict=True)] for axis in axes
    ]
    return Path(directions, vectors[:, [-1, -2]] * lengths, values[[-1, -2]] / values.sum(), bool(is_line))


def thinned(eids: list[int], bytes_each: int) -> list[int]:
    """Return as many of these epochs as memory has room for, evenly chosen, with the first and the last."""
    room = max(PATH_BYTES // bytes_each, 3)
    if len(eids) <= room:
        return eids
    return [eids[k] for k in np.unique(np.linspace(0, len(eids) - 1, room).round().astype(int))]


def sides(plane: str, n: int, extent: float, coordinates: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the grid's values along the two directions, float64 [n] each; 0 is one of them."""
    low, high = np.full(2, -extent), np.full(2, extent)
    if plane == "pca" and coordinates is not None:
        low, high = np.minimum(coordinates.min(axis=0), 0), np.maximum(coordinates.max(axis=0), 0)
        around = MARGIN * (high - low).max()
        low, high = low - around, high + around
    x, y = (np.linspace(a, b, n) for a, b in zip(low, high, strict=True))
    return x - x[np.abs(x).argmin()], y - y[np.abs(y).argmin()]  # the minimum may be narrower than a step


def directions_of(context: Context, network: tuple[str, int], eids: list[int]) -> tuple[list[Tensors], Path | None]:
    """Return the two directions that the flags ask for, and the path they come from."""
    f, model = context.f, context.model
    weights = context.stored_weights(*network)
    if f.plane == "random":
        rngs = (np.random.default_rng([f.seed, k]) for k in range(2))
        return [filter_normalized(rng, model.names, weights) for rng in rngs], None

    def make() -> Path:
        return principal(weights, [context.stored_weights(network[0], eid) for eid in eids])

    path = context.kept("path", (*network, *eids), make)
    return path.directions, path


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Compute row `row` of the surface, the log losses at `points` [grid, 2]: a unit of work.

    Args in `args`: network, (path, epoch); eids: of the path. Returns: {'log_losses': float list [grid]}.
    """
    context = worker.context

    def span() -> PlainSpan | FastSpan:
        directions, _ = directions_of(context, args["network"], args["eids"])
        return span_of(context, [context.stored_weights(*args["network"]), *directions], log=True)

    points = np.array(args["points"])
    at = np.column_stack([np.ones(len(points)), points])
    return {"log_losses": context.kept("plane", tuple(args["network"]), span).losses(at).tolist()}
