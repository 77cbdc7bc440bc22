"""Mean losses of linear combinations of a few networks.

A ray w + t*delta and the plane of three networks are both of this kind: the tensors at a point are
sum_j c_j * basis_j. `PlainSpan` evaluates each point separately; `FastSpan` gives the same losses with shortcuts.
Both can return the logs of these losses, where the losses leave float64's range.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from engine.context import Context
from models.losses import cross_entropy, log_cross_entropy
from models.sequential import Place
from support.device import compiled
from support.screen import Update, ignore

PLAIN_FLOATS = 2**22  # activations of a layer in a block of the plain evaluation: larger blocks are no faster
CACHED_FLOATS = 2**21  # the same of a block that goes through several points: it stays in the processor's cache
FIRST_BLOCK = 512  # examples; a small first block soon tells a walk about where its end is
KEPT_BYTES = 2**30  # what is computed once and kept, at most
STACK_BYTES = 2**28  # the tensors of all points that are evaluated together, at most
MOST_POINTS = 64
WORTHWHILE = 0.05  # a first layer with less than this part of the flops is evaluated like the others

Tensors = list  # of arrays, in the order of model.places(); in a basis None means zeros


@contextmanager
def using(places: list[Place], tensors: Tensors) -> Iterator[None]:
    """Context manager: these places hold tensors instead of their variables."""
    variables = [place.variable for place in places]
    try:
        for place, tensor in zip(places, tensors, strict=True):
            setattr(place.owner, place.kind, tensor)
        yield
    finally:
        for place, variable in zip(places, variables, strict=True):
            setattr(place.owner, place.kind, variable)


@compiled(jit_compile=True)  # one pass for a dozen small ops
def sum_of_losses(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the sum of the cross-entropies of examples [b], logits [b, C]; float64."""
    return tf.reduce_sum(cross_entropy(labels, logits))


@compiled(jit_compile=True)
def log_sum_of_losses(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the log of `sum_of_losses`, finite at any size of the losses; float64."""
    return tf.reduce_logsumexp(log_cross_entropy(labels, logits))


@compiled(jit_compile=True)  # one pass over memory, which is what these sums are bound by
def combined(coefficients: tf.Tensor, parts: list[tf.Tensor]) -> tf.Tensor:
    """Return sum_j coefficients_j * parts_j, of [d] and d tensors of one shape."""
    return sum(coefficients[j] * part for j, part in enumerate(parts))


@compiled(jit_compile=True)
def sum_of_losses_combined(
    labels: tf.Tensor, coefficients: tf.Tensor, parts: list[tf.Tensor], log: bool
) -> tf.Tensor:
    """Return the sum of losses, or its log, of `combined` logits, compiled into one."""
    return SUMS[log](labels, combined(coefficients, parts))


SUMS = {False: sum_of_losses, True: log_sum_of_losses}  # by whether the log is wanted
ADD = {False: np.add, True: np.logaddexp}


def nan_if_no_variance(model) -> tf.Tensor:
    """Return NaN where a batch norm's (perturbed) variance is negative, else 0; float32.

    The loss of such a network is NaN, which relu and max pool here would turn into a number.
    """
    norms = [layer.bn for layer in model.layers if layer.bn is not None]
    return sum((0.0 * tf.reduce_sum(tf.sqrt(bn.variance + bn.EPS)) for bn in norms), tf.constant(0.0))


class Examples:
    """A training set as layer 0 sees it, on the device.

    Args:
      model: maps images to logits.
      images: integer pixels [N, h, w, c]; labels: int32 [N].
      update: called between blocks with the completed fraction of a pass; may raise.
    """

    def __init__(self, model: Any, images: np.ndarray, labels: np.ndarray, update: Update = ignore):
        self.model, self.update = model, update
        self.pixels, self.labels = tf.constant(images), tf.constant(labels)
        self.functions: dict = {}  # graphs that serve every span
        self.normalized = None
        if 4 * images.size <= KEPT_BYTES // 4:
            self.normalized = tf.concat([self.inputs(block) for block in self.blocks(4096)], 0)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def blocks(self, size: int, first: int | None = None) -> list[slice]:
        """Consecutive blocks of a size; the first one perhaps of another."""
        starts = [0, *range(first or size, len(self), size)]
        return [slice(*ends) for ends in zip(starts, [*starts[1:], len(self)], strict=True)]

    def passing(self, block: slice) -> None:
        """Report that a pass has reached this block. Raises: what `update` raises."""
        self.update(block.start / len(self))

    def graph(self, key, function: Callable) -> Callable:
        """Return the graph of a function. It is traced once for each key, for all callers."""
        return self.functions.setdefault(key, compiled(function, reduce_retracing=True))

    def inputs(self, block: slice) -> tf.Tensor:
        """Return layer 0's input for these examples, float32 [b, ...]."""
        if self.normalized is not None:
            return self.normalized[block]
        return self.model.before(0, self.model.pixels(self.pixels[block]))


def examples_of(context: Context) -> Examples:
    """Return the training set of a Context, made once."""
    (x, y), _ = context.dataset
    return context.kept("examples", None, lambda: Examples(context.model, x, y, context.update))


class PlainSpan:
    """The definition: at each point set the weights, and take the mean loss over the whole set.

    Args:
      examples: the training set.
      basis: the networks; see the module.
      log: whether the logs of the losses are wanted.
    """

    def __init__(self, examples: Examples, basis: list[Tensors], log: bool = False):
        self.examples, self.model, self.basis, self.log = examples, examples.model, basis, log
        width = max(int(np.prod(spec.out_shape)) for spec in self.model.specs)
        self.block_size = int(np.clip(PLAIN_FLOATS // width, 64, 2**13))
        model = self.model  # not self: the graph outlives this span

        def sum_of(inputs, labels):
            logits = model.after(0, model.layers[0].affine(inputs))
            return SUMS[log](labels, logits + nan_if_no_variance(model))

        self._sum = examples.graph(("plain", log), sum_of)

    def at(self, coefficients: Sequence[float]) -> Tensors:
        """Return the tensors sum_j c_j * basis_j, float32, added up in float64."""

        def combine(parts: tuple) -> np.ndarray:
            pairs = zip(coefficients, parts, strict=True)
            total: Any = sum(c * np.asarray(part, np.float64) for c, part in pairs if part is not None)
            return total.astype(np.float32)

        return [combine(parts) for parts in zip(*self.basis, strict=True)]

    def loss(self, coefficients: Sequence[float]) -> float:
        """Return the mean loss at a point [d], or its log."""
        self.model.set_weights(self.at(coefficients))
        sums = []
        for block in self.examples.blocks(self.block_size):
            self.examples.passing(block)
            sums.append(float(self._sum(self.examples.inputs(block), self.examples.labels[block])))
        return float(mean_of(np.array(sums), len(self.examples), self.log))

    def losses(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the mean losses at points [m, d], or their logs, float64 [m]."""
        return np.array([self.loss(c) for c in coefficients])


def span_of(context: Context, basis: list[Tensors], log: bool = False) -> "PlainSpan | FastSpan":
    """Return the span of these networks on the training set, evaluated as the flag `method` says.

    Args: as of `FastSpan`, which keeps its products with all of them.
    """
    examples = examples_of(context)
    if context.f.method == "plain":
        return PlainSpan(examples, basis, log)
    return FastSpan(examples, basis, keep=len(basis), log=log)


def mean_of(sums: np.ndarray, n: int, log: bool) -> np.ndarray:
    """Return the mean over n examples, or its log, from the sums over blocks of them, or their logs, [blocks,
    ...]."""
    total = ADD[log].reduce(sums, axis=0)
    return total - np.log(n) if log else total / n


class FastSpan:
    """The same losses, faster.

    - Layers below the first one that varies are evaluated once.
    - That layer is linear in the coefficients: x * sum_j c_j W_j = sum_j c_j (x * W_j). The products on
      the right are computed once for a block of examples. The block then goes through all points while
      it is in the processor's cache, because sums read from main memory would be slow.
    - A caller that searches the first point beyond a limit reads partial sums (`partial_sums`).

    Args:
      examples: the training set.
      basis: the networks; see the module. The first one is complete.
      keep: the products x * W_j of the first `keep` networks are kept for later calls.
      kept: the dict in which an earlier span with the same first `keep` networks kept them; it is added to.
      log: whether the logs of the losses are wanted.
    """

    def __init__(
        self, examples: Examples, basis: list[Tensors], keep: int = 1, kept: dict | None = None, log: bool = False
    ):
        self.examples, self.model, self.log = examples, examples.model, log
        self.kept = {} if kept is None else kept
        places = self.model.places()
        layer_of = [place.layer for place in places]
        self.first = min(
            k for k, *parts in zip(layer_of, *basis[1:], strict=True) if any(p is not None for p in parts)
        )
        specs = [spec for spec in self.model.specs if spec.weight_shape is not None]
        flops = [spec.flops for spec in specs[self.first :]]
        self.linear = flops[0] >= WORTHWHILE * sum(flops)
        width = max(int(np.prod(spec.out_shape)) for spec in specs[self.first :])
        size = int(np.clip(CACHED_FLOATS // width, 64, 2**15))
        self.blocks = examples.blocks(size, min(size, FIRST_BLOCK))
        own = [i for i, k in enumerate(layer_of) if k >= self.first]
        below = [i for i, k in enumerate(layer_of) if k < self.first]
        self._places = [places[i] for i in own]
        self._below_places = [places[i] for i in below]
        self._below = [tf.constant(basis[0][i], tf.float32) for i in below]
        self._basis = [
            [tf.constant(np.zeros_like(basis[0][i]) if b[i] is None else b[i], tf.float32) for i in own]
            for b in basis
        ]
        # The first layer's own tensors are never combined where its products are.
        skipped = self._own_of_first() if self.linear else 0
        self._stacked = slice(skipped, None)
        size = sum(4 * int(np.prod(t.shape)) for t in self._basis[0][self._stacked]) or 1
        self.most_points = int(np.clip(STACK_BYTES // size, 1, MOST_POINTS))
        self._products = self._what_stays(specs[self.first], keep)

    def _graph(self, name: str, function: Callable) -> Callable:
        """Return a graph for all spans of these examples. It outlives this span, so the function must not hold
        self."""
        return self.examples.graph((name, self.first, self.log), function)

    # What is computed once

    def _what_stays(self, spec, keep: int) -> list[tf.Tensor]:
        """Keep the inputs of layer `first`, where layers are below it, and the products with it, if they fit."""
        n = len(self.examples)
        self._features, products = None, []
        if self.first > 0 and 4 * n * int(np.prod(spec.in_shape)) <= KEPT_BYTES // 2:
            if "features" not in self.kept:
                widest = max(int(np.prod(spec.out_shape)) for spec in self.model.specs)
                blocks = self.examples.blocks(int(np.clip(PLAIN_FLOATS // widest, 64, 2**13)))
                self.kept["features"] = tf.concat([self._input(b) for b in blocks], 0)
            self._features = self.kept["features"]
        if self.linear and 4 * n * keep * int(np.prod(spec.out_shape)) <= KEPT_BYTES:
            if "products" not in self.kept:
                blocks = self.examples.blocks(4096)
                self.kept["products"] = [
                    tf.concat([self._product(j, self._input(b)) for b in blocks], 0) for j in range(keep)
                ]
            products = self.kept["products"]
        return products

    def _input(self, block: slice) -> tf.Tensor:
        """Return the input of layer `first`."""
        self.examples.passing(block)
        if self.first == 0:
            return self.examples.inputs(block)
        if self._features is not None:
            return self._features[block]

        model, first, places = self.model, self.first, self._below_places

        def below(pixels, tensors):
            with using(places, tensors):
                return model.before(first, model.pixels(pixels))

        return self._graph("below", below)(self.examples.pixels[block], self._below)

    def _product(self, j: int, x: tf.Tensor) -> tf.Tensor:
        layer, places = self.model.layers[self.first], self._places

        def product(x, tensors):
            with using(places[: len(tensors)], tensors):
                return layer.affine(x)

        return self._graph("product", product)(x, self._basis[j][: self._own_of_first()])

    def _own_of_first(self) -> int:
        """Return how many of the places are the weight and bias of layer `first`."""
        return 1 if self.model.layers[self.first].bias is None else 2

    # Losses

    def partial_sums(self, coefficients: np.ndarray) -> Generator[tuple[int, np.ndarray], int | None, None]:
        """For one block of examples after another: (its size, sums of its losses, or their logs, float64 [m]).

        Send the generator the number of points, counted from the first, that are still wanted.

        Args:
          coefficients: [m, d], m at most most_points.
        """
        c = tf.constant(coefficients, tf.float32)
        varying = zip(*(tensors[self._stacked] for tensors in self._basis), strict=True)
        stacks = [tf.tensordot(c, tf.stack(parts), 1) for parts in varying]
        wanted = len(coefficients)
        for block in self.blocks:
            self.examples.passing(block)
            products = [kept[block] for kept in self._products]
            x = None
            if len(products) < len(self._basis):
                x = self._input(block)
            if self.linear:
                products += [self._product(j, x) for j in range(len(products), len(self._basis))]
                x = None
            sums = self._graph("sums", self._sums_of_losses())(
                x, products, self.examples.labels[block], c[:wanted], stacks
            ).numpy()
            answer = yield block.stop - block.start, sums
            wanted = wanted if answer is None else answer

    def _sums_of_losses(self) -> Callable:
        model, first, places, log = self.model, self.first, self._places[self._stacked], self.log
        layer = model.layers[first]
        logits_follow = layer is model.layers[-1] and not model.specs[-1].act and layer.bn is None

        def sums_of_losses(x, products, labels, c, stacks):
            def at_point(i):
                if products and logits_follow:
                    return sum_of_losses_combined(labels, c[i], products, log)
                with using(places, [stack[i] for stack in stacks]):
                    z = combined(c[i], products) if products else layer.affine(x)
                    logits = model.after(first, z) + nan_if_no_variance(model)
                    return SUMS[log](labels, logits)

            signature = tf.TensorSpec([], tf.float64)
            # Three points concurrently: while an op of one runs on a single thread, the others use the other cores.
            # When a point is a single small op, more are faster.
            at_once = 8 if products and logits_follow else 3
            points = tf.range(tf.shape(c)[0])
            return tf.map_fn(at_point, points, fn_output_signature=signature, parallel_iterations=at_once)

        return sums_of_losses

    def losses(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the mean losses at points [m, d], or their logs, float64 [m]."""
        parts = []
        for start in range(0, len(coefficients), self.most_points):
            sums = [sums for _, sums in self.partial_sums(coefficients[start : start + self.most_points])]
            parts.append(mean_of(np.array(sums), len(self.examples), self.log))
        return np.concatenate(parts)
