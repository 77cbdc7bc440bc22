"""Sharpness: how far the training loss rises in a small ball around the weights, at worst and on average.

With I the mean training loss, w the weights and T a scale for each of them (Andriushchenko et al. 2023, arXiv
2302.07011, section 2):

    worst:    max over ||u|| <= rho of  I(w + T u) - I(w)
    average:  mean over u ~ N(0, rho^2 / n) of  I(w + T u) - I(w),   n weights; there rho is ours over sqrt(n)

T is ||w|| for all weights; or a weight's layer's norm, or the weight's own size, as in ASAM (Kwon et al. 2021, arXiv
2102.11600, where T is called T_w): then no rescaling of layers, or of weights, that leaves the network as it is
changes anything. All losses are kept as logs, so that nothing underflows at 1e-800. Batch norm's running statistics
stay.
"""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from engine.units import Worker
from flatness.hessian import LogLoss
from flatness.span import Examples, examples_of
from models.margins import log_mean_exp
from models.step_size import MOMENTUM, StepSize, periods
from support.screen import Update, ignore, within

ASCENT_STEPS = 30  # of the search for the worst perturbation
PROBES = 20  # random perturbations of the average


def scales(model: Any, adaptive: str) -> np.ndarray:
    """Return T: one number for each of `model.weights`, float64 [n].

    Args:
      adaptive: 'norm', 'layer' or 'element'; see the module. A layer that is 0 stays 0.
    """
    flat = [w.numpy().astype(np.float64).ravel() for w in model.weights]
    if adaptive == "element":
        return np.abs(np.concatenate(flat))
    if adaptive == "norm":
        whole = np.linalg.norm(np.concatenate(flat))
        return np.full(sum(map(len, flat)), whole)
    norms: dict[int, float] = {}
    for layer in model.layers:
        own = layer.trainable_variables
        size = math.sqrt(sum(float(np.vdot(w, w)) for w in (v.numpy().astype(np.float64) for v in own)))
        norms |= {id(v): size for v in own}
    return np.concatenate([np.full(len(part), norms[id(w)]) for w, part in zip(model.weights, flat, strict=True)])


class Ball:
    """The loss at w + T u as a function of u.

    Args:
      examples: the training set, with the model whose variables hold w now. Its weights change with every look.
      adaptive: which T; see `scales`.
    """

    def __init__(self, examples: Examples, adaptive: str):
        self.model, self.loss = examples.model, LogLoss(examples)
        self.T = scales(self.model, adaptive)
        self.w = np.concatenate([w.numpy().astype(np.float64).ravel() for w in self.model.weights])
        self.log_loss = self.loss.value()

    def go_to(self, u: np.ndarray | float) -> None:
        """Put w + T u into the model, rounded to float32 once."""
        flat = (self.w + self.T * u).astype(np.float32)
        sizes = np.cumsum([math.prod(w.shape) for w in self.model.weights])[:-1]
        for variable, part in zip(self.model.weights, np.split(flat, sizes), strict=True):
            variable.assign(tf.reshape(part, variable.shape))

    def value(self, u: np.ndarray) -> float:
        """Return log I(w + T u)."""
        self.go_to(u)
        return self.loss.value()

    def value_and_gradient(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the same, and its gradient by u, float64 [n]."""
        self.go_to(u)
        value, gradient = self.loss.value_and_gradient()
        return value, self.T * gradient

    def worst(self, rho: float, steps: int, update: Update = ignore) -> float:
        """Return the largest log I that projected gradient ascent finds in ||u|| <= rho, from u = 0.

        Ascent on log I, by unit gradients, with momentum and the step size of APGD (`models.step_size`; Croce
        and Hein 2020, algorithm 1).
        """

        def project(u: np.ndarray) -> np.ndarray:
            length = np.linalg.norm(u)
            return u * (rho / length) if length > rho else u

        u = before = np.zeros_like(self.w)
        value, gradient = self.value_and_gradient(u)
        best, step, done = (value, gradient, u), StepSize(np.array([2.0 * rho])), 0
        for length in periods(steps):
            climbed, best_before = 0, best[0]
            for _ in range(length):
                size = np.linalg.norm(gradient)
                to = project(u + step.eta[0] * (gradient / size if size > 0 else 0.0))
                share = MOMENTUM if done else 1.0
                u, before = project(u + share * (to - u) + (1 - share) * (u - before)), u
                value, gradient, last = *self.value_and_gradient(u), value
                climbed += value > last
                if value > best[0]:
                    best = value, gradient, u
                done += 1
                update(done / steps)
            if step.halve(length, np.array([climbed]), np.array([best[0] > best_before]))[0]:
                (value, gradient, u), before = best, best[2]
        return best[0]

    def average(self, rho: float, seed: list[int], probes: int, update: Update = ignore) -> np.ndarray:
        """Return log I at random u ~ N(0, rho^2 / n), float64 [probes]; the same directions for every rho."""
        found = []
        for k in range(probes):
            u = np.random.default_rng([*seed, k]).standard_normal(len(self.w))
            found.append(self.value(u * (rho / math.sqrt(len(u)))))
            update((k + 1) / probes)
        return np.array(found)


def summary(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sharpness of one network in one scale, from its units, by ascending rho.

    Returns: rho; worst, the log of the largest loss, which a smaller ball's is a lower bound of; average, the log of
      the mean loss over the directions, and average_error, its standard error (of the log: relative); losses, the
      log losses, a list a rho.
    """
    parts = sorted(parts, key=lambda part: part["rho"])
    losses = [np.array(part["losses"]) for part in parts]
    relative = [np.exp(found - log_mean_exp(found)) for found in losses]
    return {
        "rho": [part["rho"] for part in parts],
        "worst": np.maximum.accumulate([part["worst"] for part in parts]).tolist(),
        "average": [log_mean_exp(found) for found in losses],
        "average_error": [float(r.std(ddof=1) / math.sqrt(len(r))) for r in relative],
        "losses": [found.tolist() for found in losses],
    }


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Find the worst and the average log loss in the ball `rho`, `adaptive` of a network: a unit of work.

    Returns: log_loss, of the network itself; rho; worst; losses, at the random perturbations.
    """
    context, network = worker.context, args["network"]
    f = context.f

    def ball() -> Ball:
        context.model.set_weights(worker.weights(network))
        return Ball(examples_of(context), args["adaptive"])

    found = context.kept("ball", (network, args["adaptive"]), ball)
    share = 3 * ASCENT_STEPS / (3 * ASCENT_STEPS + PROBES)  # a gradient costs as much as three losses
    worst = found.worst(args["rho"], ASCENT_STEPS, within(update, 0, share))
    seed = [f.seed, args["number"]]
    losses = found.average(args["rho"], seed, PROBES, within(update, share, 1))
    return {"log_loss": found.log_loss, "rho": args["rho"], "worst": worst, "losses": losses.tolist()}
