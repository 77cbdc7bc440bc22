"""The high-precision cross-entropy against mpmath at 50 digits."""

import math

import mpmath
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.losses import hp_sparse_softmax_cross_entropy_with_logits_v1 as loss_v1
from models.losses import hp_sparse_softmax_cross_entropy_with_logits_v2 as loss_v2

mpmath.mp.dps = 50


def exact(z, y, log_frame):
    """(loss, gradient by the logits) in the frame, as mpmath numbers; z is taken as it is."""
    z = [mpmath.mpf(float(v)) for v in z]
    e = [mpmath.exp(v - z[y]) if j != y else mpmath.mpf(0) for j, v in enumerate(z)]
    s = mpmath.fsum(e)
    scale = mpmath.exp(-mpmath.mpf(log_frame))
    gradient = [v / (1 + s) * scale for v in e]
    gradient[y] = -s / (1 + s) * scale
    return mpmath.log1p(s) * scale, gradient


def ours(z, y, log_frame, loss=loss_v2):
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(y, z, log_frame) if loss is loss_v2 else loss(y, z)
    return value.numpy(), tape.gradient(value, z).numpy()


def assert_close(got, want, rtol=1e-12):
    assert abs(mpmath.mpf(float(got)) - want) <= rtol * abs(want), (got, want)


@pytest.mark.parametrize("log10_loss", [1, 0, -1, -5, -13, -14, -50, -300, -320, -800, -3000])
@pytest.mark.parametrize("frame_off", [0.0, 3.7, -20.0])
def test_value_and_gradient_are_exact_from_10_to_1e_minus_3000(log10_loss, frame_off):
    """Float64 logits, so that the gradient too comes back in float64."""
    rng = np.random.default_rng(abs(log10_loss))
    z = np.sort(rng.uniform(-3, 0, (5, 10)), axis=1)[:, ::-1].copy()
    y = np.array([3, 1, 4, 0, 9], np.int32)
    # The largest wrong logit stands so far above or below the label's that the loss is about right.
    gap = 10**log10_loss if log10_loss >= 0 else log10_loss * math.log(10)
    z[np.arange(5), y] = -gap
    log_frame = math.log(10) * log10_loss + frame_off
    value, gradient = ours(z, y, log_frame)
    for i in range(5):
        want, want_gradient = exact(z[i], y[i], log_frame)
        assert_close(value[i], want)
        for j in range(10):
            assert_close(gradient[i, j], want_gradient[j])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-7000, 7000, width=32), min_size=2, max_size=10), st.integers(0, 9), st.floats(-30, 30))
def test_value_is_exact_for_float32_logits_of_any_size(z, y, frame_off):
    z = np.array([z], np.float32)
    y = np.array([y % z.shape[1]], np.int32)
    log_loss, _ = exact(z[0], y[0], 0.0)
    log_frame = float(mpmath.log(log_loss)) + frame_off
    if not abs(log_frame) < 7000 or log_loss == 0:
        return
    value, _ = ours(z, y, log_frame)
    want, _ = exact(z[0], y[0], log_frame)
    assert_close(value[0], want)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-40, 5), min_size=3, max_size=3), st.integers(0, 2))
def test_v1_equals_v2_without_a_frame(z, y):
    z = np.array([z])
    y = np.array([y], np.int32)
    value, gradient = ours(z, y, 0.0, loss_v1)
    want, want_gradient = exact(z[0], y[0], 0.0)
    assert_close(value[0], want)
    for got, expected in zip(gradient[0], want_gradient, strict=True):
        assert_close(got, expected)


def published_v2(z, y, log_frame):
    """The published formula, with its switch for the whole batch."""
    d = np.array([[v - row[k] for j, v in enumerate(row) if j != k] for row, k in zip(z, y, strict=True)])
    if d.max() < -30:
        return np.exp(d - log_frame).sum(axis=1)
    return np.logaddexp(0, np.log(np.exp(d).sum(axis=1))) / np.exp(log_frame)


@pytest.mark.parametrize("size", [1.0, 50.0, 500.0])
def test_agrees_with_the_published_formula_on_either_side_of_its_switch(size):
    rng = np.random.default_rng(1)
    z = rng.uniform(-1, 0, (20, 10))
    y = rng.integers(0, 10, 20).astype(np.int32)
    z[np.arange(20), y] = size
    np.testing.assert_allclose(ours(z, y, -size)[0], published_v2(z, y, -size), rtol=1e-12)


def test_agrees_with_tensorflows_own_op_where_that_is_precise():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(50, 10))
    y = rng.integers(0, 10, 50).astype(np.int32)
    with tf.GradientTape() as tape:
        logits = tf.constant(z)
        tape.watch(logits)
        want = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    value, gradient = ours(z, y, 0.0)
    np.testing.assert_allclose(value, want, rtol=1e-13)
    np.testing.assert_allclose(gradient, tape.gradient(want, logits), rtol=1e-10, atol=1e-15)


def test_a_hopeless_example_in_a_small_frame_is_infinite_and_not_nan():
    value, _ = ours(np.array([[0.0, 5.0]]), np.array([0], np.int32), -2000.0)
    assert value[0] == np.inf
