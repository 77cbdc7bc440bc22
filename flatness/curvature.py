"""Curvature of the training loss: the Hessian's largest eigenvalues and its trace.

No matrix is formed: all comes from exact Hessian-vector products over the whole training set, H v =
grad_w <grad_w I(w), v> (Pearlmutter, 1994). Beyond what the papers measure.
"""

import math

import numpy as np
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator, eigsh

from flatness.span import Examples, log_odds

BLOCK_FLOATS = 2**20  # activations of a layer in one pass
TOLERANCE = 1e-4  # relative, of the eigenvalues: the products are float32


class Hessian(LinearOperator):
    """The Hessian of the mean training loss at the model's weights, in the frame of that loss.

    That is H * exp(-log_frame): a network that fits its data to 1e-100 has a Hessian as small, which
    float32 could not hold. Batch norm's running statistics are constants.

    Args:
      examples: the training set, with the model whose variables hold the weights.

    Attributes:
      log_frame: natural log of the mean training loss where that is below 1, else 0.
      shape: (n, n), n trainable numbers in the order of `model.weights`.
      products: how many H v were computed so far.
    """

    def __init__(self, examples: Examples):
        self.examples, self.model, self.products = examples, examples.model, 0
        self._shapes = [tuple(w.shape) for w in self.model.weights]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        super().__init__(np.float64, (sum(self._sizes), sum(self._sizes)))
        width = max(math.prod(spec.out_shape) for spec in self.model.specs)
        self._blocks = examples.blocks(int(np.clip(BLOCK_FLOATS // width, 32, 2**13)))
        self._product = examples.graph("hvp", self._products)
        log_losses = examples.graph("log losses", self._log_losses)
        logs = np.concatenate([log_losses(*self._of(block)).numpy() for block in self._blocks])
        top = logs.max()
        self.log_loss = float(top + np.log(np.exp(logs - top).mean()))
        self.log_frame = min(self.log_loss, 0.0)

    def _of(self, block: slice) -> tuple[tf.Tensor, tf.Tensor]:
        self.examples.tick()
        return self.examples.inputs(block), self.examples.labels[block]

    def _s(self, inputs, labels):
        return log_odds(labels, self.model.after(0, self.model.layers[0].affine(inputs)))

    def _log_losses(self, inputs, labels):
        s = self._s(inputs, labels)
        # Below exp(-37) softplus(s) and exp(s) are the same float64.
        return tf.where(s < -37, s, tf.math.log(tf.nn.softplus(tf.maximum(s, -37))))

    def _products(self, inputs, labels, log_frame, vectors):
        weights = self.model.weights
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                s = self._s(inputs, labels)
                small = tf.exp(tf.minimum(s, -37) - log_frame)
                large = tf.nn.softplus(tf.maximum(s, -37)) * tf.exp(-log_frame)
                loss = tf.reduce_sum(tf.where(s < -37, small, large))
            gradients = inner.gradient(loss, weights)
            slope = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
        products = outer.gradient(slope, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.concat([tf.reshape(p, [-1]) for p in products], 0)

    def _matvec(self, v):
        """H v, float64 [n]."""
        v = np.asarray(v, np.float64).ravel()
        length = np.linalg.norm(v)  # the products are float32: keep them in range
        if length == 0:
            return v
        parts = np.split((v / length).astype(np.float32), np.cumsum(self._sizes)[:-1])
        vectors = [tf.constant(part.reshape(shape)) for part, shape in zip(parts, self._shapes, strict=True)]
        log_frame = tf.constant(self.log_frame, tf.float64)
        total = np.zeros(len(v))
        self.products += 1
        for block in self._blocks:
            total += self._product(*self._of(block), log_frame, vectors).numpy()
        return total * (length / len(self.examples))

    def _adjoint(self):
        return self


def trace(hessian: LinearOperator, probes: int, rng: np.random.Generator) -> tuple[float, float]:
    """Hutchinson's estimate of the trace, and its standard error.

    The mean of v^T H v over random sign vectors v.

    Args:
      probes: how many vectors, at least 2.
    """
    signs = (rng.choice([-1.0, 1.0], hessian.shape[0]) for _ in range(probes))
    values = np.array([v @ hessian.matvec(v) for v in signs])
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(probes))


def measure(hessian: Hessian, k: int, probes: int, rng: np.random.Generator) -> dict:
    """The k largest eigenvalues (algebraically, descending), by Lanczos, and the trace.

    Args:
      k: at most one less than the number of weights.

    Returns: log_loss, log_frame (natural logs), parameters; eigenvalues, trace and trace_error, in the
      frame: times exp(log_frame) they are the loss's own.
    """
    n = hessian.shape[0]
    start = rng.standard_normal(n)
    values = eigsh(hessian, k=min(k, n - 1), which="LA", tol=TOLERANCE, v0=start, return_eigenvectors=False)
    mean, error = trace(hessian, probes, rng)
    return {
        "log_loss": hessian.log_loss,
        "log_frame": hessian.log_frame,
        "parameters": n,
        "eigenvalues": sorted(map(float, values), reverse=True),
        "trace": mean,
        "trace_error": error,
    }


def line(found: dict) -> str:
    """What `measure` found, on one line."""
    values = ", ".join(f"{value:.4g}" for value in found["eigenvalues"])
    frame = f" (times exp({found['log_frame']:.2f}))" if found["log_frame"] else ""
    return f"eigenvalues {values}; trace {found['trace']:.4g} ± {found['trace_error']:.2g}{frame}"
