"""DeepFool, L2 (Moosavi-Dezfooli et al., CVPR 2016, arXiv 1511.04599, algorithm 2)."""

import numpy as np
import tensorflow as tf

from attacks.base import Attack, Logits, divide, is_adversarial, l2, per_image
from attacks.measurement import padded_size
from support.device import compiled
from support.screen import ignore

# Sizes of batches, far beyond any in use; computed here, since inside a traced function it takes seconds.
SIZES = sorted({padded_size(n) for n in range(1, (1 << 16) + 1)})

PIECE = 10  # steps per call of the graph, at most: between two calls, the attack can be stopped


class DeepFool(Attack):
    """Step to the nearest face of the polyhedron that the linearized network makes, until outside.

    The gradients of all classes come from one forward pass. Images outside leave the batch.

    Args:
      steps: the maximum number.
      overshoot: eta; the perturbation is taken 1 + eta times, to cross the boundary.
    """

    def __init__(self, logits: Logits, shape: tuple[int, int, int], steps: int = 50, overshoot: float = 0.02):
        super().__init__(logits, shape)
        self.steps, self.overshoot = steps, overshoot
        x = self.images_spec
        self._run = compiled(
            self._run,
            input_signature=[tf.TensorSpec([], tf.int32), x, self._vector(tf.int32), self._vector(tf.bool), x, x],
        )

    def __call__(self, images, labels, indices=None, update=ignore):
        inside, x, r = np.ones(len(images), bool), images, np.zeros_like(images)
        for first in range(0, self.steps, PIECE):
            inside, x, r = self._run(min(PIECE, self.steps - first), images, labels, inside, x, r)
            update(min(first + PIECE, self.steps) / self.steps)
            if not inside.numpy().any():
                break
        return x.numpy()

    def _nearest_face(self, x, y):
        """Smallest step r [B, h, w, c] onto a linearized boundary; whether x is outside already, bool [B]."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(x)
            z = self.logits(x)
        n_classes = z.shape[1]
        # A loop compiles the backward pass once; unrolled, it would be compiled for each class.
        gradients = tf.map_fn(
            lambda one_hot: tape.gradient(z, x, tf.broadcast_to(one_hot, tf.shape(z))), tf.eye(n_classes)
        )  # [C, B, h, w, c]
        gradients = tf.experimental.numpy.moveaxis(gradients, 0, 1)
        w = gradients - tf.gather(gradients, y, axis=1, batch_dims=1)[:, None]
        f = z - tf.gather(z, y, axis=1, batch_dims=1)[:, None]
        norms = tf.reshape(l2(tf.reshape(w, tf.concat([[-1], tf.shape(x)[1:]], 0))), [-1, n_classes])
        is_y = tf.one_hot(y, n_classes, True, False, dtype=tf.bool)
        # A class with the same gradient as the label cannot be reached by a step.
        reachable = ~is_y & (norms > 0)
        distance = tf.where(reachable, tf.math.divide_no_nan(tf.abs(f), norms), tf.float32.max)
        nearest = tf.argmin(distance, axis=1)
        w_l, norm_l = (tf.gather(a, nearest, axis=1, batch_dims=1) for a in (w, norms))
        # Slightly beyond the boundary, or rounding could keep x on this side forever.
        length = tf.reduce_min(distance, axis=1) + 1e-4
        return divide(w_l, norm_l) * per_image(length), is_adversarial(self.gap(z, y), z)

    def _run(self, steps, x0, y, inside, x, r):
        """Advance the images inside by `steps`. Returns which are still inside, bool [B], x and r, [B, h, w, c]."""
        n = tf.shape(y)[0]
        sizes = tf.constant(SIZES)

        def step(k, n_inside, inside, x, r):
            # Images inside come first; others only pad the batch to one of a few sizes.
            size = tf.minimum(sizes[tf.searchsorted(sizes, n_inside[None])[0]], n)
            rows = tf.argsort(tf.cast(~inside, tf.int32), stable=True)[:size][:, None]
            x_rows, x0_rows = tf.gather_nd(x, rows), tf.gather_nd(x0, rows)
            r_step, outside = self._nearest_face(x_rows, tf.gather_nd(y, rows))
            outside |= ~tf.gather(inside, rows[:, 0])
            r = tf.tensor_scatter_nd_add(r, rows, tf.where(per_image(outside), 0.0, r_step))
            moved = tf.clip_by_value(x0_rows + (1 + self.overshoot) * tf.gather_nd(r, rows), 0, 1)
            x = tf.tensor_scatter_nd_update(x, rows, tf.where(per_image(outside), x_rows, moved))
            # As numbers: on a GPU TensorFlow cannot scatter booleans.
            still = tf.cast(~outside, tf.float32)
            inside = tf.tensor_scatter_nd_update(tf.cast(inside, tf.float32), rows, still) > 0
            return k + 1, tf.reduce_sum(tf.cast(inside, tf.int32)), inside, x, r

        return tf.while_loop(
            lambda k, n_inside, *_: (k < steps) & (n_inside > 0),
            step,
            (0, tf.reduce_sum(tf.cast(inside, tf.int32)), inside, x, r),
        )[2:]
