"""Curvature of the training loss: the Hessian's largest eigenvalues, its trace, the density of its spectrum.

Everything comes from Hessian-vector products (`flatness.hessian`). The two papers do not measure it.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from engine.context import Context
from engine.measurement import record_of
from engine.units import Worker
from flatness.hessian import Hessian
from flatness.span import examples_of
from support.errors import UserError
from support.screen import Update

TOLERANCE = 1e-4  # relative, of the eigenvalues: the products are float32
NOISE = 0.2  # length of the noise added to a guess of length 1
LEAST_PRODUCTS = 8  # enough to find a larger eigenvalue that the guess hides
BASIS, RESTARTS = 20, 10  # vectors that `largest_eigenvalue` keeps, and how often it restarts from its best


def lanczos(operator: LinearOperator, start: np.ndarray, steps: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Generate Lanczos' tridiagonal matrices, with full reorthogonalization in float64.

    Args:
      start: the first vector [n], of any length.

    Yields: (diagonal [m], off-diagonal [m], basis [m, n]), m = 1, 2, ... up to `steps`. The last off-diagonal
      number is the length of the residual: 0 once the space is exhausted, which ends the iteration.
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
    """Return the algebraically largest eigenvalue and its unit vector, by Lanczos from a guess.

    It stops when |H v - value v| <= tolerance value; the error of the value is of the order of the square of that. In
    a spectrum without gaps, about one random start in a hundred stops at the next smaller eigenvalue.

    Args:
      start: a guess of the vector [n]; None, or one of another size: no guess.
      noise: random [n]; a little of it is added to the guess, so that a wrong one cannot hide the eigenvalue.
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
    """Return Hutchinson's estimate of the trace, and its standard error.

    It is the mean of v^T H v over random sign vectors v.

    Args:
      probes: the number of vectors, at least 2.
    """
    signs = (rng.choice([-1.0, 1.0], hessian.shape[0]) for _ in range(probes))
    values = np.array([v @ hessian.matvec(v) for v in signs])
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(probes))


def measure(hessian: Hessian, k: int, probes: int, rng: np.random.Generator) -> dict:
    """Return the k algebraically largest eigenvalues, descending, by Lanczos, and the trace.

    Args:
      k: at most one less than the number of weights.

    Returns: log_loss, log_frame (natural logs), parameters; eigenvalues, trace and trace_error, in the
      frame: times exp(log_frame) they are the loss's own; sharpness, the largest eigenvalue over the loss.
    """
    n = hessian.shape[0]
    start = rng.standard_normal(n)
    k = min(k, n - 1)
    try:
        values = eigsh(hessian, k=k, which="LA", tol=TOLERANCE, v0=start, return_eigenvectors=False)
    except ArpackError:
        if hessian.matvec(start).any():
            raise
        values = np.zeros(k)  # H is 0, as of a network whose units are all off
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
    """Return a Gauss quadrature of the spectrum in one random direction, by Lanczos (Ghorbani et al. 2019).

    For a Gaussian v of length 1, v^T f(H) v = sum_j weights_j f(values_j), exact for polynomials f up to degree
    2 steps - 1. Its mean over v is the mean of f over the eigenvalues.

    Returns: values, weights, float64 [at most `steps`]; the weights sum to 1.
    """
    *_, (diagonal, off, _) = lanczos(operator, rng.standard_normal(operator.shape[0]), steps)
    values, vectors = eigh_tridiagonal(diagonal, off[:-1])
    return values, vectors[0] ** 2


def spectrum(probes: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine the quadratures of an operator's probes.

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
    """Return the result of `measure` on one line."""
    values = ", ".join(f"{value:.4g}" for value in found["eigenvalues"])
    frame = f" (times exp({found['log_frame']:.2f}))" if found["log_frame"] else ""
    at_lr = f"; times lr {found['lr_sharpness']:.4g}" if "lr_sharpness" in found else ""
    return f"eigenvalues {values}; trace {found['trace']:.4g} ± {found['trace_error']:.2g}{frame}{at_lr}"


HESSIAN, GAUSS_NEWTON, LAYER = "hessian", "gauss_newton", "layer"


def operators(context: Context) -> list[str]:
    """Return the operators whose spectra the flags select. Raises: UserError for a layer that does not exist."""
    f, layers = context.f, range(len(context.model.layers))
    for k in f.layer if f.layer not in (None, "all") else ():
        if k not in layers:
            raise UserError(f"--layer {k}: the network's layers with weights are 0 to {layers[-1]}")
    if not f.density:
        return []
    blocks = layers if f.layer == "all" else f.layer or ()
    return [HESSIAN, GAUSS_NEWTON, *(f"{LAYER}{k}" for k in blocks)]


def _operator(worker: Worker, network: Any, name: str) -> Hessian:
    """Return an operator at a network; the last one is kept, and the weights with it."""
    context = worker.context

    def make() -> Hessian:
        context.model.set_weights(worker.weights(network))
        layer = int(name.removeprefix(LAYER)) if name.startswith(LAYER) else None
        return Hessian(examples_of(context), layer, name == GAUSS_NEWTON, context.update)

    return context.kept("operator", (network, name), make)


def density_work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Compute probe `probe` of the spectrum of `operator` at network number `number`, `network`: a unit of work.

    Returns: parameters; values and weights of `quadrature`, lists, the values in the frame.
    """
    f, name = worker.context.f, args["operator"]
    operator = _operator(worker, args["network"], name)
    rng = np.random.default_rng([f.seed, args["number"], operators(worker.context).index(name), args["probe"]])
    values, weights = quadrature(operator, f.density_steps, rng)
    return {"parameters": operator.shape[0], "values": values.tolist(), "weights": weights.tolist()}


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Compute the curvature at network number `number`, `network`: a unit of work.

    Returns: as `measure`; and lr_sharpness, the largest eigenvalue times the epoch's learning rate.
    """
    f = worker.context.f
    rng = np.random.default_rng([f.seed, args["number"]])
    hessian = _operator(worker, args["network"], HESSIAN)
    found = measure(hessian, f.eigenvalues, f.probes, rng)
    path, eid = args["network"]
    info = record_of(worker.context, path).get(eid)
    if info and info["lr"]:  # an imported network has no learning rate
        found["lr_sharpness"] = hessian.times_lr(found["eigenvalues"][0], info)
    return found
