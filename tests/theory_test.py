"""The theory's functions against brute force in float64 and mpmath (`training.theory`)."""

import math

import mpmath
import numpy as np
import pytest
import tensorflow as tf
from builders import MLP, TINY, Exact, gap_gradients

from core import Core
from data import loading
from models import margins
from training import theory

NETWORKS = {
    "mlp": Exact([["F", 9], ["F", 4, {"act": False}]]),
    "cnn": Exact([["C", 5, [3, 3]], ["P"], ["C", 4, [3, 2]], ["F", 7], ["F", 4, {"act": False}]]),
    "linear": Exact([["F", 9], ["F", 4, {"act": False}]], "linear"),
    "relu2": Exact([["C", 5, [3, 3]], ["P"], ["F", 7], ["F", 4, {"act": False}]], "relu2"),
    "no activation in between": Exact([["F", 9, {"act": False}], ["F", 8], ["F", 4, {"act": False}]], "relu2"),
    "no bias": Exact([["F", 9], ["F", 4, {"act": False}]], bias_mode="NONE"),
}

mpmath.mp.dps = 60


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_eulers_identity_holds_to_1e_minus_12_in_float64(name, scale):
    network = NETWORKS[name]
    original = network.layers
    found = network.scaled(scale).found()[0]
    network.layers = original
    assert found["euler_residual"] < 1e-12


def test_with_biases_in_all_layers_it_does_not_hold():
    network = Exact([["F", 9], ["F", 6], ["F", 4, {"act": False}]], bias_mode="ALL")
    assert network.found()[0]["euler_residual"] > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_the_numbers_at_a_point_are_their_definitions_in_mpmath(name):
    network = NETWORKS[name]
    found, s, p, log_loss, gradient = network.found()
    z = network.logits(network.flat, network.x).numpy()
    exact_s, exact_p = [], []
    for row, y in zip(z, network.y, strict=True):
        own = [mpmath.mpf(float(row[y])) - mpmath.mpf(float(v)) for j, v in enumerate(row) if j != y]
        loss = mpmath.log1p(mpmath.fsum(mpmath.exp(-v) for v in own))
        exact_s += own
        exact_p += [mpmath.exp(-v - loss - mpmath.mpf(log_loss)) for v in own]
    np.testing.assert_allclose(s, [float(v) for v in exact_s], rtol=1e-12)
    np.testing.assert_allclose(p, [float(v) for v in exact_p], rtol=1e-11)
    nu = mpmath.fsum(a * b for a, b in zip(exact_p, exact_s, strict=True)) / len(z)
    assert found["nu"] == pytest.approx(float(nu), rel=1e-11)
    total = mpmath.fsum(exact_p)
    entropy = -mpmath.fsum(v / total * mpmath.log(v / total) for v in exact_p)
    assert found["n_eff"] == pytest.approx(float(mpmath.exp(entropy)), rel=1e-11)
    w = np.concatenate([v.ravel() for v in network.flat])
    g = np.concatenate([v.ravel() for v in gradient])
    beta = -(w @ g) / np.linalg.norm(w) / np.linalg.norm(g)
    assert found["beta"] == pytest.approx(beta, rel=1e-11)
    # The multipliers p make the gradient: g = -(1/N) sum p h.
    h = gap_gradients(network)
    np.testing.assert_allclose(g, -(p @ h) / len(z), rtol=1e-9, atol=1e-12)
    # KKT by its definition at w / q_min^(1/L), where it can be stated.
    s = s - s.min() + 0.1
    kkt = theory.kkt(beta, s, p)
    assert kkt["kkt_stationarity"] == pytest.approx(np.linalg.norm(w / np.linalg.norm(w) + g / np.linalg.norm(g)))
    best = min(np.linalg.norm(w / np.linalg.norm(w) + c * g / np.linalg.norm(g)) for c in np.linspace(0, 1.5, 20001))
    assert kkt["kkt_stationarity_best"] == pytest.approx(best, rel=1e-6)
    slack = (p * (s / s.min() - 1)).sum() / (p * s / s.min()).sum()
    assert kkt["kkt_complementarity"] == pytest.approx(slack, rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "cnn", "relu2"])
def test_the_certificate_is_that_of_least_squares_on_the_gradients_themselves(name):
    from scipy.optimize import nnls

    network = NETWORKS[name]
    h = gap_gradients(network)
    w = np.concatenate([v.ravel() for v in network.flat])
    w /= np.linalg.norm(w)
    _, residual = nnls(h.T, w, maxiter=10**4)
    assert theory.certificate(h @ h.T, h @ w) == pytest.approx(residual, abs=1e-6)
    order, s = sum(network.degrees), -network.gaps()[np.isfinite(network.gaps())]
    np.testing.assert_allclose(h @ w, order * s / np.linalg.norm(np.concatenate([v.ravel() for v in network.flat])))


STRIDED = [["C", 3, [3, 2], {"stride": [2, 1], "pad": [1, 0, 2, 0]}], ["P", [3, 3], {"stride": [1, 2]}], ["F", 10]]


@pytest.mark.parametrize("description", [TINY, MLP, [["C", 3, [2, 3]], ["A"], ["C", 5, [3, 3]], ["F", 10]], STRIDED])
def test_the_gram_matrix_of_gap_gradients_is_that_of_each_gradient_by_itself(tiny_flags, description):
    model = Core(tiny_flags | {"model": tiny_flags["model"] | {"description": description}}).context.model
    (x, y), _ = loading.load("digits")
    x, y = x[:9], y[:9]
    others = ((y + 1 + np.arange(9) % 4) % 10).astype(np.int32)
    rows = []
    for image, label, other in zip(x, y, others, strict=True):
        with tf.GradientTape() as tape:
            z = model.logits(model.pixels(image[None]))[0]
            gap = z[label] - z[other]
        rows.append(np.concatenate([g.numpy().ravel() for g in tape.gradient(gap, model.weights)]))
    h = np.array(rows, np.float64)
    np.testing.assert_allclose(
        theory.constraint_gram(model, x, y, others).numpy(), h @ h.T, rtol=1e-4, atol=1e-6 * (h * h).sum() / 9
    )


@pytest.mark.parametrize("name", ["mlp", "cnn", "relu2", "no bias"])
def test_the_growth_rate_is_the_flows_slope(name):
    network = NETWORKS[name]
    network.y[0] = network.logits(network.flat, network.x).numpy()[0].argmax()
    layers, order, n = network.layers, sum(network.degrees), len(network.y)
    while not margins.smoothed_margin(network.log_loss_and_gradient()[0], n) > 0.5:
        network.scaled(1.3)
    found, _, _, log_loss, gradient = network.found()
    rate = theory.growth_rate(found["beta"], found["nu"], order, log_loss, n)

    def at(h):
        moved = [w - h * g for w, g in zip(network.flat, gradient, strict=True)]
        log_rho = math.log(math.sqrt(sum((w**2).sum() for w in moved)))
        return math.log(
            margins.smoothed_margin(network.log_loss_and_gradient(moved)[0], n)
        ) - order * log_rho, log_rho

    h = 1e-6 / max(np.abs(g).max() for g in gradient)
    (m1, r1), (m0, r0) = at(h), at(-h)
    network.layers = layers
    assert rate == pytest.approx((m1 - m0) / (r1 - r0), rel=1e-3) and rate >= 0


def test_along_the_flow_the_smoothed_margin_never_falls_and_the_direction_keeps_its_bound():
    network = Exact([["F", 9], ["F", 4, {"act": False}]], seed=3)
    network.y[0] = network.logits(network.flat, network.x).numpy()[0].argmax()
    while not margins.smoothed_margin(network.log_loss_and_gradient()[0], 12) > 0.1:
        network.scaled(1.2)
    flat, path = network.flat, []
    for _ in range(300):
        log_loss, gradient = network.log_loss_and_gradient(flat)
        path.append(({"log_loss": log_loss, "rho": theory.norm(flat)}, flat))
        h = 2e-5 * theory.norm(flat) / theory.norm(gradient)
        flat = [w - h * g for w, g in zip(flat, gradient, strict=True)]  # of the log: the flow's own path
    smoothed = [margins.smoothed_margin(stats["log_loss"], 12) / stats["rho"] ** 2 for stats, _ in path]
    assert np.diff(smoothed).min() > 0
    for k, m in ((0, 299), (100, 200), (150, 160), (298, 299)):
        bound = theory.flow_bound(path[k][0], path[m][0], 2, 12)
        moved = theory.movement(path[k][1], path[m][1])["direction_moved"]
        assert 0 < moved <= bound * 1.01, (k, m)
    assert math.isnan(theory.flow_bound(path[9][0], path[3][0], 2, 12))  # backwards


def test_the_movement_is_its_definition():
    rng = np.random.default_rng(1)
    a, b = ([rng.standard_normal((3, 4)), rng.standard_normal(4)] for _ in range(2))
    u, v = (np.concatenate([w.ravel() for w in ws]) for ws in (a, b))
    found = theory.movement(a, b)
    assert found["beta_delta"] == pytest.approx(u @ (v - u) / np.linalg.norm(u) / np.linalg.norm(v - u), rel=1e-13)
    between = np.linalg.norm(v / np.linalg.norm(v) - u / np.linalg.norm(u))
    assert found["direction_moved"] == pytest.approx(between, rel=1e-13)


def test_the_rates_of_theorem_4_3_are_what_mpmath_says():
    infos = [{"lr": 0.1 / k, "log_frame": -37.0 * k} for k in range(1, 90)]
    exact = sum(mpmath.mpf(i["lr"]) * mpmath.exp(-mpmath.mpf(i["log_frame"])) * 15 / 1500 for i in infos)
    log_time = theory.log_flow_time(infos, 15, 1500)
    assert log_time == pytest.approx(float(mpmath.log(exact)), rel=1e-13)
    log_loss, order = -37.0 * 89, 4
    total = mpmath.exp(mpmath.mpf(log_loss)) * 1500
    g = -mpmath.log(mpmath.expm1(total))
    found = theory.rates(log_loss, log_time, order, 1500)
    loss_rate = mpmath.log(total) + mpmath.log(exact) + (2 - mpmath.mpf(2) / order) * mpmath.log(mpmath.log(exact))
    assert found["loss_rate"] == pytest.approx(float(loss_rate), abs=1e-9)
    assert found["norm_rate"] == pytest.approx(float((g / mpmath.log(exact)) ** (mpmath.mpf(1) / order)), rel=1e-12)
