"""FMN: fast minimum-norm attack, L2 (Pintor et al., NeurIPS 2021, arXiv 2102.12827, algorithm 1)."""

import math

import numpy as np
import tensorflow as tf

from attacks.base import Attack, Logits, divide, l2, per_image


class FMN(Attack):
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
        super().__init__(logits, shape, targeted)
        self.steps, self.alpha_init = steps, alpha_init
        self.gamma_init, self.gamma_final = gamma_init, gamma_final
        self._run = tf.function(self._run, input_signature=[self.images_spec, self._vector(tf.int32)])

    def __call__(self, images, labels, indices=None, tick=lambda part: None):
        adversarial = self._run(images, labels).numpy()
        tick(1.0)
        return adversarial

    def _annealed(self, first, last, k):
        """h_k = h_K + (h_0 - h_K) (1 + cos(pi k / K)) / 2."""
        return last + (first - last) * (1 + tf.cos(math.pi * tf.cast(k, tf.float32) / self.steps)) / 2

    def _run(self, x, y):
        def step(k, delta, epsilon, best_norm, best):
            gap, gradient, adversarial = self.gap_and_gradient(x + delta, y)
            alpha = self._annealed(self.alpha_init, self.alpha_init / 100, k)
            gamma = self._annealed(self.gamma_init, self.gamma_final, k)
            norm, gradient_norm = l2(delta), l2(gradient)
            better = adversarial & (norm < best_norm)
            best_norm = tf.where(better, norm, best_norm)
            best = tf.where(per_image(better), x + delta, best)
            # Until the boundary was crossed once, the ball reaches as far as the linearized one.
            linearized = norm + tf.math.divide_no_nan(tf.abs(gap), gradient_norm)
            linearized *= (1 + self.gamma_init) ** tf.cast(k + 1, tf.float32)
            epsilon = tf.where(
                adversarial,
                tf.minimum(epsilon * (1 - gamma), best_norm),
                tf.where(tf.math.is_inf(best_norm), linearized, epsilon * (1 + gamma)),
            )
            delta += alpha * divide(gradient, gradient_norm)
            delta *= per_image(tf.minimum(1.0, tf.math.divide_no_nan(epsilon, l2(delta))))
            return k + 1, tf.clip_by_value(x + delta, 0, 1) - x, epsilon, best_norm, best

        infinite = tf.fill(tf.shape(y), np.inf)
        start = (0, tf.zeros_like(x), infinite, infinite, x)
        return tf.while_loop(lambda k, *_: k < self.steps, step, start)[-1]
