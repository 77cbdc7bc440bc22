"""FMN: fast minimum-norm attack, L2 (Pintor et al., NeurIPS 2021, arXiv 2102.12827, algorithm 1)."""

import math

import numpy as np
import tensorflow as tf

from attacks.base import Logits, SteppedAttack, divide, l2, per_image


class FMN(SteppedAttack):
    """Steps down the logit difference inside a ball whose radius adapts until it touches the boundary.

    The paper's first radius reaches just to the linearized boundary. Pixels that are clipped to [0, 1]
    shorten every step, so many an image only nears that boundary and never crosses it; here the radius
    is larger by a factor that grows by 1 + gamma_init with every step that has not crossed it.

    Args:
      steps: K. alpha_init: first step size, falling to a hundredth of it along a cosine.
        gamma_init, gamma_final: part by which the radius changes, along a cosine too.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        steps: int = 100,
        alpha_init: float = 1.0,
        gamma_init: float = 0.05,
        gamma_final: float = 0.001,
        targeted: bool = False,
    ):
        super().__init__(logits, shape, steps, np.inf, targeted)
        self.alpha_init, self.gamma_init, self.gamma_final = alpha_init, gamma_init, gamma_final

    def _annealed(self, first, last, k):
        """h_k = h_K + (h_0 - h_K) (1 + cos(pi k / K)) / 2."""
        return last + (first - last) * (1 + tf.cos(math.pi * k / self.steps)) / 2

    def step(self, k, x, delta, epsilon, gap, gradient, adversarial, best_norm):
        alpha = self._annealed(self.alpha_init, self.alpha_init / 100, k)
        gamma = self._annealed(self.gamma_init, self.gamma_final, k)
        gradient_norm = l2(gradient)
        # Until the boundary was crossed once, the ball reaches as far as the linearized one.
        linearized = l2(delta) + tf.math.divide_no_nan(tf.abs(gap), gradient_norm)
        linearized *= (1 + self.gamma_init) ** (k + 1)
        epsilon = tf.where(
            adversarial,
            tf.minimum(epsilon * (1 - gamma), best_norm),
            tf.where(tf.math.is_inf(best_norm), linearized, epsilon * (1 + gamma)),
        )
        delta += alpha * divide(gradient, gradient_norm)
        return delta * per_image(tf.minimum(1.0, tf.math.divide_no_nan(epsilon, l2(delta)))), epsilon
