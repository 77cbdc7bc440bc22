"""FMN: fast minimum-norm attack in L1, L2 and L-infinity (Pintor et al. 2021, arXiv 2102.12827, algorithm 1)."""

import math

import numpy as np
import tensorflow as tf

from attacks.base import Logits, SteppedAttack, divide, l1, l2, linf, per_image


class FMN(SteppedAttack):
    """Descend the logit difference inside a ball whose radius adapts until it touches the boundary.

    The paper's first radius reaches just to the linearized boundary. Pixels that are clipped to [0, 1]
    shorten every step, so that many images approach the boundary without crossing it; here the radius
    is larger by a factor that grows by 1 + gamma_init with every step that has not crossed it.

    Args:
      steps: K. alpha_init: first step size, in L2, falling to a hundredth of it along a cosine; None: 1, and in
        L1 and L-infinity 10: the best of 0.3, 1, 3, 10 and 30 on digits.
        gamma_init, gamma_final: part by which the radius changes, along a cosine too.
    """

    dual = staticmethod(l2)  # of `norm`: |gap| / dual(gradient) is the distance to the linearized boundary
    FIRST_STEP = 1.0

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        steps: int = 100,
        alpha_init: float | None = None,
        gamma_init: float = 0.05,
        gamma_final: float = 0.001,
        targeted: bool = False,
    ):
        super().__init__(logits, shape, steps, np.inf, targeted)
        self.alpha_init = self.FIRST_STEP if alpha_init is None else alpha_init
        self.gamma_init, self.gamma_final = gamma_init, gamma_final

    def project(self, delta: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
        """Return the nearest point of each ball of radius epsilon [B], [B, h, w, c]."""
        return delta * per_image(tf.minimum(1.0, tf.math.divide_no_nan(epsilon, l2(delta))))

    def _annealed(self, first, last, k):
        """Return h_k = h_K + (h_0 - h_K) (1 + cos(pi k / K)) / 2."""
        return last + (first - last) * (1 + tf.cos(math.pi * k / self.steps)) / 2

    def step(self, k, x, delta, epsilon, gap, gradient, adversarial, best_norm):
        alpha = self._annealed(self.alpha_init, self.alpha_init / 100, k)
        gamma = self._annealed(self.gamma_init, self.gamma_final, k)
        # Until the boundary was crossed once, the ball reaches as far as the linearized one.
        linearized = self.norm(delta) + tf.math.divide_no_nan(tf.abs(gap), self.dual(gradient))
        linearized *= (1 + self.gamma_init) ** (k + 1)
        epsilon = tf.where(
            adversarial,
            tf.minimum(epsilon * (1 - gamma), best_norm),
            tf.where(tf.math.is_inf(best_norm), linearized, epsilon * (1 + gamma)),
        )
        delta += alpha * divide(gradient, l2(gradient))
        return self.project(delta, epsilon), epsilon


class FMNLinf(FMN):
    """FMN in L-infinity."""

    norm, dual = staticmethod(linf), staticmethod(l1)
    FIRST_STEP = 10.0

    def project(self, delta, epsilon):
        return tf.clip_by_value(delta, -per_image(epsilon), per_image(epsilon))


class FMNL1(FMN):
    """FMN in L1."""

    norm, dual = staticmethod(l1), staticmethod(linf)
    FIRST_STEP = 10.0

    def project(self, delta, epsilon):
        """Shrink every magnitude by the same amount, to 0 at least (Duchi et al. 2008, figure 1)."""
        sizes = tf.sort(tf.reshape(tf.abs(delta), [tf.shape(delta)[0], -1]), axis=1, direction="DESCENDING")
        count = tf.range(1, tf.shape(sizes)[1] + 1, dtype=tf.float32)
        excess = (tf.cumsum(sizes, axis=1) - epsilon[:, None]) / count  # if the largest `count` of them stay
        # Counted in floats: TensorFlow sums int32 on the host.
        stay = tf.cast(tf.reduce_sum(tf.cast(sizes > excess, tf.float32), axis=1), tf.int32)
        shrink = tf.gather(excess, tf.maximum(stay, 1) - 1, axis=1, batch_dims=1)
        shrink = per_image(tf.where(tf.math.is_inf(epsilon), 0.0, tf.maximum(shrink, 0.0)))
        return tf.sign(delta) * tf.maximum(tf.abs(delta) - shrink, 0.0)
