"""A certified lower bound on distances: margin over Lipschitz constant (Tsuzuku et al., NeurIPS 2018).

z_j - z_y changes by at most L ||w_j - w_y|| ||x' - x||, with L a Lipschitz constant of everything below the last
layer, here the product of the layers' own constants. So every x' closer than the smallest
(z_y - z_j) / (L ||w_j - w_y||) is classified as y.

Two layers with only a relu between them have a smaller constant together: a relu is half the identity plus half a
1-Lipschitz map, so V relu(W .) has the constant (||V W|| + ||V|| ||W||) / 2, at most ||V|| ||W|| (Combettes and
Pesquet 2020, arXiv 1903.01014). Through a max pool the same argument never helps: its middle is the mean of four
values, and ||V mean W|| would have to be below ||V|| ||W|| / 4.
"""

import math
from typing import Any

import numpy as np

from attacks.local_certificate import LocalCertificate
from attacks.operator_norms import FLOAT32, conv_norm, fc_norm, pool_norm
from models.architectures import LayerSpec
from support.screen import Update


def lipschitz(specs: list[LayerSpec], weights: list[np.ndarray], act_type: str) -> tuple[float, np.ndarray]:
    """Return Lipschitz constants of the gaps z_j - z_k, in L2.

    Args:
      specs: the layers. weights: of the layers that have one, in order, with all that multiplies
        (batch norm, the input's normalization) in them: `effective_weights` of a model.
      act_type: all are 1-Lipschitz but relu2, which has no Lipschitz constant.

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
        if spec.weight_shape is None:
            bound, below = bound * pool_norm(spec), None
            continue
        weight = weights.pop(0)
        if spec.kind == "C":
            bound, bound_below, below = bound * conv_norm(weight, spec), bound, None
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
    """Return a Lipschitz constant of x -> relu(x first) second, matrices [cin, cout]; see the module."""
    return (fc_norm(first @ second) + fc_norm(first) * fc_norm(second)) / 2


def _distances(matrix: np.ndarray) -> np.ndarray:
    """Return the distances of a matrix's columns, [C, C]."""
    columns = matrix.T
    return np.stack([np.linalg.norm(columns - column, axis=1) for column in columns])


def certified(logits: np.ndarray, labels: np.ndarray, bound: float, difference: np.ndarray) -> np.ndarray:
    """Return the radius in which no image of another class lies, float64 [B]; 0 for a misclassified image.

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
    """Certified lower bounds of distances to other classes, for a network as it is now.

    A radius in L2 is also one in L1; divided by the square root of the number of pixels, it is one in L-infinity.

    Args:
      model: a `models.network.Network`.
      norm: of the distances, a key of NORMS.
      local: also use the network near each image (`attacks.local_certificate`).
    """

    def __init__(self, model: Any, norm: str, local: bool):
        self.constants = lipschitz(model.specs, model.effective_weights(), model.act_type)
        self.longest = math.sqrt(math.prod(model.specs[0].in_shape)) if norm == "Linf" else 1.0
        self.local: Any = LocalCertificate(model, NORMS[norm]) if local else None

    def __call__(self, images: np.ndarray, logits: np.ndarray, labels: np.ndarray, update: Update) -> np.ndarray:
        """Return the radii, float64 [B]; 0 for a misclassified image.

        Args:
          images: float32 [B, h, w, c] in [0, 1]. logits: of them, float32 [B, C]. labels: int [B].
          update: called with the completed fraction; may raise.
        """
        radii = certified(logits, labels, *self.constants) / self.longest
        for k in np.flatnonzero(radii > 0) if self.local is not None else ():
            radii[k] = self.local.radius(images[k], int(labels[k]), float(radii[k]))
            update(k / len(images))
        return radii
