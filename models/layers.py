"""Layers over tf.Module. Activations are float32, NHWC.

TensorFlow's gradients of three ops are slow on a CPU, so these ops have custom gradients here:
- max pool: TensorFlow runs its gradient on one thread;
- the input of a fully connected layer: TensorFlow uses a kernel for the transposed product that is half as fast;
- the input of a convolution of few channels: oneDNN lacks a fast kernel for it. Only attacks need it.
They return TensorFlow's own numbers (tests/layers_test.py). `bench/train_step.py --ops` times the first two.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from models.architectures import BN_EPSILON, LayerSpec, slope_of
from support.device import compiled

Gradient = Callable[..., Any]

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "relu": tf.nn.relu,
    "linear": tf.identity,
    "relu2": lambda x: tf.square(tf.nn.relu(x)),
}


def activation(act_type: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the activation that the flag act_type names."""
    if act_type in ACTIVATIONS:
        return ACTIVATIONS[act_type]
    slope = slope_of(act_type)
    return lambda x: tf.nn.leaky_relu(x, slope)


class BatchNorm(tf.Module):
    """Batch normalization over all axes but the last (arXiv 1502.03167), as PyTorch has it.

    Training normalizes with the batch's mean and variance and moves the running ones a tenth of the
    way towards them (the running variance is the unbiased one); evaluation uses the running ones.

    Args:
      channels: the size of the last axis.
    """

    MOMENTUM, EPS = 0.1, BN_EPSILON

    def __init__(self, channels: int):
        super().__init__("bn")
        self.channels = channels
        scale, shift, mean, variance = self.initial_values()
        self.scale = tf.Variable(scale, name="scale")
        self.shift = tf.Variable(shift, name="shift")
        self.mean = tf.Variable(mean, trainable=False, name="mean")
        self.variance = tf.Variable(variance, trainable=False, name="variance")

    def initial_values(self) -> list[np.ndarray]:
        """Return scale, shift, running mean and variance of a new network, float32 [channels] each."""
        ones, zeros = np.ones(self.channels, np.float32), np.zeros(self.channels, np.float32)
        return [ones, zeros, zeros, ones]

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        if not training:
            return self._normalized(x, self.mean, self.variance)
        mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
        n = tf.cast(tf.size(x) / tf.size(mean), tf.float32)
        self.mean.assign_add(self.MOMENTUM * (mean - self.mean))
        unbiased = variance * n / tf.maximum(n - 1, 1)
        self.variance.assign_add(self.MOMENTUM * (unbiased - self.variance))
        return self._normalized(x, mean, variance)

    def _normalized(self, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        # One multiply-add an element; a negative (perturbed) variance gives NaN.
        factor = self.scale * tf.math.rsqrt(variance + self.EPS)
        return x * factor + (self.shift - mean * factor)


class Weighted(tf.Module):
    """A layer with a weight and perhaps a bias and a batch norm.

    Args:
      weight: initial value, float32.
      bias: initial value, float32 [cout], or None.
      bn: whether a batch norm follows.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray | None, name: str, bn: bool = False):
        super().__init__(name)
        self.weight = tf.Variable(weight, name="weight")
        self.bias = None if bias is None else tf.Variable(bias, name="bias")
        self.bn = BatchNorm(weight.shape[-1]) if bn else None

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (factor, shift), float64 [cout]: the layer, evaluated, is x * weight * factor + shift.

        They contain the bias and the batch norm with its running statistics.
        """
        channels = self.weight.shape[-1]
        bias = np.zeros(channels) if self.bias is None else self.bias.numpy().astype(np.float64)
        if self.bn is None:
            return np.ones(channels), bias
        scale, shift, mean, variance = (
            v.numpy().astype(np.float64) for v in (self.bn.scale, self.bn.shift, self.bn.mean, self.bn.variance)
        )
        factor = scale / np.sqrt(variance + self.bn.EPS)
        return factor, (bias - mean) * factor + shift

    def _linear(self, x: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def affine(self, x: tf.Tensor) -> tf.Tensor:
        """Return x * weight + bias: linear in (weight, bias) together."""
        z = self._linear(x)
        return z if self.bias is None else tf.nn.bias_add(z, self.bias)

    def gram(self, x: tf.Tensor, dz: tf.Tensor) -> tf.Tensor:
        """Return <g_i, g_j>, float64 [B, B]: g_i is the gradient of a number of example i by weight and bias.

        Args:
          x: the layer's input [B, ...]. dz: the gradient of each example's number by the layer's affine part.
        """
        g = self._gram_of_weight(tf.cast(x, tf.float64), tf.cast(dz, tf.float64))
        if self.bias is not None:
            by_bias = tf.reduce_sum(tf.cast(dz, tf.float64), list(range(1, len(dz.shape) - 1)))
            g += tf.matmul(by_bias, by_bias, transpose_b=True)
        return g

    def _gram_of_weight(self, x: tf.Tensor, dz: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        z = self.affine(x)
        return z if self.bn is None else self.bn(z, training)


@tf.custom_gradient
def conv_of_image(x: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Convolve, stride 1, SAME, [B, h, w, cin] with [kh, kw, cin, cout], for few cin."""

    def grad(dz: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        kh, kw, cin, cout = weight.shape
        columns = tf.matmul(
            tf.reshape(dz, [-1, cout]), tf.reshape(weight, [-1, cout]), transpose_b=True
        )  # [B h w, kh kw cin]
        d_weight = tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=weight.shape, out_backprop=dz, strides=[1] * 4, padding="SAME"
        )
        return _shifted_sum(tf.reshape(columns, [-1, *x.shape[1:3], kh, kw, cin])), d_weight

    return tf.nn.conv2d(x, weight, strides=1, padding="SAME"), grad


@compiled(jit_compile=True)
def _shifted_sum(columns: tf.Tensor) -> tf.Tensor:
    """Add the value for tap (i, j) to the pixel that the tap has read: [B, h, w, kh, kw, c] -> [B, h, w, c]."""
    h, w, kh, kw = columns.shape[1:5]
    before, after = ((kh - 1) // 2, (kw - 1) // 2), (kh // 2, kw // 2)  # SAME's padding
    rows, cols = ((after[k], before[k]) for k in range(2))
    wide = tf.pad(columns, [[0, 0], rows, cols, [0, 0], [0, 0], [0, 0]])
    taps = [(i, j) for i in range(kh) for j in range(kw)]
    return tf.add_n([wide[:, kh - 1 - i : kh - 1 - i + h, kw - 1 - j : kw - 1 - j + w, i, j] for i, j in taps])


class Conv(Weighted):
    """Convolution, [B, h, w, cin] -> [B, h', w', cout]: of stride 1 and SAME unless it is given other values.

    Args:
      stride: (h, w). pads: (top, bottom, left, right), rows and columns of zeros; None: SAME.
      The others: as for `Weighted`.
    """

    def __init__(self, *args: Any, stride: tuple[int, int] = (1, 1), pads: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stride, self.pads = stride, pads
        self.padding = "SAME" if pads is None else "VALID"

    def _padded(self, x: tf.Tensor) -> tf.Tensor:
        return x if self.pads is None else tf.pad(x, [[0, 0], self.pads[:2], self.pads[2:], [0, 0]])

    def _linear(self, x: tf.Tensor) -> tf.Tensor:
        if self.weight.shape[2] <= 4 and self.pads is None:
            return conv_of_image(x, tf.convert_to_tensor(self.weight))
        return tf.nn.conv2d(self._padded(x), self.weight, strides=self.stride, padding=self.padding)

    def _gram_of_weight(self, x: tf.Tensor, dz: tf.Tensor) -> tf.Tensor:
        kh, kw, _, _ = self.weight.shape
        taps, strides = [1, kh, kw, 1], [1, *self.stride, 1]
        patches = tf.image.extract_patches(
            self._padded(x), taps, strides, [1] * 4, self.padding
        )  # [B, h, w, kh kw cin]
        g = tf.einsum("bhwp,bhwc->bpc", patches, dz)
        g = tf.reshape(g, [tf.shape(g)[0], -1])
        return tf.matmul(g, g, transpose_b=True)


def matmul_transposed(dz: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Return dz @ weight^T, [B, cout] @ [cout, cin], with a kernel that reads the weight as it lies in memory."""
    return tf.raw_ops.BatchMatMulV2(x=dz, y=weight, adj_y=True)


def slices(n: Any, parts: int) -> list[slice]:
    """Cut n examples, a number or a tensor, into slices of equal size, give or take one."""
    return [slice(n * k // parts, n * (k + 1) // parts) for k in range(parts)]


class FullyConnected(Weighted):
    """[B, ...] -> [B, units]; flattens in NHWC order.

    Attributes:
      parts: into how many slices of examples the product is cut, which TensorFlow computes concurrently. The two
        products of the gradient are concurrent anyway; each takes all examples, so that no gradients of the size of
        the weight have to be added up.
    """

    parts = 1

    def _linear(self, x: tf.Tensor) -> tf.Tensor:
        return self._product(
            tf.reshape(x, [x.shape[0] or -1, self.weight.shape[0]]), tf.convert_to_tensor(self.weight)
        )

    def _product(self, x: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Return x @ weight, [B, cin] @ [cin, cout], with both gradients as plain products."""

        @tf.custom_gradient
        def product(x: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
            def grad(dz: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                return matmul_transposed(dz, weight), tf.matmul(x, dz, transpose_a=True)

            if self.parts == 1:
                return tf.matmul(x, weight), grad
            n = x.shape[0] or tf.shape(x)[0]
            return tf.concat([tf.matmul(x[part], weight) for part in slices(n, self.parts)], axis=0), grad

        return product(x, weight)

    def _gram_of_weight(self, x: tf.Tensor, dz: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(x, [-1, self.weight.shape[0]])  # g_i is the outer product of x_i and dz_i
        return tf.matmul(x, x, transpose_b=True) * tf.matmul(dz, dz, transpose_b=True)


@compiled(jit_compile=True)
def max_pool_grad(x: tf.Tensor, y: tf.Tensor, dy: tf.Tensor, positive_only: bool = False) -> tf.Tensor:
    """Give each dy to the first element of its 2x2 window, row by row, that equals the maximum y.

    Compiled into one pass over the data. x: [B, h, w, c]; y, dy: [B, h // 2, w // 2, c].
    positive_only: windows whose y is not positive pass no gradient (that of a relu after the pool).
    """
    h, w = 2 * y.shape[1], 2 * y.shape[2]
    free = y > 0 if positive_only else tf.ones_like(y, tf.bool)
    rows = []
    for i in range(2):
        row = []
        for j in range(2):
            is_max = free & (x[:, i:h:2, j:w:2] == y)
            free &= ~is_max
            row.append(tf.where(is_max, dy, 0.0))
        rows.append(tf.stack(row, axis=3))  # [B, h/2, w/2, 2, c]
    dx = tf.reshape(tf.stack(rows, axis=2), [-1, h, w, x.shape[3]])
    # VALID leaves an odd last row or column out.
    return tf.pad(dx, [[0, 0], [0, x.shape[1] - h], [0, x.shape[2] - w], [0, 0]])


@tf.custom_gradient
def max_pool(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Pool 2x2, stride 2, VALID: [B, h, w, c] -> [B, h // 2, w // 2, c]."""
    y = tf.nn.max_pool2d(x, 2, 2, "VALID")
    return y, lambda dy: max_pool_grad(x, y, dy)


@tf.custom_gradient
def relu_max_pool(x: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Return max_pool(relu(x)). The relu comes after the pool, on a quarter of the data, with the same result."""
    y = _max_pool_then_relu(x)
    return y, lambda dy: max_pool_grad(x, y, dy, positive_only=True)


@compiled(jit_compile=True)
def _max_pool_then_relu(x: tf.Tensor) -> tf.Tensor:
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    row, next_row = (tf.maximum(x[:, i:h:2, 0:w:2], x[:, i:h:2, 1:w:2]) for i in range(2))
    return tf.nn.relu(tf.maximum(row, next_row))


def pool_of(spec: LayerSpec) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the pool that a layer describes, VALID: [B, h, w, c] -> [B, h', w', c]."""
    if spec.kind == "P" and spec.plain:
        return max_pool
    pool = tf.nn.max_pool2d if spec.kind == "P" else tf.nn.avg_pool2d
    return lambda x: pool(x, spec.window, spec.stride, "VALID")
