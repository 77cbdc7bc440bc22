"""Flatness radius: how far one can walk before the loss changes (arXiv 1801.02254, section IV).

From the weights w of a trained network with loss I(w), along a random direction delta of length 1, in
steps of length s: the radius is (k - 1) * s for the first k with

    |I(w) - I(w + k * s * delta)| >= threshold, or a NaN loss.
"""

from typing import Any

import numpy as np

from engine.units import Worker
from flatness.span import Examples, FastSpan, PlainSpan, Tensors, examples_of
from support.errors import UserError
from support.screen import Update, ignore

POINTS = 24  # steps of a walk that are evaluated together, at most
MAX_STEPS = 100_000  # a longer walk is an error


class EndlessWalk(Exception):
    """max_steps steps did not change the loss by the threshold."""


def perturbed(names: list[str], params: str) -> list[bool]:
    """Return which tensors a direction moves.

    Args:
      names: of all tensors, as in `Network.places`.
      params: 'all', batch norm's running statistics too; 'trainable', without these; 'top', the last
        layer's only.
    """
    last = names[-1].split("/")[0]
    chosen = {
        "all": lambda name: True,
        "trainable": lambda name: not name.endswith(("/bn/mean", "/bn/variance")),
        "top": lambda name: name.split("/")[0] == last,
    }
    return [chosen[params](name) for name in names]


def direction(
    rng: np.random.Generator, names: list[str], weights: Tensors, params: str = "all", normalize: str = "none"
) -> Tensors:
    """Return a Gaussian direction over the perturbed tensors, of length 1 (all of them together).

    Args:
      rng: the source of randomness.
      names, weights: of the network, as in `Network.get_weights`.
      params: see `perturbed`.
      normalize: 'layer' makes each layer's part as long, relative to the others, as the layer's own
        tensors are: each layer then changes by the same fraction.

    Returns: float64 arrays, None for tensors that stay.
    """
    moved = perturbed(names, params)
    delta: Tensors = [rng.standard_normal(w.shape) if m else None for w, m in zip(weights, moved, strict=True)]
    if normalize == "layer":
        layers = [name.split("/")[0] for name in names]
        for layer in set(layers):
            own = [t for t, k in enumerate(layers) if k == layer and moved[t]]
            if own:
                factor = norm([weights[t] for t in own]) / norm([delta[t] for t in own])
                for t in own:
                    delta[t] = delta[t] * factor
    length = norm(delta)
    if not length:
        raise UserError(
            f"--normalize {normalize}: all perturbed weights are 0, so no direction is in proportion to them"
        )
    return [None if d is None else d / length for d in delta]


def norm(tensors: Tensors) -> float:
    """Return the L2 norm of all tensors together, in float64; None counts as zeros."""
    return float(np.sqrt(sum(np.vdot(t, t) for t in (np.float64(t) for t in tensors if t is not None))))


def reached(loss: float, origin: float, threshold: float) -> bool:
    return not abs(loss - origin) < threshold  # a NaN is reached


class PlainWalks:
    """The definition, step by step.

    Args:
      examples: the training set.
      weights: of the network.
    """

    def __init__(self, examples: Examples, weights: Tensors):
        self.examples, self.weights = examples, weights

    def walk(self, delta: Tensors, step: float, threshold: float, max_steps: int, update: Update = ignore) -> dict:
        """Walk from the network along delta.

        Args:
          update: called after some steps with the change of the loss so far, as a fraction of the threshold.

        Returns: radius; profile, the losses at 0, s, 2s, ... up to the radius; end, the loss one step on.
        Raises: EndlessWalk.
        """
        span = PlainSpan(self.examples, [self.weights, delta])
        profile = [span.loss((1.0, 0.0))]
        for k in range(1, max_steps + 1):
            loss = span.loss((1.0, k * step))
            if reached(loss, profile[0], threshold):
                return {"radius": (k - 1) * step, "profile": profile, "end": loss}
            profile.append(loss)
            update(abs(loss - profile[0]) / threshold)
        raise EndlessWalk


class FastWalks(PlainWalks):
    """Walks from one network with the shortcuts of `FastSpan`: the same radii as `PlainWalks`.

    A block of examples is evaluated at many steps together. Losses are >= 0, so partial sums can prove that a
    step has reached the threshold: that step and all beyond it are then evaluated no further. Steps that seem
    to be beyond the end, judging by the blocks so far, are postponed, and resumed if that forecast fails.

    Args:
      examples: the training set.
      weights: of the network.
    """

    def __init__(self, examples: Examples, weights: Tensors):
        super().__init__(examples, weights)
        self._kept: dict = {}
        self._origin: Any = None  # sums of the losses at w, block by block

    def walk(self, delta, step, threshold, max_steps, update=ignore):
        """As `PlainWalks.walk`; `end` may be a lower bound of that loss, beyond the threshold."""
        span = FastSpan(self.examples, [self.weights, delta], kept=self._kept)
        if self._origin is None:
            self._origin = np.array([sums[0] for _, sums in span.partial_sums(np.array([[1.0, 0.0]]))])
        profile = [self._origin.sum() / len(self.examples)]
        while len(profile) <= max_steps:
            k = np.arange(len(profile), min(len(profile) + min(span.most_points, POINTS), max_steps + 1))
            losses, bound = self._advance(span, k * step, threshold)
            for loss in losses:
                if reached(loss, profile[0], threshold):
                    return {"radius": (len(profile) - 1) * step, "profile": profile, "end": float(loss)}
                profile.append(float(loss))
            update(abs(profile[-1] - profile[0]) / threshold)
            if bound is not None:
                return {"radius": (len(profile) - 1) * step, "profile": profile, "end": bound}
        raise EndlessWalk

    def _advance(self, span: FastSpan, t: np.ndarray, threshold: float) -> tuple[np.ndarray, float | None]:
        """Return the losses at the first few of the points t and, if the next was proved reached, what proves it."""
        n = len(self.examples)
        origin = self._origin.sum() / n
        wanted, bound, seen, seen_origin = len(t), None, 0, 0.0
        totals = np.zeros(len(t))
        blocks = span.partial_sums(np.stack([np.ones_like(t), t], axis=1))
        answer = None
        for block_origin in self._origin:
            size, sums = blocks.send(answer)
            totals = totals[:wanted] + sums
            seen, seen_origin = seen + size, seen_origin + block_origin
            proved = ~(totals / n - origin < threshold)
            if proved.any():
                wanted = int(proved.argmax())
                bound = float(totals[wanted] / n)
            forecast = ~(np.abs(totals[:wanted] - seen_origin) / seen < threshold)
            if forecast.any():
                spare = 3 if seen < n / 32 else 1 if seen < n / 4 else 0
                put_off = int(forecast.argmax()) + 1 + spare
                if put_off < wanted:
                    wanted, bound = put_off, None
            if wanted == 0:
                break
            answer = wanted
        return totals[:wanted] / n, bound


WALKS = {"plain": PlainWalks, "fast": FastWalks}


def summary(walks: list[dict], length: float) -> dict:
    """Return the radii of one network, summed up.

    Args:
      walks: as `PlainWalks.walk` returns them, one for each direction.
      length: the norm of the network's perturbed tensors. A homogeneous network's radius grows with it.
    """
    radii = [walk["radius"] for walk in walks]
    return {
        "I": walks[0]["profile"][0],
        "radii": radii,
        "profiles": [walk["profile"] for walk in walks],
        "ends": [walk["end"] for walk in walks],
        "mean": float(np.mean(radii)),
        "norm": length,
        "mean_by_norm": float(np.mean(radii)) / length if length else np.nan,
    }


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Walk along direction `direction` of network number `number`, `network`: a unit of work.

    Returns: as `PlainWalks.walk`.
    Raises: UserError when the walk does not end.
    """
    context, number, k = worker.context, args["number"], args["direction"]
    f, weights = context.f, worker.weights(args["network"])
    # The products of one network at a time are kept.
    walker = context.kept("walker", number, lambda: WALKS[f.method](examples_of(context), weights))
    rng = np.random.default_rng([f.seed, number, k])
    delta = direction(rng, context.model.names, weights, f.params, f.normalize)
    try:
        return walker.walk(delta, f.radius_step, f.threshold, MAX_STEPS, update)
    except EndlessWalk:
        raise UserError(
            f"{args['label']}, direction {k}: {MAX_STEPS} steps of {f.radius_step:g} changed the "
            f"loss by less than {f.threshold:g}; give a larger --radius_step"
        ) from None
