"""APGD with the DLR loss (Croce and Hein, ICML 2020, arXiv 2003.01690), L-infinity; and its rule for step sizes.

The rule also serves ascents in the space of weights (`flatness.sharpness`).
"""

import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from attacks.base import Logits, gap, is_adversarial, per_image
from attacks.linf_attack import EpsGrid
from attacks.measurement import padded

MOMENTUM = 0.75  # alpha: the part of a step that is new
ENOUGH = 0.75  # rho: the part of the steps that have to climb


def periods(n: int) -> Iterator[int]:
    """How many of n iterations lie between two looks at the step size: 0.22 n, then ever fewer (section 3)."""
    done, length = 0, 0.22
    at = length
    while done < n:
        next_look = min(max(math.ceil(round(at * n, 9)), done + 1), n)
        yield next_look - done
        done = next_look
        length = max(length - 0.03, 0.06)
        at += length


class StepSize:
    """Each climb's step size eta, float64 [B]: halved where the climb has stalled.

    Args:
      eta: the first ones.
    """

    def __init__(self, eta: np.ndarray):
        self.eta = np.array(eta, np.float64)
        self.was_halved = np.zeros(len(self.eta), bool)

    def halve(self, steps: int, climbed: np.ndarray, improved: np.ndarray) -> np.ndarray:
        """Look at a period of `steps` steps. Returns which were halved, bool [B]: they go on from their best point.

        Condition 1: fewer than 0.75 of the steps climbed. Condition 2: neither the step size, at the last look, nor
        the best value, since then, have changed.

        Args:
          climbed: how many of the steps did, [B]. improved: whether there is a new best value, bool [B].
        """
        halved = (climbed < ENOUGH * steps) | (~self.was_halved & ~improved)
        self.eta[halved] /= 2
        self.was_halved = halved
        return halved

    def keep(self, rows: np.ndarray) -> None:
        """Only these climbs go on, bool [B]."""
        self.eta, self.was_halved = self.eta[rows], self.was_halved[rows]


def dlr(z: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Difference of logits ratio, (max_{j != y} z_j - z_y) / (z_pi1 - z_pi3), pi sorting them down; float32 [B].

    It does not depend on the scale of the logits. Of two classes, which have no third, the gap itself.
    """
    if z.shape[1] < 3:
        return gap(z, y)
    top = tf.math.top_k(z, 3).values
    return tf.math.divide_no_nan(gap(z, y), top[:, 0] - top[:, 2])


class AutoPGD(EpsGrid):
    """Projected gradient ascent with momentum and a step size that looks after itself, up the DLR loss.

    Args: as for `EpsGrid`.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        eps_list: tuple[float, ...] = (0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19),
        restarts: int = 1,
        steps: int = 100,
        seed: int = 0,
    ):
        super().__init__(logits, shape, eps_list, restarts, steps, seed)
        x, v = self.images_spec, self._vector(tf.float32)
        scalar, count = tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32)
        self._climb = tf.function(
            self._climb, input_signature=[x, self._vector(tf.int32), scalar, v, x, x, v, x, v, count, count]
        )

    def _attempt(self, images, labels, x, eps):
        n = len(images)
        result, fooled = x.copy(), np.zeros(n, bool)
        rows, step = np.arange(n), StepSize(np.full(n, 2 * eps))
        state = [x, x, np.full(n, -np.inf, np.float32), x, np.full(n, -np.inf, np.float32)]
        first = 0
        for length in periods(self.steps):
            pad = padded(np.arange(len(rows)))
            given = images[rows[pad]], labels[rows[pad]], eps, step.eta[pad].astype(np.float32)
            climb = self._climb(*given, *(part[pad] for part in state), first, length)
            *new, climbed, found = (t.numpy()[: len(rows)] for t in climb)
            result[rows[found]], fooled[rows[found]] = new[0][found], True
            halved = step.halve(length, climbed, new[4] > state[4])
            for k in (0, 1):  # from the best point on, without momentum
                new[k] = np.where(halved[:, None, None, None], new[3], new[k])
            new[2] = np.where(halved, new[4], new[2])
            state, rows = [part[~found] for part in new], rows[~found]
            step.keep(~found)
            first += length
            if not len(rows):
                break
        return result, fooled

    def _climb(self, x0, y, eps, eta, x, before, value, best, best_value, first, n):
        """n steps. Returns x, before, value, best, best_value, climbed, found; x is the first adversarial iterate
        where there is one.

        Args:
          x, before: this iterate and the one before, [B, h, w, c]; value: of the DLR loss at the latter, [B].
          best, best_value: the best iterate so far and its value. first: how many steps were made before.
        """

        def project(x):
            return tf.clip_by_value(tf.clip_by_value(x, x0 - eps, x0 + eps), 0, 1)

        def look(x):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                z = self.logits(x)
                new = dlr(z, y)
            return new, tape.gradient(new, x), is_adversarial(self.gap(z, y), z)

        def step(k, x, before, value, best, best_value, climbed, found):
            new, gradient, adversarial = look(x)
            found |= adversarial
            climbed += tf.cast(new > value, tf.float32)
            better = new > best_value
            best, best_value = tf.where(per_image(better), x, best), tf.where(better, new, best_value)
            to = project(x + per_image(eta) * tf.sign(gradient))
            momentum = tf.where(first + k > 0, MOMENTUM, 1.0)
            next_x = project(x + momentum * (to - x) + (1 - momentum) * (x - before))
            next_x, x_was = tf.where(per_image(found), x, next_x), x
            return k + 1, next_x, x_was, new, best, best_value, climbed, found

        zero = tf.zeros_like(value)
        state = (0, x, before, value, best, best_value, zero, tf.zeros_like(y, tf.bool))
        _, x, *rest, found = tf.while_loop(lambda k, *_: k < n, step, state)
        z = self.logits(x)
        return x, *rest, found | is_adversarial(self.gap(z, y), z)
