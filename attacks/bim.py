"""L2 basic iterative method (Kurakin et al. 2016, arXiv 1607.02533; L2 steps as in Madry et al. 2017)."""

import math

import numpy as np
import tensorflow as tf
from cleverhans.tf2.utils import clip_eta, optimize_linear

from attacks.base import Attack, Logits, is_adversarial, per_image
from attacks.measurement import padded
from models.losses import log_odds
from support.device import compiled
from support.screen import ignore


class BasicIterativeMethod(Attack):
    """K steps of fixed length up the cross-entropy inside a ball; the smallest ball is searched for each image.

    The steps follow the gradient of the log-odds, which has the cross-entropy's direction and does not underflow.

    Lengths are per pixel (root mean square), stepsize and init_epsilon as in Foolbox 1's
    L2BasicIterativeAttack with its defaults: the ratio of the two stays as the radius changes, the
    radius grows by a half until an example is found, and is then bisected.

    CleverHans provides the direction (`optimize_linear`) and the projection (`clip_eta`). Its
    `basic_iterative_method` itself is not usable here: it fails in a check, uses one radius
    for all images, and loops in Python. `optimize_linear` treats a gradient shorter than 1e-6 as
    zero, so the gradient is first scaled to a largest entry of 1.

    Args:
      steps: K, iterations in one ball. stepsize, init_epsilon: see above.
      search_steps: halvings, and growths at most.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        steps: int = 10,
        stepsize: float = 0.05,
        init_epsilon: float = 0.3,
        search_steps: int = 20,
    ):
        super().__init__(logits, shape)
        self.steps, self.search_steps = steps, search_steps
        self.init_epsilon = init_epsilon * math.sqrt(math.prod(shape))
        self.ratio = stepsize / init_epsilon
        self._try = compiled(
            self._try, input_signature=[self.images_spec, self._vector(tf.int32), self._vector(tf.float32)]
        )

    def __call__(self, images, labels, indices=None, update=ignore):
        n = len(images)
        best, best_norm = images.copy(), np.full(n, np.inf)
        good, bad = np.full(n, np.inf), np.zeros(n)
        epsilon = np.full(n, self.init_epsilon)
        halvings = np.zeros(n, int)
        for k in range(2 * self.search_steps):
            bisecting = np.isfinite(good)
            todo = np.flatnonzero(np.where(bisecting, halvings, k) < self.search_steps)
            if not len(todo):
                break
            halvings[bisecting] += 1
            rows = padded(todo)
            result = self._try(images[rows], labels[rows], epsilon[rows].astype(np.float32))
            x, found = (t.numpy()[: len(todo)] for t in result)
            norm = np.sqrt(((x - images[todo]).astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
            better = found & (norm < best_norm[todo])
            best[todo[better]], best_norm[todo[better]] = x[better], norm[better]
            good[todo[found]], bad[todo[~found]] = epsilon[todo[found]], epsilon[todo[~found]]
            epsilon = np.where(np.isfinite(good), (np.where(np.isfinite(good), good, 0) + bad) / 2, epsilon * 1.5)
            update((k + 1) / (2 * self.search_steps))
        return best

    def _try(self, x0, y, epsilon):
        """Return the first adversarial x among K steps in the balls epsilon [B], and whether there was one."""
        ball = per_image(epsilon)

        def look(x):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                z = self.logits(x)
                loss = log_odds(y, z)
            return tape.gradient(loss, x), is_adversarial(self.gap(z, y), z)

        def step(k, x, found):
            gradient, adversarial = look(x)
            found |= adversarial
            top = tf.reduce_max(tf.abs(gradient), axis=[1, 2, 3], keepdims=True)
            move = optimize_linear(tf.math.divide_no_nan(gradient, top), self.ratio * ball, norm=2)
            eta = clip_eta(tf.clip_by_value(x + move, 0, 1) - x0, norm=2, eps=ball)
            return k + 1, tf.where(per_image(found), x, tf.clip_by_value(x0 + eta, 0, 1)), found

        _, x, found = tf.while_loop(
            lambda k, *_: k < self.steps, step, (0, x0, tf.zeros_like(y, tf.bool))
        )  # fmt: skip
        z = self.logits(x)
        return x, found | is_adversarial(self.gap(z, y), z)
