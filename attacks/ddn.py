"""DDN: decoupling direction and norm (Rony et al., CVPR 2019, arXiv 1811.09600, algorithm 1)."""

import math

import tensorflow as tf

from attacks.base import Logits, SteppedAttack, divide, l2, per_image


class DDN(SteppedAttack):
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
        super().__init__(logits, shape, steps, init_epsilon, targeted)
        self.gamma = gamma

    def step(self, k, x, delta, epsilon, gap, gradient, adversarial, best_norm):
        alpha = 0.01 + 0.99 * (1 + tf.cos(math.pi * k / self.steps)) / 2
        delta += alpha * divide(gradient, l2(gradient))
        epsilon *= tf.where(adversarial, 1 - self.gamma, 1 + self.gamma)
        epsilon = tf.minimum(epsilon, l2(tf.maximum(x, 1 - x)))  # the farthest image
        return delta * per_image(tf.math.divide_no_nan(epsilon, l2(delta))), epsilon
