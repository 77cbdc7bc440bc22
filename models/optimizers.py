"""Optimizers: a weight w moves by -lr times a direction that the rule makes of the gradients.

Losses are in a frame (`models.losses`), so gradients are in units of exp(log_frame). What a rule accumulates from
them is float64, and is carried to the next frame by the ratio of both, so that the steps are those of the true loss
at any size of it. Where the direction does not depend on the size of the gradient, lr is the length of the step.

Matrices: a weight [..., cout] is the matrix [inputs, cout]; a vector (bias, batch norm) is a matrix of one row.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import tensorflow as tf

RANK = 1e-6  # singular values below this part of the largest are the rounding of float32 gradients


def polar(g: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return U V^T of the singular value decomposition U S V^T of g as a matrix, in g's shape, and the sum of S.

    By the eigenvectors of the smaller Gram matrix: exact, unlike Newton-Schulz iterations, whose singular values stay
    between 0.7 and 1.2. Directions whose singular value is below RANK times the largest are left out.
    """
    m = tf.reshape(g, [-1, g.shape[-1]])
    size = tf.reduce_max(tf.abs(m))
    m = tf.math.divide_no_nan(m, size)
    wide = m.shape[0] <= m.shape[1]
    gram = tf.matmul(m, m, transpose_b=True) if wide else tf.matmul(m, m, transpose_a=True)
    values, vectors = tf.linalg.eigh(gram)
    present = (values > RANK**2 * values[-1]) & (values > 0)
    roots = tf.sqrt(tf.where(present, values, 1.0))
    inverse = tf.matmul(vectors * tf.where(present, 1 / roots, 0.0), vectors, transpose_b=True)
    orthogonal = tf.matmul(inverse, m) if wide else tf.matmul(m, inverse)
    return tf.reshape(orthogonal, tf.shape(g)), size * tf.reduce_sum(tf.where(present, roots, 0.0))


class Optimizer(tf.Module):
    """Base of the rules.

    Args:
      shapes: of the weights.

    Attributes:
      POWERS: for each kind of accumulated moment the power of the gradient that it averages.
      length: whether lr is the length of a step.
    """

    POWERS: tuple[int, ...] = ()
    length = False

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        super().__init__()
        self.moments = [[tf.Variable(tf.zeros(shape, tf.float64)) for shape in shapes] for _ in self.POWERS]
        self.steps = tf.Variable(0.0, dtype=tf.float64)
        self.log_frame = tf.Variable(0.0, dtype=tf.float64)

    @property
    def slots(self) -> list[tf.Variable]:
        """What the rule accumulates, float64: moments, number of steps, the frame. Empty for one without memory."""
        return [*chain(*self.moments), self.steps, self.log_frame] if self.POWERS else []

    def carry(self, log_frame: tf.Tensor) -> None:
        """Express the moments in another frame."""
        for power, moments in zip(self.POWERS, self.moments, strict=True):
            ratio = tf.exp(power * (self.log_frame - log_frame))
            for moment in moments:
                moment.assign(tf.where(moment == 0, moment, moment * ratio))  # the ratio may be infinite
        self.log_frame.assign(log_frame)

    def average(self, kind: int, values: list[tf.Tensor], beta: float, share: float) -> list[tf.Tensor]:
        """Make m <- beta m + share value of each moment of a kind, and return them."""
        moments = self.moments[kind]
        averages = [beta * m + share * value for m, value in zip(moments, values, strict=True)]
        for moment, average in zip(moments, averages, strict=True):
            moment.assign(average)
        return averages

    def loss_factor(self, lr: tf.Tensor) -> tf.Tensor:
        """Return by what the loss is multiplied before its gradient is taken."""
        return tf.ones_like(lr)

    def apply(self, variables: Sequence[tf.Variable], gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        """Take a step; gradients are in the frame, times `loss_factor`."""
        self.steps.assign_add(1.0)
        directions = self.directions([tf.cast(g, tf.float64) for g in gradients])
        for variable, direction in zip(variables, directions, strict=True):
            variable.assign_sub(tf.cast(lr * direction, variable.dtype))

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the direction of each weight from its gradient; both float64."""
        raise NotImplementedError


class GD(Optimizer):
    """w <- w - lr g: plain (stochastic) gradient descent. Steepest in L2 (arXiv 1906.05890)."""

    def loss_factor(self, lr: tf.Tensor) -> tf.Tensor:
        # lr goes in while all is float64: gradient and lr by themselves may leave float32's range.
        return lr

    def apply(self, variables: Sequence[tf.Variable], gradients: Sequence[tf.Tensor], lr: tf.Tensor) -> None:
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(gradient)


class Momentum(Optimizer):
    """m <- beta m + g; w <- w - lr m: heavy-ball momentum (arXiv 2602.16340). L2."""

    POWERS = (1,)

    def __init__(self, shapes: Sequence[tuple[int, ...]], beta: float):
        super().__init__(shapes)
        self.beta = beta

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        return self.average(0, g, self.beta, 1.0)


class Nesterov(Momentum):
    """m <- beta m + g; w <- w - lr (g + beta m): Nesterov's momentum, as Keras and PyTorch have it. L2."""

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        return [value + self.beta * m for value, m in zip(g, super().directions(g), strict=True)]


class Normalized(Optimizer):
    """w <- w - lr g / ||g||_2, the norm over all weights together: normalized gradient descent. L2."""

    length = True

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        size = tf.reduce_max([tf.reduce_max(tf.abs(value)) for value in g])  # so that no square underflows
        g = [tf.math.divide_no_nan(value, size) for value in g]
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(value * value) for value in g]))
        return [tf.math.divide_no_nan(value, norm) for value in g]


class Sign(Optimizer):
    """w <- w - lr sign(g): sign descent. L-infinity of all weights (arXiv 2410.22069)."""

    length = True

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.sign(value) for value in g]


class Signum(Momentum):
    """m <- beta m + (1 - beta) g; w <- w - lr sign(m): Signum (arXiv 2602.16340). L-infinity."""

    length = True

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.sign(m) for m in self.average(0, g, self.beta, 1 - self.beta)]


class Adam(Optimizer):
    """w <- w - lr m' / (sqrt(v') + epsilon), with bias-corrected averages m' of g and v' of g^2 (arXiv 1412.6980).

    epsilon is in the frame; with 0, as arXiv 2602.16340 has it, the step does not depend on the loss's size. A weight
    whose gradient was always 0 stays. L-infinity.
    """

    POWERS, length = (1, 2), True

    def __init__(self, shapes: Sequence[tuple[int, ...]], beta1: float, beta2: float, epsilon: float):
        super().__init__(shapes)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        first = self.average(0, g, self.beta1, 1 - self.beta1)
        second = self.average(1, [value * value for value in g], self.beta2, 1 - self.beta2)
        one = tf.constant(1.0, tf.float64)
        c1, c2 = one - self.beta1**self.steps, one - self.beta2**self.steps
        return [
            tf.math.divide_no_nan(m / c1, tf.sqrt(v / c2) + self.epsilon) for m, v in zip(first, second, strict=True)
        ]


class Muon(Momentum):
    """m <- beta m + g; w <- w - lr U V^T of m = U S V^T, for each weight as a matrix: Muon.

    In the largest spectral norm of a weight. The update of arXiv 2602.16340, exact (`polar`). With beta = 0 it is
    spectral descent (arXiv 2410.22069).
    """

    length = True

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        return [polar(m)[0] for m in super().directions(g)]


class Steepest(Optimizer):
    """w <- w - lr ||g||_* d: d is the direction of norm 1 that lowers the loss fastest, ||g||_* the dual norm of g.

    Steepest descent (arXiv 2410.22069, section 2) in one of the norms l2 (gradient descent), linf (d = sign(g), the
    dual norm is L1), spectral (the largest spectral norm of a weight; the dual norm sums the singular values of all).
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], norm: str):
        super().__init__(shapes)
        self.norm = norm

    def directions(self, g: list[tf.Tensor]) -> list[tf.Tensor]:
        if self.norm == "l2":
            return g
        if self.norm == "linf":
            dual = tf.add_n([tf.reduce_sum(tf.abs(value)) for value in g])
            return [dual * tf.sign(value) for value in g]
        polars = [polar(value) for value in g]
        dual = tf.add_n([total for _, total in polars])
        return [dual * direction for direction, _ in polars]


CLASSES: dict[str, type[Any]] = {
    "gd": GD, "momentum": Momentum, "nesterov": Nesterov, "normalized": Normalized, "sign": Sign, "signum": Signum,
    "adam": Adam, "muon": Muon, "steepest": Steepest,
}  # fmt: skip


def build(name: str, arguments: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Optimizer:
    """Return the optimizer of a name of `catalogue.optimizers`, with its arguments."""
    made: Optimizer = CLASSES[name](shapes, **arguments)
    return made
