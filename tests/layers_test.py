"""The replaced ops give TensorFlow's own numbers."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models import layers


def outputs_and_gradients(f, x, dy, *weights):
    """f(x), and the gradients of sum(f(x) * dy) by x and the weights."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = f(x)
        loss = tf.reduce_sum(y * dy)
    return [y, *tape.gradient(loss, [x, *weights])]


def assert_same_with_gradients(layer, plain, x, dy):
    sides = [outputs_and_gradients(f, x, dy, layer.weight) for f in (layer, plain)]
    for got, want in zip(*sides, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


PLAIN = {
    layers.max_pool: lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"),
    layers.relu_max_pool: lambda x: tf.nn.max_pool2d(tf.nn.relu(x), 2, 2, "VALID"),
}


@pytest.mark.parametrize("pool", PLAIN, ids=lambda f: f.__name__)
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(2, 4, 6, 3), (1, 5, 5, 2), (3, 7, 4, 1), (2, 2, 2, 8)]), st.integers(0, 10**6), st.booleans()
)
def test_max_pools_are_tensorflows_bit_for_bit_ties_included(pool, shape, seed, ties):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape) if ties else rng.normal(size=shape)
    dy = tf.constant(rng.normal(size=(shape[0], shape[1] // 2, shape[2] // 2, shape[3])), tf.float32)
    x = tf.constant(x, tf.float32)
    for got, want in zip(outputs_and_gradients(pool, x, dy), outputs_and_gradients(PLAIN[pool], x, dy), strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_fully_connected_layer_and_its_gradients_are_tensorflows():
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(7, 3, 4, 2)), tf.float32)
    layer = layers.FullyConnected(rng.normal(size=(24, 5)).astype(np.float32), None, "fc")
    dy = tf.constant(rng.normal(size=(7, 5)), tf.float32)
    assert_same_with_gradients(layer, lambda x: tf.reshape(x, [7, 24]) @ layer.weight, x, dy)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((2, 7, 5, 1), (5, 5)), ((3, 6, 6, 3), (3, 3)), ((2, 5, 4, 2), (4, 2)), ((1, 2, 2, 4), (5, 3))],
)
def test_a_convolution_of_an_image_and_its_gradients_are_tensorflows(shape, kernel):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=shape), tf.float32)
    layer = layers.Conv(rng.normal(size=(*kernel, shape[3], 6)).astype(np.float32), None, "conv")
    dy = tf.constant(rng.normal(size=(*shape[:3], 6)), tf.float32)
    assert_same_with_gradients(layer, lambda x: tf.nn.conv2d(x, layer.weight, 1, "SAME"), x, dy)
