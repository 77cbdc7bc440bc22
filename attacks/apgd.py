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
from device import compiled

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
        x, y, v = self.images_spec, self._vector(tf.int32), self._vector(tf.float32)
        scalar, count = tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32)
        self._look = compiled(self._look, input_signature=[x, y])
        self._climb = compiled(self._climb, input_signature=[x, y, scalar, v, x, x, v, x, x, v, x, count, count])

    def _attempt(self, images, labels, x, eps):
        n = len(images)
        result, fooled = x.copy(), np.zeros(n, bool)
        pad = padded(np.arange(n))
        value, gradient, found = (t.numpy()[:n] for t in self._look(x[pad], labels[pad]))
        # This iterate, the one before, value and gradient of the loss here; the best iterate, its value and gradient.
        state = [x, x, value, gradient, x, value, gradient]
        rows, step, first = np.arange(n), StepSize(np.full(n, 2 * eps)), 0
        for length in periods(self.steps):
            result[rows[found]], fooled[rows[found]] = state[0][found], True
            rows, state = rows[~found], [part[~found] for part in state]
            step.keep(~found)
            if not len(rows):
                return result, fooled
            pad = padded(np.arange(len(rows)))
            given = images[rows[pad]], labels[rows[pad]], eps, step.eta[pad].astype(np.float32)
            best_value = state[5]
            climb = self._climb(*given, *(part[pad] for part in state), first, length)
            *state, climbed, found = (t.numpy()[: len(rows)] for t in climb)
            halved = step.halve(length, climbed, state[5] > best_value) & ~found
            for k, best in ((0, 4), (1, 4), (2, 5), (3, 6)):  # from the best iterate on, without momentum
                where = halved if state[k].ndim == 1 else halved[:, None, None, None]
                state[k] = np.where(where, state[best], state[k])
            first += length
        result[rows[found]], fooled[rows[found]] = state[0][found], True
        return result, fooled

    def _look(self, x, y):
        """The DLR loss [B], its gradient [B, h, w, c], and whether x is adversarial, bool [B]."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            z = self.logits(x)
            value = dlr(z, y)
        return value, tape.gradient(value, x), is_adversarial(self.gap(z, y), z)

    def _climb(self, x0, y, eps, eta, x, before, value, gradient, best, best_value, best_gradient, first, n):
        """n steps. Returns the state, how many of them climbed, and whether x is adversarial: it then stays.

        Args:
          x0: the images. eta: step sizes [B]. x, ..., best_gradient: the state. first: how many steps came before.
        """

        def project(x):
            return tf.clip_by_value(tf.clip_by_value(x, x0 - eps, x0 + eps), 0, 1)

        def step(k, x, before, value, gradient, best, best_value, best_gradient, climbed, found):
            to = project(x + per_image(eta) * tf.sign(gradient))
            momentum = tf.where(first + k > 0, MOMENTUM, 1.0)
            to = project(x + momentum * (to - x) + (1 - momentum) * (x - before))
            before, x = x, tf.where(per_image(found), x, to)
            new, gradient, adversarial = self._look(x, y)
            climbed += tf.cast(new > value, tf.float32)
            better = new > best_value
            best, best_gradient = (
                tf.where(per_image(better), now, so_far) for now, so_far in ((x, best), (gradient, best_gradient))
            )
            best_value = tf.where(better, new, best_value)
            return k + 1, x, before, new, gradient, best, best_value, best_gradient, climbed, found | adversarial

        state = (0, x, before, value, gradient, best, best_value, best_gradient)
        none = tf.zeros_like(value), tf.zeros_like(y, tf.bool)
        return tf.while_loop(lambda k, *_: k < n, step, (*state, *none))[1:]
