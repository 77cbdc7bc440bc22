"""APGD with the DLR loss, L-infinity (Croce and Hein, ICML 2020, arXiv 2003.01690)."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from attacks.base import Logits, gap, is_adversarial, per_image
from attacks.linf_attack import EpsGrid
from attacks.measurement import padded
from models.step_size import MOMENTUM, StepSize, periods
from support.device import compiled

TIED = 1e-6  # relative difference of two logits that float32 cannot tell apart


def dlr(z: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Return the difference of logits ratio, (max_{j != y} z_j - z_y) / (z_pi1 - z_pi3), pi sorting them down: [B].

    It does not depend on the scale of the logits. With two classes it is the gap itself. Where the second and the
    third logit are equal it would be -1 whatever the image, without a gradient: there the gap is divided by the
    largest magnitude, as a constant.
    """
    if z.shape[1] < 3:
        return gap(z, y)
    top = tf.math.top_k(z, 3).values
    spread = top[:, 0] - top[:, 2]
    tied = top[:, 1] - top[:, 2] <= TIED * spread
    size = tf.stop_gradient(tf.reduce_max(tf.abs(z), axis=1))
    return tf.math.divide_no_nan(gap(z, y), tf.where(tied, size, spread))


class Climb(NamedTuple):
    """The state of an ascent, between two steps: arrays.

    Attributes:
      x, before: this iterate and the previous one, [B, h, w, c].
      value, gradient: of the loss at x, [B] and [B, h, w, c].
      best, best_value, best_gradient: the best iterate so far, its value and gradient.
    """

    x: Any
    before: Any
    value: Any
    gradient: Any
    best: Any
    best_value: Any
    best_gradient: Any

    def take(self, rows: np.ndarray) -> "Climb":
        """Return the state of these images."""
        return Climb(*(part[rows] for part in self))

    def restarted(self, where: np.ndarray) -> "Climb":
        """Return the state in which images `where`, bool [B], continue from their best iterate, without momentum."""

        def choose(best: np.ndarray, now: np.ndarray) -> np.ndarray:
            return np.where(where if now.ndim == 1 else where[:, None, None, None], best, now)

        return self._replace(
            x=choose(self.best, self.x),
            before=choose(self.best, self.before),
            value=choose(self.best_value, self.value),
            gradient=choose(self.best_gradient, self.gradient),
        )


class AutoPGD(EpsGrid):
    """Projected gradient ascent on the DLR loss, with momentum and an adaptive step size.

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
        state = Climb(x, x, value, gradient, x, value, gradient)
        rows, step, first = np.arange(n), StepSize(np.full(n, 2 * eps)), 0
        for length in periods(self.steps):
            result[rows[found]], fooled[rows[found]] = state.x[found], True
            rows, state = rows[~found], state.take(~found)
            step.keep(~found)
            if not len(rows):
                return result, fooled
            pad = padded(np.arange(len(rows)))
            given = images[rows[pad]], labels[rows[pad]], eps, step.eta[pad].astype(np.float32)
            climb = self._climb(*given, *state.take(pad), first, length)
            *parts, climbed, found = (t.numpy()[: len(rows)] for t in climb)
            after = Climb(*parts)
            halved = step.halve(length, climbed, after.best_value > state.best_value) & ~found
            state = after.restarted(halved)
            first += length
        result[rows[found]], fooled[rows[found]] = state.x[found], True
        return result, fooled

    def _look(self, x, y):
        """Return the DLR loss [B], its gradient [B, h, w, c], and whether x is adversarial, bool [B]."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            z = self.logits(x)
            value = dlr(z, y)
        return value, tape.gradient(value, x), is_adversarial(self.gap(z, y), z)

    def _climb(self, x0, y, eps, eta, x, before, value, gradient, best, best_value, best_gradient, first, n):
        """Take n steps. Returns the state, how many of them climbed, and whether x is adversarial: it then stays.

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
