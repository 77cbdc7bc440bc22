"""Three-point interpolation: the loss in the plane of three networks (arXiv 1801.02254, section IV).

The loss at (X, Y) is the mean training loss of the network with weights X*w1 + Y*w2 + Z*w3, Z = 1 - X - Y.
Batch norm's running statistics are combined like weights.
"""

from typing import Any

import numpy as np

from engine.units import Worker
from flatness.span import Examples, FastSpan, PlainSpan, Tensors, examples_of
from support.screen import Update

LOW, HIGH = -0.4, 1.3


def grid(n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Return X and Y, float64 [n, n] each: a row has one Y."""
    side = np.linspace(LOW, HIGH, n)
    X, Y = np.meshgrid(side, side)
    return X, Y


class Plane:
    """Losses in the plane of three networks, row by row.

    Args:
      examples: the training set.
      networks: three lists of tensors.
      method: 'fast' or 'plain'.
    """

    def __init__(self, examples: Examples, networks: list[Tensors], method: str = "fast"):
        if len(networks) != 3:
            raise ValueError(f"a plane needs three networks, not {len(networks)}")
        fast = method == "fast"
        self._span = FastSpan(examples, networks, keep=3) if fast else PlainSpan(examples, networks)

    def row(self, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Return the losses, float64 [n], at the points of a row of the grid."""
        return self._span.losses(np.stack([X, Y, 1 - X - Y], axis=1))


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Compute row `row` of the surface through the three `networks`, each (path, epoch): a unit of work.

    Returns: {'losses': float list [grid]}.
    """
    context = worker.context
    f = context.f

    def plane() -> Plane:
        weights = [context.stored_weights(*network) for network in args["networks"]]
        return Plane(examples_of(context), weights, f.method)

    X, Y = grid(f.grid)
    row = args["row"]
    losses = context.kept("plane", args["networks"], plane).row(X[row], Y[row])
    return {"losses": losses.tolist()}
