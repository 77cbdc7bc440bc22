"""Flatness radius: how far one can walk before the loss changes (arXiv 1801.02254, section IV).

From the weights w of a trained network with loss I(w), along a random direction delta of length 1, in
steps of length s: the radius is (k - 1) * s for the first k with

    |I(w) - I(w + k * s * delta)| >= threshold, or a loss that is no number.
"""

import math
from collections.abc import Callable

import numpy as np

from flatness.span import Examples, FastSpan, PlainSpan, Tensors

POINTS = 24  # steps of a walk that are taken at once, at most

# Table 1 of arXiv 1801.02254: mean and standard deviation over three networks.
PUBLISHED = {
    ("mnist", "all", False): (13.9833, 0.1670),
    ("mnist", "all", True): (4.6333, 0.2461),
    ("mnist", "top", False): (2.3400, 0.1393),
    ("mnist", "top", True): (3.8600, 0.0497),
    ("cifar10", "all", False): (14.2999, 0.2943),
    ("cifar10", "all", True): (7.3167, 0.1312),
    ("cifar10", "top", False): (10.2667, 0.5632),
    ("cifar10", "top", True): (4.8333, 0.0471),
}


class EndlessWalk(Exception):
    """max_steps steps did not change the loss."""


def perturbed(names: list[str], params: str) -> list[bool]:
    """Which tensors a direction moves.

    Args:
      names: of all tensors, as in `Model.places`.
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
    """A Gaussian direction over the perturbed tensors, of length 1 (all of them together).

    Args:
      rng: the source of randomness.
      names, weights: of the network, as in `Model.get_weights`.
      params: see `perturbed`.
      normalize: 'layer' makes each layer's part as long, relative to the others, as the layer's own
        tensors are: each layer then changes by the same fraction.

    Returns: float64 arrays, None for tensors that stay.
    """
    moved = perturbed(names, params)
    delta = [rng.standard_normal(w.shape) if m else None for w, m in zip(weights, moved, strict=True)]
    if normalize == "layer":
        layers = [name.split("/")[0] for name in names]
        for layer in set(layers):
            own = [t for t, k in enumerate(layers) if k == layer and moved[t]]
            if own:
                factor = norm([weights[t] for t in own]) / norm([delta[t] for t in own])
                for t in own:
                    delta[t] = delta[t] * factor
    length = norm(delta)
    return [None if d is None else d / length for d in delta]


def norm(tensors: Tensors) -> float:
    """L2 norm of all tensors together, in float64; None counts as zeros."""
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

    def walk(
        self,
        delta: Tensors,
        step: float,
        threshold: float,
        max_steps: int,
        tick: Callable[[int], None] = lambda steps: None,
    ) -> dict:
        """Walk from the network along delta.

        Args:
          tick: called with the number of steps taken, now and then.

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
            tick(k)
        raise EndlessWalk


class FastWalks(PlainWalks):
    """Walks from one network with the short cuts of `FastSpan`: the same radii as `PlainWalks`.

    A block of examples is taken through many steps at once. A step that the partial sums prove
    reached (losses are >= 0) is evaluated no further, and none beyond it. Those that, to judge by
    the blocks seen so far, lie beyond the end are put off, and taken up should the forecast fail.

    Args:
      examples: the training set.
      weights: of the network.
    """

    def __init__(self, examples: Examples, weights: Tensors):
        super().__init__(examples, weights)
        self._kept = {}
        self._origin = None  # sums of the losses at w, block by block

    def walk(self, delta, step, threshold, max_steps, tick=lambda steps: None):
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
            tick(len(profile) - 1)
            if bound is not None:
                return {"radius": (len(profile) - 1) * step, "profile": profile, "end": bound}
        raise EndlessWalk

    def _advance(self, span: FastSpan, t: np.ndarray, threshold: float) -> tuple[np.ndarray, float | None]:
        """Losses at the first few of the points t, and if the next was proved reached, what proves it."""
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
    """What is said of one network.

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
        "mean_by_norm": float(np.mean(radii)) / length,
    }


def table_row(
    networks: dict[str, dict], dataset: str, params: str, random: bool, comparable: bool = True
) -> dict:
    """A row of Table 1: mean and population standard deviation over the networks' means.

    Args:
      networks: {name: summary}.
      comparable: whether it is the paper's experiment on that data set that was measured.

    Returns: mean, sd, by_norm_mean, by_norm_sd, text, published: (mean, sd) or None; and where it is
      known, standard_errors: how far apart the two means are, in standard errors of their difference,
      sqrt((sd^2 + sd_published^2) / (n - 1)), n = 3 networks (sd being the population's).
    """
    means = [network["mean"] for network in networks.values()]
    by_norm = [network["mean_by_norm"] for network in networks.values()]
    row = {
        "mean": float(np.mean(means)),
        "sd": float(np.std(means)),
        "by_norm_mean": float(np.mean(by_norm)),
        "by_norm_sd": float(np.std(by_norm)),
        "published": PUBLISHED.get((dataset, params, random)) if comparable else None,
    }
    what = {"all": "all params", "trainable": "trainable params", "top": "top layer"}[params]
    row["text"] = f"{dataset}, {what}{', random labels' if random else ''}: "
    names = list(networks)
    if len(names) > 1 and names[0].startswith("epoch"):  # of one run: a mean over them would say little
        row["text"] += f"{means[0]:.4f} at {names[0]}, {means[-1]:.4f} at {names[-1]}"
        return row
    row["text"] += (
        f"{row['mean']:.4f} ± {row['sd']:.4f} (by norm {row['by_norm_mean']:.4f} ± {row['by_norm_sd']:.4f})"
    )
    if row["published"]:
        published, sd = row["published"]
        row["text"] += f"; published {published:.4f} ± {sd:.4f}"
        if len(means) > 1 and (error := math.sqrt((row["sd"] ** 2 + sd**2) / (len(means) - 1))):
            row["standard_errors"] = abs(row["mean"] - published) / error
            row["text"] += f": {row['standard_errors']:.1f} standard errors apart"
    return row
