"""Curvature of the training loss: the Hessian's largest eigenvalues, its trace, the density of its spectrum.

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
from errors import UserError
from execution import Tick, weights_of
from flatness.networks import record_of
from flatness.span import Examples, examples_of, mean_of
from models import losses
from screen import Throttle, log

BLOCK_FLOATS = 2**20  # activations of a layer in one pass
TOLERANCE = 1e-4  # relative, of the eigenvalues: the products are float32
NOISE = 0.2  # beside a guess of length 1
LEAST_PRODUCTS = 8  # so many show a larger eigenvalue that the guess has hidden
BASIS, RESTARTS = 20, 10  # vectors kept at once by `largest_eigenvalue`, and how often it begins anew with its best


def logits_of(model: Any, inputs: tf.Tensor) -> tf.Tensor:
    """Logits [b, C] from layer 0's input."""
    return model.after(0, model.layers[0].affine(inputs))


class LogLoss:
    """The natural log of the mean training loss, and its gradient: both finite at any size of the loss.

    Args:
      examples: the training set, with the model whose variables hold the weights.
    """

    def __init__(self, examples: Examples):
        self.examples, self.model = examples, examples.model
        width = max(math.prod(spec.out_shape) for spec in self.model.specs)
        self.blocks = examples.blocks(int(np.clip(BLOCK_FLOATS // width, 32, 2**13)))

    def of(self, block: slice) -> tuple[tf.Tensor, tf.Tensor]:
        """Layer 0's input and the labels of a block."""
        self.examples.stop_if_asked()
        return self.examples.inputs(block), self.examples.labels[block]

    def value(self) -> float:
        model = self.model  # not self: the graph outlives this

        def log_sum(inputs, labels):
            return tf.reduce_logsumexp(losses.log_cross_entropy(labels, logits_of(model, inputs)))

        graph = self.examples.graph("log sum", log_sum)
        sums = np.array([graph(*self.of(block)).numpy() for block in self.blocks])
        return float(mean_of(sums, len(self.examples), log=True))

    def value_and_gradient(self) -> tuple[float, np.ndarray]:
        """log I and its gradient by `model.weights`, float64 [n].

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

    That is H * exp(-log_frame): where the loss is 1e-100 the Hessian is as small, and float32 could not hold it.
    Batch norm's running statistics are constants.

    Args:
      examples: the training set, with the model whose variables hold the weights.
      layer: only the block of this layer's weights, counted from 0; None: of all weights.
      gauss_newton: only J^T (d2 loss / dz2) J, with J = dz/dw: without the second derivatives of the logits z.

    Attributes:
      log_frame: natural log of the mean training loss where that is below 1, else 0.
      shape: (n, n), n trainable numbers in the order of `model.weights`.
      products: how many H v were computed so far.
    """

    def __init__(self, examples: Examples, layer: int | None = None, gauss_newton: bool = False):
        self.examples, self.model, self.products = examples, examples.model, 0
        self._due = Throttle(30)
        own = self.model.weights if layer is None else self.model.layers[layer].trainable_variables
        self._weights = [w for w in self.model.weights if any(w is v for v in own)]
        self._shapes = [tuple(w.shape) for w in self._weights]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        super().__init__(np.float64, (sum(self._sizes), sum(self._sizes)))
        product = self._gauss_newton_products if gauss_newton else self._products
        self._product = examples.graph(("product", layer, gauss_newton), product)
        self._passes = LogLoss(examples)
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
        for block in self._passes.blocks:
            total += self._product(*self._passes.of(block), log_frame, vectors).numpy()
        return total * (length / len(self.examples))

    def _adjoint(self):
        return self


def _dot(a: list[tf.Tensor], b: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b, strict=True)])


def _flat(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


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

    It ends when |H v - value v| <= tolerance value; the value's own error is of the order of that squared. In a
    spectrum without gaps, about one random start in a hundred ends so at the next eigenvalue below.

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


def quadrature(operator: LinearOperator, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadrature of the spectrum as seen from one random direction, by Lanczos (Ghorbani et al. 2019).

    For a Gaussian v of length 1, v^T f(H) v = sum_j weights_j f(values_j), exact for polynomials f up to degree
    2 steps - 1. Its mean over v is the mean of f over the eigenvalues.

    Returns: values, weights, float64 [at most `steps`]; the weights sum to 1.
    """
    *_, (diagonal, off, _) = lanczos(operator, rng.standard_normal(operator.shape[0]), steps)
    values, vectors = eigh_tridiagonal(diagonal, off[:-1])
    return values, vectors[0] ** 2


def spectrum(probes: list[dict[str, Any]]) -> dict[str, Any]:
    """The quadratures of an operator's probes, together.

    Args:
      probes: as `density_work` returns them.

    Returns: parameters; values, weights: float64 [all probes' numbers], the weights summing to 1; trace and
      trace_error, n sum_j weights_j values_j, its mean over the probes and standard error, in the frame.
    """
    n = probes[0]["parameters"]
    traces = np.array([n * np.dot(probe["weights"], probe["values"]) for probe in probes])
    return {
        "parameters": n,
        "values": np.concatenate([probe["values"] for probe in probes]),
        "weights": np.concatenate([probe["weights"] for probe in probes]) / len(probes),
        "trace": float(traces.mean()),
        "trace_error": float(traces.std(ddof=1) / math.sqrt(len(traces))),
    }


def line(found: dict) -> str:
    """The result of `measure` on one line."""
    values = ", ".join(f"{value:.4g}" for value in found["eigenvalues"])
    frame = f" (times exp({found['log_frame']:.2f}))" if found["log_frame"] else ""
    at_lr = f"; times lr {found['lr_sharpness']:.4g}" if "lr_sharpness" in found else ""
    return f"eigenvalues {values}; trace {found['trace']:.4g} ± {found['trace_error']:.2g}{frame}{at_lr}"


HESSIAN, GAUSS_NEWTON, LAYER = "hessian", "gauss_newton", "layer"


def operators(context: Context) -> list[str]:
    """The operators whose spectra the flags `density` and `layer` ask for. Raises: UserError for no such layer."""
    f, layers = context.f, range(len(context.model.layers))
    for k in f.layer if f.layer not in (None, "all") else ():
        if k not in layers:
            raise UserError(f"--layer {k}: the network's layers with weights are 0 to {layers[-1]}")
    if not f.density:
        return []
    blocks = layers if f.layer == "all" else f.layer or ()
    return [HESSIAN, GAUSS_NEWTON, *(f"{LAYER}{k}" for k in blocks)]


def _operator(context: Context, network: Any, name: str) -> Hessian:
    """An operator at a network; the last one is kept, and the weights with it."""

    def make() -> Hessian:
        context.model.set_weights(weights_of(context, network))
        layer = int(name.removeprefix(LAYER)) if name.startswith(LAYER) else None
        return Hessian(examples_of(context), layer, name == GAUSS_NEWTON)

    return context.kept("operator", (network, name), make)


def density_work(context: Context, args: dict[str, Any], tick: Tick) -> dict[str, Any]:
    """A unit of work: probe `probe` of the spectrum of `operator` at network number `number`, `network`.

    Returns: parameters; values and weights of `quadrature`, lists, the values in the frame.
    """
    f, name = context.f, args["operator"]
    operator = _operator(context, args["network"], name)
    rng = np.random.default_rng([f.seed, args["number"], operators(context).index(name), args["probe"]])
    values, weights = quadrature(operator, f.density_steps, rng)
    return {"parameters": operator.shape[0], "values": values.tolist(), "weights": weights.tolist()}


def work(context: Context, args: dict[str, Any], tick: Tick) -> dict[str, Any]:
    """A unit of work: the curvature at network number `number`, `network`.

    Returns: as `measure`; and lr_sharpness, the largest eigenvalue times the epoch's learning rate.
    """
    f = context.f
    rng = np.random.default_rng([f.seed, args["number"]])
    hessian = _operator(context, args["network"], HESSIAN)
    found = measure(hessian, f.eigenvalues, f.probes, rng)
    path, eid = args["network"]
    if info := record_of(context, path).get(eid):
        found["lr_sharpness"] = hessian.times_lr(found["eigenvalues"][0], info)
    return found
