"""The step-size rule of APGD (Croce and Hein, ICML 2020, arXiv 2003.01690, section 3).

It serves ascents in images (`attacks.apgd`) and in weights (`flatness.sharpness`). No TensorFlow here.
"""

import math
from collections.abc import Iterator

import numpy as np

MOMENTUM = 0.75  # alpha: the weight of the new step
ENOUGH = 0.75  # rho: the fraction of the steps that must climb


def periods(n: int) -> Iterator[int]:
    """Generate the numbers of iterations between two checks of the step size: 0.22 n, then fewer (section 3)."""
    done, length = 0, 0.22
    at = length
    while done < n:
        next_look = min(max(math.ceil(round(at * n, 9)), done + 1), n)
        yield next_look - done
        done = next_look
        length = max(length - 0.03, 0.06)
        at += length


class StepSize:
    """The step sizes eta of several climbs, float64 [B]: halved where a climb stalls.

    Args:
      eta: the first ones.
    """

    def __init__(self, eta: np.ndarray):
        self.eta = np.array(eta, np.float64)
        self.was_halved = np.zeros(len(self.eta), bool)

    def halve(self, steps: int, climbed: np.ndarray, improved: np.ndarray) -> np.ndarray:
        """Judge a period of `steps` steps. Returns which were halved, bool [B]: they continue from their best point.

        Condition 1: fewer than 0.75 of the steps climbed. Condition 2: neither the step size, at the last check, nor
        the best value, since then, has changed.

        Args:
          climbed: how many of the steps did, [B]. improved: whether there is a new best value, bool [B].
        """
        halved = (climbed < ENOUGH * steps) | (~self.was_halved & ~improved)
        self.eta[halved] /= 2
        self.was_halved = halved
        return halved

    def keep(self, rows: np.ndarray) -> None:
        """Drop all climbs but these, bool [B]."""
        self.eta, self.was_halved = self.eta[rows], self.was_halved[rows]
