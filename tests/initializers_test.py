"""Initial weights: their distributions, normalization and seeds."""

import math

import numpy as np
import pytest

from models.initializers import INITIALIZERS, initial_value

SHAPE = (5, 5, 32, 64)
FAN_IN, FAN_OUT = 5 * 5 * 32, 5 * 5 * 64


def draw(name, shape=SHAPE, **options):
    return initial_value(np.random.default_rng(0), shape, name, **options)


@pytest.mark.parametrize(
    "name, std, bound",
    [
        ("he_normal", math.sqrt(2 / FAN_IN), 2 / 0.8796 * math.sqrt(2 / FAN_IN)),
        ("he_uniform", math.sqrt(2 / FAN_IN), math.sqrt(6 / FAN_IN)),
        ("glorot_normal", math.sqrt(2 / (FAN_IN + FAN_OUT)), 2 / 0.8796 * math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("glorot_uniform", math.sqrt(2 / (FAN_IN + FAN_OUT)), math.sqrt(6 / (FAN_IN + FAN_OUT))),
        ("truncated_normal", 0.87962566, 2.0),
        ("random_normal", 1.0, math.inf),
    ],
)
def test_width_and_bound_are_the_defined_ones(name, std, bound):
    value = draw(name)
    assert value.std() == pytest.approx(std, rel=0.01)
    assert abs(value.mean()) < 0.02 * std
    assert np.abs(value).max() <= bound * (1 + 1e-6)


def test_zeros_are_zero():
    assert not draw("zeros").any()


@pytest.mark.parametrize("name", sorted(set(INITIALIZERS) - {"zeros"}))
def test_normalized_tensors_have_the_given_norm_and_the_same_direction(name):
    plain, scaled = draw(name), draw(name, normalized=True, rescale=3.0)
    assert np.linalg.norm(scaled) == pytest.approx(3.0, rel=1e-6)
    np.testing.assert_allclose(scaled / 3.0, plain / np.linalg.norm(plain), rtol=1e-5, atol=1e-9)


def test_rescale_multiplies():
    np.testing.assert_allclose(draw("he_normal", rescale=0.5), draw("he_normal") / 2, rtol=1e-6)


def test_fully_connected_fans_are_rows_and_columns():
    assert draw("he_normal", (400, 300)).std() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
