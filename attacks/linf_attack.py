"""L-infinity projected gradient descent (Madry et al., ICLR 2018, arXiv 1706.06083)."""

import numpy as np
import tensorflow as tf
from cleverhans.tf2.utils import clip_eta, optimize_linear

from attacks.base import Attack, Logits, gap, is_adversarial, per_image
from attacks.measurement import padded
from support.device import compiled
from support.screen import ignore

PIECE = 25  # steps per call of the graph; between two calls, finished images leave the batch


def cw_loss(z: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Return -relu(z_y - max_{j != y} z_j + 50), float32 [B]: climbs until an image is wrong by 50 logits."""
    return -tf.nn.relu(50 - gap(z, y))


class EpsGrid(Attack):
    """For each eps, ascending: restarts from random points of the ball. A subclass implements an attempt.

    An image is done at its first adversarial iterate; only robust images continue with the next
    restart and the next eps.

    Args:
      eps_list: radii. restarts: for each of them. steps: K, of an attempt. seed: of the starts.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        eps_list: tuple[float, ...],
        restarts: int,
        steps: int,
        seed: int,
    ):
        super().__init__(logits, shape)
        self.eps_list, self.restarts, self.steps, self.seed = sorted(eps_list), restarts, steps, seed

    def __call__(self, images, labels, indices=None, update=ignore):
        indices = np.arange(len(images)) if indices is None else indices
        best = images.copy()
        robust = np.arange(len(images))
        rounds = len(self.eps_list) * self.restarts
        for k in range(rounds):
            eps = self.eps_list[k // self.restarts]
            x = np.stack([self._start(images[i], indices[i], k, eps) for i in robust])
            x, found = self._attempt(images[robust], labels[robust], x, eps)
            best[robust[found]] = x[found]
            robust = robust[~found]
            update((k + 1) / rounds)
            if not len(robust):
                break
        return best

    def _start(self, image, index, k, eps):
        eta = np.random.default_rng([self.seed, int(index), k]).uniform(-eps, eps, image.shape)
        return np.clip(image + eta, 0, 1).astype(np.float32)

    def _attempt(self, images, labels, x, eps):
        """Make at most K steps from x. Returns x, adversarial where one was reached, and whether it was, bool [B]."""
        raise NotImplementedError


class ProjectedGradientDescent(EpsGrid):
    """K steps up the CW loss from each start.

    CleverHans gives the step (`optimize_linear`) and the projection (`clip_eta`); a test compares
    with its `projected_gradient_descent`, which gives the same result but loops in Python, does not
    stop at success, and draws its starts from TensorFlow's global stream. Here the starts are drawn
    from (seed, image, eps, restart), independent of the other images in the batch.

    Args:
      stepsize: of a step, as a part of eps. The others: as for `EpsGrid`.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        eps_list: tuple[float, ...] = (0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19),
        restarts: int = 10,
        steps: int = 100,
        stepsize: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(logits, shape, eps_list, restarts, steps, seed)
        self.stepsize = stepsize
        scalar, count = tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32)
        x = self.images_spec
        self._climb = compiled(self._climb, input_signature=[x, x, self._vector(tf.int32), scalar, count])

    def _attempt(self, images, labels, x, eps):
        active, fooled = np.arange(len(images)), np.zeros(len(images), bool)
        for first in range(0, self.steps, PIECE):
            piece = min(PIECE, self.steps - first)
            rows = active[padded(np.arange(len(active)))]
            result = self._climb(images[rows], x[rows], labels[rows], eps, piece)
            new, found = (t.numpy()[: len(active)] for t in result)
            x[active], fooled[active] = new, found
            active = active[~found]
            if not len(active):
                break
        return x, fooled

    def _climb(self, x0, x, y, eps, n):
        """Take n steps from x. Returns the first adversarial iterate, or the last, and whether it is adversarial."""

        def step(k, x, found):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                z = self.logits(x)
                loss = cw_loss(z, y)
            found |= is_adversarial(self.gap(z, y), z)
            move = optimize_linear(tape.gradient(loss, x), self.stepsize * eps, norm=np.inf)
            eta = clip_eta(tf.clip_by_value(x + move, 0, 1) - x0, norm=np.inf, eps=eps)
            return k + 1, tf.where(per_image(found), x, tf.clip_by_value(x0 + eta, 0, 1)), found

        _, x, found = tf.while_loop(lambda k, *_: k < n, step, (0, x, tf.zeros_like(y, tf.bool)))
        z = self.logits(x)
        return x, found | is_adversarial(self.gap(z, y), z)
