"""Stats against brute force: loops and mpmath over every example."""

import math

import mpmath
import numpy as np
import pytest

from models import margins

mpmath.mp.dps = 40


@pytest.fixture(params=[1.0, 30.0, 3000.0])
def case(request):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(40, 10)) * request.param).astype(np.float32)
    labels = rng.integers(0, 10, 40)
    logits[:30, :] -= 0
    logits[np.arange(30), labels[:30]] += np.float32(4 * request.param)
    return logits, labels


def brute_q(logits, labels):
    return [
        float(z[y]) - max(float(v) for j, v in enumerate(z) if j != y) for z, y in zip(logits, labels, strict=True)
    ]


def test_margins_are_the_label_minus_the_best_other_logit(case):
    assert margins.margins(margins.gaps(*case)).tolist() == brute_q(*case)


def test_log_losses_match_mpmath_at_any_size(case):
    logits, labels = case
    got = margins.log_losses(margins.log_odds_of_gaps(margins.gaps(logits, labels)))
    for value, z, y in zip(got, logits, labels, strict=True):
        s = mpmath.fsum(mpmath.exp(mpmath.mpf(float(v)) - float(z[y])) for j, v in enumerate(z) if j != y)
        assert abs(value - float(mpmath.log(mpmath.log1p(s)))) <= 1e-12 * max(1, abs(value))


def test_log_of_the_mean_loss_is_finite_where_the_mean_is_not():
    values = np.array([-7000.0, -7001.0, -9000.0])
    exact = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in values) / 3)
    assert margins.log_mean_exp(values) == pytest.approx(float(exact), rel=1e-14)


def test_support_counts_are_what_counting_gives(case):
    q = np.array(brute_q(*case))
    stats = margins.margin_stats(q, rhoL=2.0, norm_prod=4.0)
    for k in range(1, 8):
        assert stats[f"n_supp_{k}"] == sum(1 for v in q if v < min(q) + math.log(10**k))
    assert stats["q_min"] == min(q) and stats["q_max"] == max(q)
    assert stats["q_bar_min"] == min(q) / 2 and stats["q_bar2_min"] == min(q) / 4


@pytest.mark.parametrize("act_type", ["relu", "linear", "relu2"])
def test_norms_equal_those_of_the_flattened_layers(act_type):
    rng = np.random.default_rng(3)
    layers = [[rng.normal(size=(3, 4)), rng.normal(size=4)], [rng.normal(size=(4, 5))], [rng.normal(size=(5, 2))]]
    got = margins.norms(layers, act_type)
    rho_k = [math.sqrt(sum(float(v) ** 2 for t in layer for v in t.ravel())) for layer in layers]
    rho = math.sqrt(sum(r * r for r in rho_k))
    for k, r in enumerate(rho_k):
        assert got[f"rho_{k}"] == pytest.approx(r, rel=1e-14)
    assert got["rho"] == pytest.approx(rho, rel=1e-14)
    if act_type == "relu2":
        assert got["norm_prod"] == pytest.approx(((rho_k[0] ** 2) * rho_k[1]) ** 2 * rho_k[2], rel=1e-14)
        assert got["rhoL"] == pytest.approx(rho**5, rel=1e-14)
    else:
        assert got["norm_prod"] == pytest.approx(rho_k[0] * rho_k[1] * rho_k[2], rel=1e-14)
        assert got["rhoL"] == pytest.approx(rho**3, rel=1e-14)


def test_powers_of_deep_networks_of_relu2_leave_float64s_range_as_infinity_and_0():
    deep = [[np.full((2, 2), 50.0)]] * 12
    found = margins.norms(deep, "relu2")
    assert found["norm_prod"] == found["rhoL"] == math.inf
    assert margins.margin_stats(np.ones(3), **norms_of(found))["q_bar_min"] == 0
    smoothed = margins.smoothed_stats(-20.0, 10, found, [2 ** (11 - k) for k in range(12)])
    assert math.isnan(smoothed["smoothed_q_bar"]) and math.isnan(smoothed["smoothed_q_bar2"])
    small = margins.norms([[np.full((2, 2), 1e-3)]] * 12, "relu2")
    assert small["rhoL"] == 0 and math.isnan(margins.margin_stats(np.ones(3), **norms_of(small))["q_bar_min"])
    assert math.isnan(margins.smoothed_stats(-20.0, 10, small, [1] * 12)["smoothed_q_bar"])
    over = margins.norm_margins([np.full((2, 2), 50.0)], 1.0, -20.0, 10, 2049)
    assert over["q_bar_linf"] == over["smoothed_q_bar_spectral"] == 0


def norms_of(found):
    return {name: found[name] for name in ("rhoL", "norm_prod")}


def test_accuracy_of_a_tie_counts_the_first_largest_logit():
    assert margins.accuracy(np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]]), np.array([0, 1, 1])) == pytest.approx(
        2 / 3
    )
