"""What the attacks share: the definition of an adversarial example, gradients at any scale, the call.

An attack knows a network only as `logits(images)`, float32 [B, h, w, c] in [0, 1] -> float32 [B, C].
The decision of a homogeneous network does not depend on the scale of its logits, which grows without bound during
training. So nothing here depends on it: attacks use signs of gaps, directions of gradients, and gaps
divided by gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from support.device import compiled
from support.screen import Update, ignore

# A gap below this fraction of the largest logit may change its sign with the size of the batch.
ROUNDING = 1e-5

Logits = Callable[[tf.Tensor], tf.Tensor]


def gap(
    z: tf.Tensor, y: tf.Tensor, targeted: bool = False, over: Callable[..., tf.Tensor] = tf.reduce_max
) -> tf.Tensor:
    """Return max_{j != y} z_j - z_y, float32 [B]: positive where an example is adversarial.

    Args:
      z: logits, float32 [B, C].
      y: int32 [B], labels to leave. With targeted: classes to reach; the gap then has the other sign.
      over: reduces the other classes' logits; tf.reduce_logsumexp gives a smooth gap.
    """
    is_y = tf.one_hot(y, tf.shape(z)[1], True, False, dtype=tf.bool)
    z_y = tf.reduce_sum(tf.where(is_y, z, 0.0), axis=1)
    gap = over(tf.where(is_y, -np.inf, z), axis=1) - z_y
    return -gap if targeted else gap


def is_adversarial(gap: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Return whether the gap [B] of the logits z [B, C] is positive by more than rounding, bool [B]."""
    return gap > ROUNDING * tf.reduce_max(tf.abs(z), axis=1)


def per_image(v: tf.Tensor) -> tf.Tensor:
    """Reshape [B] to [B, 1, 1, 1]."""
    return tf.reshape(v, [-1, 1, 1, 1])


def l2(x: tf.Tensor) -> tf.Tensor:
    """Return the L2 norm of each image, [B, h, w, c] -> [B]; exact at sizes whose squares leave float32's range."""
    top = tf.reduce_max(tf.abs(x), axis=[1, 2, 3])
    safe = tf.where(top > 0, top, 1.0)
    return top * tf.sqrt(tf.reduce_sum(tf.square(x / per_image(safe)), axis=[1, 2, 3]))


def l1(x: tf.Tensor) -> tf.Tensor:
    """Return the L1 norm of each image, [B, h, w, c] -> [B]."""
    return tf.reduce_sum(tf.abs(x), axis=[1, 2, 3])


def linf(x: tf.Tensor) -> tf.Tensor:
    """Return the largest magnitude in each image, [B, h, w, c] -> [B]."""
    return tf.reduce_max(tf.abs(x), axis=[1, 2, 3])


def divide(a: tf.Tensor, norm: tf.Tensor) -> tf.Tensor:
    """Return a / norm, image by image, and 0 where norm is: a [B, h, w, c], norm [B]."""
    return tf.math.divide_no_nan(a, per_image(norm))


def normalized(logits: Logits, how: str) -> Logits:
    """Logits divided, image by image, by sum_j abs(z_j) ('sum') or max_j abs(z_j) ('max'), or as they are.

    Of two classes, the divisor counts as a constant: logits z and -z would otherwise have no gradient.
    """
    if how == "none":
        return logits
    reduce = {"sum": tf.reduce_sum, "max": tf.reduce_max}[how]

    def scaled(images):
        z = logits(images)
        size = reduce(tf.abs(z), axis=1, keepdims=True)
        return tf.math.divide_no_nan(z, tf.stop_gradient(size) if z.shape[1] == 2 else size)

    return scaled


class Attack:
    """An attack on a network; a subclass implements it.

    Args:
      logits: the network.
      shape: (h, w, c) of an image.
      targeted: whether labels are classes to reach instead of classes to leave.
    """

    def __init__(self, logits: Logits, shape: tuple[int, int, int], targeted: bool = False):
        self.logits = logits
        self.images_spec = tf.TensorSpec([None, *shape], tf.float32)
        self.targeted = targeted

    def _vector(self, dtype) -> tf.TensorSpec:
        return tf.TensorSpec([None], dtype)

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray | None = None, update: Update = ignore
    ) -> np.ndarray:
        """Search for the nearest adversarial example of each image.

        Args:
          images: float32 [B, h, w, c] in [0, 1].
          labels: int32 [B]; see `gap`.
          indices: int [B], the images' numbers in their set, which random starts depend on.
          update: called about once per second with the completed fraction; may raise to end the attack.

        Returns: float32 [B, h, w, c] in [0, 1]; the image itself where no adversarial example was
          found, or where the image is one already.
        """
        raise NotImplementedError

    def gap(self, z: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return gap(z, y, self.targeted)

    def climbed(self, z: tf.Tensor, y: tf.Tensor, gap: tf.Tensor) -> tf.Tensor:
        """Return what the attack climbs, [B]: the gap, unless a subclass climbs another function of the logits."""
        return gap

    def gap_and_gradient(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """gap [B], the gradient of `climbed` by the image [B, h, w, c], and whether x is adversarial, bool [B]."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            z = self.logits(x)
            gap = self.gap(z, y)
            climbed = self.climbed(z, y, gap)
        return gap, tape.gradient(climbed, x), is_adversarial(gap, z)


class State(NamedTuple):
    """State of a `SteppedAttack` between two steps: tensors or arrays.

    Attributes:
      delta: the perturbation, [B, h, w, c]. epsilon: its norm, or bound, [B].
      best_norm: of the nearest example so far, [B]; infinite without one. best: that example, [B, h, w, c].
    """

    delta: Any
    epsilon: Any
    best_norm: Any
    best: Any


class SteppedAttack(Attack):
    """K equal steps from the image, each within its own norm epsilon; the result is the nearest example found.

    A subclass implements one `step`.

    Args:
      steps: K. init_epsilon: the first epsilon.

    Attributes:
      norm: in which nearness is measured, [B, h, w, c] -> [B].
    """

    norm = staticmethod(l2)
    PIECE = 25  # steps per call of the graph, at most: between two calls, the attack can be stopped

    def __init__(self, logits: Logits, shape: tuple[int, int, int], steps: int, init_epsilon: float, targeted: bool):
        super().__init__(logits, shape, targeted)
        self.steps, self.init_epsilon = steps, init_epsilon
        k, x, v = tf.TensorSpec([], tf.int32), self.images_spec, self._vector(tf.float32)
        self._run = compiled(self._run, input_signature=[k, k, x, self._vector(tf.int32), x, v, v, x])

    def step(self, k, x, delta, epsilon, gap, gradient, adversarial, best_norm):
        """Take step k of 0, ..., K - 1.

        Args:
          k: float32 scalar. x: images, [B, h, w, c]. delta: the perturbation so far, [B, h, w, c].
          epsilon: its present norm, or bound, float32 [B].
          gap, gradient, adversarial: at x + delta; see `Attack.gap_and_gradient`.
          best_norm: of the nearest example so far, float32 [B]; infinite without one.

        Returns: the next delta (not yet clipped to where x + delta is an image) and epsilon.
        """
        raise NotImplementedError

    def __call__(self, images, labels, indices=None, update=ignore):
        epsilon, infinite = (np.full(len(images), value, np.float32) for value in (self.init_epsilon, np.inf))
        state = State(np.zeros_like(images), epsilon, infinite, images)
        for first in range(0, self.steps, self.PIECE):
            last = min(first + self.PIECE, self.steps)
            state = State(*self._run(first, last, images, labels, *state))
            update(last / self.steps)
        return state.best.numpy()

    def _run(self, first, last, x, y, delta, epsilon, best_norm, best):
        def step(k, delta, epsilon, best_norm, best):
            gap, gradient, adversarial = self.gap_and_gradient(x + delta, y)
            norm = self.norm(delta)
            better = adversarial & (norm < best_norm)
            best_norm = tf.where(better, norm, best_norm)
            best = tf.where(per_image(better), x + delta, best)
            delta, epsilon = self.step(
                tf.cast(k, tf.float32), x, delta, epsilon, gap, gradient, adversarial, best_norm
            )
            return k + 1, tf.clip_by_value(x + delta, 0, 1) - x, epsilon, best_norm, best

        start = (first, delta, epsilon, best_norm, best)
        return tf.while_loop(lambda k, *_: k < last, step, start)[1:]
