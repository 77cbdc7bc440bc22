"""How to multiply by the Hessian of the training loss, and the log of that loss with its gradient.

No matrix is formed: H v = grad_w <grad_w I(w), v>, exactly and over the whole training set (Pearlmutter, 1994).
"""

import math
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator

from flatness.span import Examples, mean_of
from models import losses
from support.screen import Throttle, Update, ignore, log

BLOCK_FLOATS = 2**20  # activations of a layer in one pass


def logits_of(model: Any, inputs: tf.Tensor) -> tf.Tensor:
    """Return logits [b, C] from layer 0's input."""
    return model.after(0, model.layers[0].affine(inputs))


class LogLoss:
    """The natural log of the mean training loss, and its gradient: both finite at any size of the loss.

    Args:
      examples: the training set, with the model whose variables hold the weights.
      update: called with the completed fraction of each pass; may raise.
    """

    def __init__(self, examples: Examples, update: Update = ignore):
        self.examples, self.model, self.update = examples, examples.model, update
        width = max(math.prod(spec.out_shape) for spec in self.model.specs)
        self.blocks = examples.blocks(int(np.clip(BLOCK_FLOATS // width, 32, 2**13)))

    def of(self, block: slice) -> tuple[tf.Tensor, tf.Tensor]:
        """Return layer 0's input and the labels of a block."""
        self.update(block.start / len(self.examples))
        return self.examples.inputs(block), self.examples.labels[block]

    def value(self) -> float:
        """Return log I."""
        model = self.model  # not self: the graph outlives this

        def log_sum(inputs, labels):
            return tf.reduce_logsumexp(losses.log_cross_entropy(labels, logits_of(model, inputs)))

        graph = self.examples.graph("log sum", log_sum)
        sums = np.array([graph(*self.of(block)).numpy() for block in self.blocks])
        return float(mean_of(sums, len(self.examples), log=True))

    def value_and_gradient(self) -> tuple[float, np.ndarray]:
        """Return log I and its gradient by `model.weights`, float64 [n].

        A block's own log of its sum of losses is differentiated: its gradient is of float32's size. The blocks'
        gradients are then averaged, weighted by their losses.
        """
        model = self.model

        def log_sum(inputs, labels):
            with tf.GradientTape() as tape:
                total = tf.reduce_logsumexp(losses.log_cross_entropy(labels, logits_of(model, inputs)))
            gradients = tape.gradient(total, model.weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return total, tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)

        graph = self.examples.graph("log sum and gradient", log_sum)
        log_total, mean = -np.inf, np.zeros(1)
        for block in self.blocks:
            log_sum_of_block, gradient = (part.numpy() for part in graph(*self.of(block)))
            new = np.logaddexp(log_total, log_sum_of_block)
            mean = np.exp(log_total - new) * mean + np.exp(log_sum_of_block - new) * gradient.astype(np.float64)
            log_total = new
        return float(log_total - np.log(len(self.examples))), mean


class Hessian(LinearOperator):
    """The Hessian of the mean training loss at the model's weights, in the frame of that loss, or a part of it.

    That is H * exp(-log_frame): where the loss is 1e-100, the Hessian is as small, beyond the range of float32. Batch
    norm's running statistics are constants.

    Args:
      examples: the training set, with the model whose variables hold the weights.
      layer: only the block of this layer's weights, counted from 0; None: of all weights.
      gauss_newton: only J^T (d2 loss / dz2) J, with J = dz/dw: without the second derivatives of the logits z.
      update: called at every block of every product; may raise. Its fraction is that of the product.

    Attributes:
      log_frame: natural log of the mean training loss where that is below 1, else 0.
      shape: (n, n), n trainable numbers in the order of `model.weights`.
      products: the number of products H v so far.
    """

    def __init__(
        self, examples: Examples, layer: int | None = None, gauss_newton: bool = False, update: Update = ignore
    ):
        self.examples, self.model, self.products = examples, examples.model, 0
        self._due = Throttle(30)
        own = self.model.weights if layer is None else self.model.layers[layer].trainable_variables
        self._weights = [w for w in self.model.weights if any(w is v for v in own)]
        self._shapes = [tuple(w.shape) for w in self._weights]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        super().__init__(np.float64, (sum(self._sizes), sum(self._sizes)))
        product = self._gauss_newton_products if gauss_newton else self._products
        self._product = examples.graph(("product", layer, gauss_newton), product)
        self._passes = LogLoss(examples, update)
        self.log_loss = self._passes.value()
        self.log_frame = min(self.log_loss, 0.0)

    def _products(self, inputs, labels, log_frame, vectors):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                logits = logits_of(self.model, inputs)
                loss = tf.reduce_sum(losses.cross_entropy_in_frame(labels, logits, log_frame))
            gradients = inner.gradient(loss, self._weights)
            slope = _dot(gradients, vectors)
        return _flat(outer.gradient(slope, self._weights, unconnected_gradients=tf.UnconnectedGradients.ZERO))

    def _gauss_newton_products(self, inputs, labels, log_frame, vectors):
        with tf.GradientTape(persistent=True) as outer:
            logits = logits_of(self.model, inputs)
            u = tf.zeros_like(logits)
            outer.watch(u)
            back = outer.gradient(logits, self._weights, output_gradients=u)  # J^T u: linear in u
            slope = _dot(back, vectors)
        along = outer.gradient(slope, u)  # J v
        z = tf.stop_gradient(logits)
        with tf.GradientTape() as second:
            second.watch(z)
            with tf.GradientTape() as first:
                first.watch(z)
                loss = tf.reduce_sum(losses.cross_entropy_in_frame(labels, z, log_frame))
            slope = tf.reduce_sum(first.gradient(loss, z) * along)
        return _flat(outer.gradient(logits, self._weights, output_gradients=second.gradient(slope, z)))

    def over_the_loss(self, value: float) -> float:
        """Return an eigenvalue in the frame, divided by the loss in the frame."""
        return value * math.exp(self.log_frame - self.log_loss)

    def times_lr(self, value: float, info: dict[str, Any]) -> float:
        """Return the true value of an eigenvalue in the frame, times the true learning rate of an epoch."""
        return value * info["lr"] * math.exp(self.log_frame - info["log_frame"])

    def _matvec(self, v):
        """Return H v, float64 [n]."""
        v = np.asarray(v, np.float64).ravel()
        length = np.linalg.norm(v)  # keep the float32 products in range
        if length == 0:
            return v
        parts = np.split((v / length).astype(np.float32), np.cumsum(self._sizes)[:-1])
        vectors = [tf.constant(part.reshape(shape)) for part, shape in zip(parts, self._shapes, strict=True)]
        log_frame = tf.constant(self.log_frame, tf.float64)
        total = np.zeros(len(v))
        self.products += 1
        if self._due():
            log.info("%d Hessian-vector products so far", self.products)
        for block in self._passes.blocks:
            total += self._product(*self._passes.of(block), log_frame, vectors).numpy()
        return total * (length / len(self.examples))

    def _adjoint(self):
        return self


def _dot(a: list[tf.Tensor], b: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b, strict=True)])


def _flat(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)
