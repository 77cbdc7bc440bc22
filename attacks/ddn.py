"""DDN: decoupling direction and norm (Rony et al., CVPR 2019, arXiv 1811.09600, algorithm 1)."""

import math

import numpy as np
import tensorflow as tf

from attacks.base import Attack, Logits, divide, l2, per_image


class DDN(Attack):
    """Step along the unit gradient, then choose the norm: shrink it when adversarial, else grow it.

    The paper climbs the cross-entropy. Far from the boundary its gradient underflows, and its
    direction is then that of the gap max_{j != y} z_j - z_y; the gap's gradient is followed everywhere,
    so that the path does not depend on the logits' scale.

    Args:
      steps: K. gamma: the norm is multiplied by 1 - gamma or 1 + gamma. init_epsilon: the first norm.
        The step size falls from 1 to 0.01 along a cosine.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        steps: int = 100,
        gamma: float = 0.05,
        init_epsilon: float = 1.0,
        targeted: bool = False,
    ):
        super().__init__(logits, shape, targeted)
        self.steps, self.gamma, self.init_epsilon = steps, gamma, init_epsilon
        self._run = tf.function(self._run, input_signature=[self.images_spec, self._vector(tf.int32)])

    def __call__(self, images, labels, indices=None, tick=lambda part: None):
        adversarial = self._run(images, labels).numpy()
        tick(1.0)
        return adversarial

    def _run(self, x, y):
        worst_norm = l2(tf.maximum(x, 1 - x))

        def step(k, delta, epsilon, best_norm, best):
            _, gradient, adversarial = self.gap_and_gradient(x + delta, y)
            norm = l2(delta)
            better = adversarial & (norm < best_norm)
            best_norm = tf.where(better, norm, best_norm)
            best = tf.where(per_image(better), x + delta, best)
            alpha = 0.01 + 0.99 * (1 + tf.cos(math.pi * tf.cast(k, tf.float32) / self.steps)) / 2
            delta += alpha * divide(gradient, l2(gradient))
            epsilon *= tf.where(adversarial, 1 - self.gamma, 1 + self.gamma)
            epsilon = tf.minimum(epsilon, worst_norm)
            delta *= per_image(tf.math.divide_no_nan(epsilon, l2(delta)))
            return k + 1, tf.clip_by_value(x + delta, 0, 1) - x, epsilon, best_norm, best

        start = (
            0,
            tf.zeros_like(x),
            tf.fill(tf.shape(y), self.init_epsilon),
            tf.fill(tf.shape(y), np.inf),
            x,
        )
        return tf.while_loop(lambda k, *_: k < self.steps, step, start)[-1]
