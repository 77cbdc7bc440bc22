"""Curvature of the training loss: the Hessian's largest eigenvalues and its trace.

No matrix is formed. All comes from exact Hessian-vector products over the whole training set, H v =
grad_w <grad_w I(w), v> (Pearlmutter, 1994). The papers do not measure it.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh

from context import Context
from execution import Tick, weights_of
from flatness.networks import record_of
from flatness.span import Examples, examples_of
from models import losses
from screen import Throttle, log

BLOCK_FLOATS = 2**20  # activations of a layer in one pass
TOLERANCE = 1e-4  # relative, of the eigenvalues: the products are float32
NOISE = 0.2  # beside a guess of length 1
LEAST_PRODUCTS = 8  # so many show a larger eigenvalue that the guess has hidden
BASIS, RESTARTS = 20, 10  # vectors kept at once by `largest_eigenvalue`, and how often it begins anew with its best


class Hessian(LinearOperator):
    """The Hessian of the mean training loss at the model's weights, in the frame of that loss.

    That is H * exp(-log_frame): where the loss is 1e-100 the Hessian is as small, and float32 could not hold it.
    Batch norm's running statistics are constants.

    Args:
      examples: the training set, with the model whose variables hold the weights.

    Attributes:
      log_frame: natural log of the mean training loss where that is below 1, else 0.
      shape: (n, n), n trainable numbers in the order of `model.weights`.
      products: how many H v were computed so far.
    """

    def __init__(self, examples: Examples):
        self.examples, self.model, self.products = examples, examples.model, 0
        self._due = Throttle(30)
        self._shapes = [tuple(w.shape) for w in self.model.weights]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        super().__init__(np.float64, (sum(self._sizes), sum(self._sizes)))
        width = max(math.prod(spec.out_shape) for spec in self.model.specs)
        self._blocks = examples.blocks(int(np.clip(BLOCK_FLOATS // width, 32, 2**13)))
        self._product = examples.graph("hvp", self._products)
        odds = examples.graph("log odds", self._log_odds)
        s = np.concatenate([odds(*self._of(block)).numpy() for block in self._blocks])
        self.log_loss = losses.log_mean_exp(losses.log_losses(s))
        self.log_frame = min(self.log_loss, 0.0)

    def _of(self, block: slice) -> tuple[tf.Tensor, tf.Tensor]:
        self.examples.stop_if_asked()
        return self.examples.inputs(block), self.examples.labels[block]

    def _logits(self, inputs):
        return self.model.after(0, self.model.layers[0].affine(inputs))

    def _log_odds(self, inputs, labels):
        return losses.log_odds(labels, self._logits(inputs))

    def _products(self, inputs, labels, log_frame, vectors):
        weights = self.model.weights
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                logits = self._logits(inputs)
                loss = tf.reduce_sum(losses.cross_entropy_in_frame(labels, logits, log_frame))
            gradients = inner.gradient(loss, weights)
            slope = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
        products = outer.gradient(slope, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.concat([tf.reshape(p, [-1]) for p in products], 0)

    def over_the_loss(self, value: float) -> float:
        """An eigenvalue in the frame, divided by the loss in the frame."""
        return value * math.exp(self.log_frame - self.log_loss)

    def times_lr(self, value: float, info: dict[str, Any]) -> float:
        """An eigenvalue in the frame, as it truly is, times the true learning rate of an epoch."""
        return value * info["lr"] * math.exp(self.log_frame - info["log_frame"])

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
        if self._due():
            log.info("%d Hessian-vector products so far", self.products)
        for block in self._blocks:
            total += self._product(*self._of(block), log_frame, vectors).numpy()
        return total * (length / len(self.examples))

    def _adjoint(self):
        return self


def lanczos(operator: LinearOperator, start: np.ndarray, steps: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Lanczos' tridiagonal matrix, one row more at a time, with full reorthogonalization in float64.

    Args:
      start: the first vector [n], of any length.

    Yields: (diagonal [m], off-diagonal [m], basis [m, n]), m = 1, 2, ... up to `steps`. The last off-diagonal
      number is the length of what is left: 0 once the space is exhausted, and then it ends.
    """
    basis = np.zeros((min(steps, len(start)), len(start)))
    diagonal, off = np.zeros(len(basis)), np.zeros(len(basis))
    v = start / np.linalg.norm(start)
    for m in range(len(basis)):
        basis[m] = v
        w = operator.matvec(v)
        diagonal[m] = v @ w
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            w = w - basis[: m + 1].T @ (basis[: m + 1] @ w)
        off[m] = np.linalg.norm(w)
        if off[m] <= 1e-10 * np.abs(diagonal[: m + 1]).max():
            off[m] = 0.0
        yield diagonal[: m + 1], off[: m + 1], basis[: m + 1]
        if not off[m]:
            return
        v = w / off[m]


def largest_eigenvalue(
    operator: LinearOperator, start: np.ndarray | None, noise: np.ndarray, tolerance: float = 1e-2
) -> tuple[float, np.ndarray]:
    """The algebraically largest eigenvalue and its unit vector, by Lanczos from a start that may be near it.

    It ends when |H v - value v| <= tolerance value; the value's own error is of the order of that squared.

    Args:
      start: a guess of the vector [n]; None, or one of another size: none is known.
      noise: random [n]; a little of it in the start, so that a wrong guess cannot stay hidden.
    """
    noise = noise / np.linalg.norm(noise)
    known = start is not None and np.shape(start) == noise.shape and np.isfinite(start).all() and start.any()
    vector = start / np.linalg.norm(start) + NOISE * noise if known and start is not None else noise
    for _ in range(RESTARTS):
        for diagonal, off, basis in lanczos(operator, vector, BASIS):
            values, vectors = eigh_tridiagonal(diagonal, off[:-1])
            value, vector = float(values[-1]), vectors[:, -1] @ basis
            found = off[-1] * abs(vectors[-1, -1]) <= tolerance * abs(value)
            if found and (len(off) >= LEAST_PRODUCTS or not off[-1]):
                return value, vector / np.linalg.norm(vector)
    return value, vector / np.linalg.norm(vector)


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
      frame: times exp(log_frame) they are the loss's own; sharpness, the largest eigenvalue over the loss.
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
        "sharpness": hessian.over_the_loss(float(max(values))),
        "trace": mean,
        "trace_error": error,
    }


def line(found: dict) -> str:
    """The result of `measure` on one line."""
    values = ", ".join(f"{value:.4g}" for value in found["eigenvalues"])
    frame = f" (times exp({found['log_frame']:.2f}))" if found["log_frame"] else ""
    at_lr = f"; times lr {found['lr_sharpness']:.4g}" if "lr_sharpness" in found else ""
    return f"eigenvalues {values}; trace {found['trace']:.4g} ± {found['trace_error']:.2g}{frame}{at_lr}"


def work(context: Context, args: dict[str, Any], tick: Tick) -> dict[str, Any]:
    """A unit of work: the curvature at network number `number`, `network`.

    Returns: as `measure`; and lr_sharpness, the largest eigenvalue times the epoch's learning rate.
    """
    f = context.f
    context.model.set_weights(weights_of(context, args["network"]))
    rng = np.random.default_rng([f.seed, args["number"]])
    hessian = Hessian(examples_of(context))
    found = measure(hessian, f.eigenvalues, f.probes, rng)
    path, eid = args["network"]
    if info := record_of(context, path).get(eid):
        found["lr_sharpness"] = hessian.times_lr(found["eigenvalues"][0], info)
    return found
