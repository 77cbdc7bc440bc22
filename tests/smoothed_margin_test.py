"""The smoothed margin, the balance of norms and the angle (`models.margins`), against mpmath."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import margins

mpmath.mp.dps = 60


@settings(deadline=None)
@given(st.floats(-10_000, math.log(math.log(2)) - 1e-9), st.integers(1, 60_000))
def test_the_smoothed_margin_is_what_mpmath_says_down_to_losses_of_e_minus_10000(log_sum, n):
    log_loss = log_sum - math.log(n)
    exact = -mpmath.log(mpmath.expm1(mpmath.exp(mpmath.mpf(log_loss) + mpmath.log(n))))
    found = margins.smoothed_margin(log_loss, n)
    assert math.isnan(found) or abs(found - float(exact)) <= 1e-13 * max(abs(log_loss), 1)
    assert not math.isnan(found) or exact < 1e-12


@pytest.mark.parametrize("log_loss", [math.log(math.log(2) / 100), 0.0, 700.0, math.nan])
def test_there_is_none_before_the_summed_loss_is_below_log_2(log_loss):
    assert math.isnan(margins.smoothed_margin(log_loss, 100))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 6), st.floats(-2, 3.5))
def test_it_lies_in_the_sandwich_for_any_gaps(seed, n, n_classes, log10_scale):
    rng = np.random.default_rng(seed)
    s = 10**log10_scale * (1 + rng.random((n, n_classes - 1)))
    log_l = margins.log_losses(np.logaddexp.reduce(-s, axis=1))
    log_loss = margins.log_mean_exp(log_l)
    g, q_min, total = margins.smoothed_margin(log_loss, n), s.min(), n * math.exp(log_loss)
    if not math.isnan(g):
        q_tilde = [margins.smoothed_margin(value, 1) for value in log_l]
        slack = 1e-12 * s.max()
        assert q_min - math.log(n * (n_classes - 1)) - total <= g + slack
        assert g <= min(q_tilde) + slack and min(q_tilde) <= q_min + slack


def test_balance_is_the_ratio_of_the_margins_and_1_for_equal_norms():
    rho_k = [0.3, 2.0, 5.0, 1.1]
    stats = margins.norms([[np.array([r])] for r in rho_k], "relu")
    expected = 4 ** (4 / 2) * stats["norm_prod"] / stats["rhoL"]  # q_bar_min / q_bar2_min
    assert margins.balance(rho_k, [1] * 4) == pytest.approx(expected, rel=1e-13)
    assert margins.balance([0.7] * 4, [1] * 4) == pytest.approx(1, rel=1e-14)
    # relu2: the product of rho_k^e_k is largest where rho_k^2 is in proportion to e_k.
    assert margins.balance([2 * math.sqrt(e) for e in (4, 2, 1)], [4, 2, 1]) == pytest.approx(1, rel=1e-14)
    assert margins.balance([2.0, 2.0, 2.0], [4, 2, 1]) < 1


@pytest.mark.parametrize("size", [1e-8, 1e-6, 0.1, 1.0])
def test_the_angle_keeps_its_digits_however_small_it_is(size):
    rng = np.random.default_rng(0)
    a = [rng.standard_normal((5, 7)), rng.standard_normal(7)]
    b = [1.0001 * (w + size * rng.standard_normal(w.shape)) for w in a]
    u, v = (mpmath.matrix([mpmath.mpf(float(x)) for w in ws for x in w.ravel()]) for ws in (a, b))
    u, v = u / mpmath.norm(u), v / mpmath.norm(v)
    exact = 2 * mpmath.asin(mpmath.norm(u - v) / 2)
    assert margins.angle(a, b) == pytest.approx(float(exact), rel=1e-3 if size == 1e-8 else 1e-6)
