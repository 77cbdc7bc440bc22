"""Layers over tf.Module: activations are float32, NHWC."""

import tensorflow as tf

ACTIVATIONS = {
    "relu": tf.nn.relu,
    "linear": tf.identity,
    "relu2": lambda x: tf.square(tf.nn.relu(x)),
}


class Weighted(tf.Module):
    """A layer with a weight and perhaps a bias.

    Args:
      weight: initial value, float32.
      bias: initial value, float32 [cout], or None.
    """

    def __init__(self, weight, bias, name: str):
        super().__init__(name)
        self.weight = tf.Variable(weight, name="weight")
        self.bias = None if bias is None else tf.Variable(bias, name="bias")

    def _linear(self, x: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        z = self._linear(x)
        return z if self.bias is None else tf.nn.bias_add(z, self.bias)


class Conv(Weighted):
    """Convolution, stride 1, SAME: [B, h, w, cin] -> [B, h, w, cout]."""

    def _linear(self, x):
        return tf.nn.conv2d(x, self.weight, strides=1, padding="SAME")


class FullyConnected(Weighted):
    """[B, ...] -> [B, units]; flattens in NHWC order."""

    def _linear(self, x):
        return tf.matmul(tf.reshape(x, [-1, self.weight.shape[0]]), self.weight)


def max_pool(x: tf.Tensor) -> tf.Tensor:
    """2x2, stride 2, VALID: [B, h, w, c] -> [B, h // 2, w // 2, c]."""
    return tf.nn.max_pool2d(x, 2, 2, "VALID")


def avg_pool(x: tf.Tensor) -> tf.Tensor:
    """2x2, stride 2, VALID: [B, h, w, c] -> [B, h // 2, w // 2, c]."""
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")
