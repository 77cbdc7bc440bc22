"""Three-point interpolation: the loss in the plane of three networks (arXiv 1801.02254, section IV).

The loss at (X, Y) is the mean training loss of the network with weights X*w1 + Y*w2 + Z*w3, Z = 1 - X - Y.
Batch norm's running statistics are combined like weights.
"""

from typing import Any

import numpy as np

from engine.units import Worker
from flatness.span import FastSpan, PlainSpan, span_of
from support.screen import Update

LOW, HIGH = -0.4, 1.3


def grid(n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Return X and Y, float64 [n, n] each: a row has one Y."""
    side = np.linspace(LOW, HIGH, n)
    X, Y = np.meshgrid(side, side)
    return X, Y


def coefficients(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return the coefficients of the three networks at the points (X, Y), [n] each: [n, 3]."""
    return np.stack([X, Y, 1 - X - Y], axis=1)


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Compute row `row` of the surface through the three `networks`, each (path, epoch): a unit of work.

    Returns: {'losses': float list [grid]}.
    """
    context, places = worker.context, args["networks"]

    def plane() -> PlainSpan | FastSpan:
        return span_of(context, [context.stored_weights(*network) for network in places])

    X, Y = (values[args["row"]] for values in grid(context.f.grid))
    losses = context.kept("plane", places, plane).losses(coefficients(X, Y))
    return {"losses": losses.tolist()}
