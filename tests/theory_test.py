"""The theory's quantities against brute force in float64 and mpmath, and along runs."""

import logging
import math
import shutil

import mpmath
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, soak
from core_test import without_times
from hypothesis import given, settings
from hypothesis import strategies as st

import figures
import flags as flag_table
import results
from catalogue.measures import ALWAYS
from core import Core
from data import loading
from flatness import curvature
from models import losses, margins
from models.architectures import degrees, parse
from support.errors import Stopped
from support.screen import log
from training import measures, theory

mpmath.mp.dps = 60
MLP = [["F", 16], ["F", 10, {"act": False}]]


# The smoothed margin


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


# One network, by brute force in float64


class Exact:
    """A network in float64, from its description, by TensorFlow's plain ops; and all that theory says of it."""

    def __init__(self, description, act_type="relu", bias_mode="FIRST_LAYER", seed=0, shape=(6, 6, 2), n=12):
        rng = np.random.default_rng(seed)
        self.specs = parse(description, bias_mode, shape)
        self.act = {"relu": tf.nn.relu, "linear": tf.identity, "relu2": lambda x: tf.nn.relu(x) ** 2}[act_type]
        self.degrees = degrees(self.specs, act_type)
        self.layers = []
        for spec in self.specs:
            if spec.weight_shape is not None:
                weight = rng.standard_normal(spec.weight_shape) / math.sqrt(math.prod(spec.weight_shape[:-1]))
                bias = [rng.standard_normal(spec.weight_shape[-1])] if spec.bias else []
                self.layers.append([weight, *bias])
        self.x = rng.random((n, *shape))
        z = self.logits([w for layer in self.layers for w in layer], self.x).numpy()
        self.y = z.argmax(axis=1)  # all are classified right
        self.y[0] = np.argsort(z[0])[-2]  # but one

    def scaled(self, factor):
        self.layers = [[factor * w for w in layer] for layer in self.layers]
        return self

    @property
    def flat(self):
        return [w for layer in self.layers for w in layer]

    def logits(self, flat, x):
        flat, x = list(flat), tf.constant(x)
        for spec in self.specs:
            if spec.kind == "P":
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
                continue
            w = flat.pop(0)
            x = tf.nn.conv2d(x, w, 1, "SAME") if spec.kind == "C" else tf.reshape(x, [len(x), -1]) @ w
            x = x + flat.pop(0) if spec.bias else x
            x = self.act(x) if spec.act else x
        return x

    def log_loss_and_gradient(self, flat=None):
        """log of the mean loss, and the gradient of the mean loss over the loss."""
        flat = [tf.Variable(w) for w in (self.flat if flat is None else flat)]
        with tf.GradientTape() as tape:
            log_l = self.log_losses(flat)
            log_mean = tf.reduce_logsumexp(log_l) - math.log(len(self.y))
        return float(log_mean), [g.numpy() for g in tape.gradient(log_mean, flat)]

    def log_losses(self, flat):
        odds = losses.log_odds(tf.constant(self.y), self.logits(flat, self.x))
        small = tf.minimum(odds, -30.0)  # softplus(s) = e^s there
        return tf.where(odds < -30, small, tf.math.log(tf.nn.softplus(tf.maximum(odds, -30.0))))

    def gaps(self):
        z = self.logits(self.flat, self.x).numpy()
        d = z - z[np.arange(len(z)), self.y][:, None]
        d[np.arange(len(z)), self.y] = -np.inf
        return d

    def found(self):
        """(`theory.at_a_point`, s, p, log loss, gradient by layer)."""
        log_loss, gradient = self.log_loss_and_gradient()
        d = self.gaps()
        log_l = margins.log_losses(margins.log_odds_of_gaps(d))
        s, p = theory.constraint_weights(d, log_l, log_loss)
        gradients, flat = [], list(gradient)
        for layer in self.layers:
            gradients.append([flat.pop(0) for _ in layer])
        return theory.at_a_point(self.layers, gradients, self.degrees, s, p, len(self.y)), s, p, log_loss, gradient


NETWORKS = {
    "mlp": Exact([["F", 9], ["F", 4, {"act": False}]]),
    "cnn": Exact([["C", 5, [3, 3]], ["P"], ["C", 4, [3, 2]], ["F", 7], ["F", 4, {"act": False}]]),
    "linear": Exact([["F", 9], ["F", 4, {"act": False}]], "linear"),
    "relu2": Exact([["C", 5, [3, 3]], ["P"], ["F", 7], ["F", 4, {"act": False}]], "relu2"),
    "no activation in between": Exact([["F", 9, {"act": False}], ["F", 8], ["F", 4, {"act": False}]], "relu2"),
    "no bias": Exact([["F", 9], ["F", 4, {"act": False}]], bias_mode="NONE"),
}


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


def gap_gradients(network, chosen=slice(None)):
    """The gradients of gaps, in the order of `constraint_weights`: float64 [N (C-1) or chosen, n weights]."""
    flat = [tf.Variable(w) for w in network.flat]
    with tf.GradientTape() as tape:
        z = network.logits(flat, network.x)
        rows = tf.range(len(network.y))
        z_y = tf.gather_nd(z, tf.stack([rows, tf.constant(network.y, tf.int32)], 1))
        every = tf.boolean_mask(z_y[:, None] - z, np.isfinite(network.gaps()))
        every = every[chosen] if isinstance(chosen, slice) else tf.gather(every, chosen)
    parts = tape.jacobian(every, flat)
    return np.concatenate([part.numpy().reshape(len(every), -1) for part in parts], axis=1)


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


@pytest.mark.parametrize("description", [TINY, MLP, [["C", 3, [2, 3]], ["A"], ["C", 5, [3, 3]], ["F", 10]]])
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


# Along a run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run that fits 300 digits: (flags, directory), theory and sharpness at every 50th epoch, stored there."""
    flags = {
        "dataset": "digits",
        "train_N": 300,
        "B": 50,
        "E": 250,
        "gpu": -1,
        "archive": 50,
        "model": {"description": TINY, "init": {"weight": "he_normal"}},
        "logs_dir": str(tmp_path_factory.mktemp("logs")),
        "measure": ("theory", "sharpness"),
        "measure_every": 50,
    }
    return flags, Core(flags, "fitted").run()


def test_the_sandwich_holds_on_every_epoch_of_a_run(fitted):
    raw, seen = results.load(fitted[1])["raw"], 0
    for info in raw.values():
        stats = info["stats"]
        total = 300 * math.exp(stats["log_loss"])
        assert math.isnan(stats["smoothed_q_bar"]) == (total >= math.log(2))
        if total < math.log(2):
            lowest = (stats["q_min"] - math.log(300 * 9) - total) / stats["rhoL"]
            assert lowest <= stats["smoothed_q_bar"] <= stats["q_bar_min"]
            both = stats["smoothed_q_bar2"] * stats["norm_prod"], stats["smoothed_q_bar"] * stats["rhoL"]
            assert both[0] == pytest.approx(both[1], rel=1e-12)
            seen += 1
        assert 0 < stats["balance"] <= 1 and stats["angle_to_last_epoch"] > 0
    assert seen > 50


def test_what_is_recorded_at_a_stored_epoch_is_what_its_weights_give(fitted):
    flags, path = fitted
    context = Core(flags).context
    stats = results.load(path)["raw"][250]["stats"]
    now, before = ([w for _, w in results.load_weights(path, eid)] for eid in (250, 200))
    u, v = (np.concatenate([w.ravel() for w in ws]).astype(np.float64) for ws in (before, now))
    assert stats["since_eid"] == 200
    assert stats["beta_delta"] == pytest.approx(u @ (v - u) / np.linalg.norm(u) / np.linalg.norm(v - u), rel=1e-9)
    network = Exact(TINY, shape=(8, 8, 1))
    (x, y), _ = context.dataset
    network.x, network.y = x.astype(np.float32) * np.float32(1 / 16) * 1.0, np.asarray(y)
    network.x = network.x.astype(np.float64)
    network.layers = [
        [w.astype(np.float64) for w in now[:2]],
        [now[2].astype(np.float64)],
        [now[3].astype(np.float64)],
    ]
    found, s, p, log_loss, _ = network.found()
    assert stats["log_loss"] == pytest.approx(log_loss, abs=1e-4)
    for key in ("beta", "beta_0", "beta_1", "beta_2", "nu", "n_eff"):
        assert stats[key] == pytest.approx(found[key], rel=2e-3), key
    assert stats["euler_residual"] < 1e-4
    for key, value in theory.kkt(found["beta"], s, p).items():
        assert stats[key] == pytest.approx(value, rel=2e-3), key
    rate = theory.growth_rate(found["beta"], found["nu"], 3, log_loss, 300)
    assert stats["growth_rate"] == pytest.approx(rate, rel=5e-3)
    chosen = np.argsort(s)[:50]
    h = gap_gradients(network, chosen)
    w = np.concatenate([v.ravel() for v in network.flat])
    assert stats["kkt_certificate"] == pytest.approx(theory.certificate(h @ h.T, h @ w / np.linalg.norm(w)), abs=2e-3)
    assert stats["kkt_certificate"] < stats["kkt_stationarity_best"]


def test_measured_afterwards_the_theory_is_the_same(fitted, tmp_path):
    path = Core({"task": "measure_epochs", "load_dir": str(fitted[1]), "measure": ("theory",), "eid": "all"}).run()
    along, afterwards = (results.load(p)["raw"] for p in (fitted[1], path))
    assert sorted(afterwards) == [50, 100, 150, 200, 250]
    for eid, info in afterwards.items():
        np.testing.assert_equal(info["stats"], along[eid]["stats"])
    assert {"stored_theory", "stored_kkt"} <= set(figures.build([path]))
    assert {"theory", "kkt", "stability", "direction"} <= set(figures.build([fitted[1]]))


def test_sharpness_is_the_curvatures_largest_eigenvalue_and_warm_after_the_first_time(fitted):
    raw = results.load(fitted[1])["raw"]
    flags = {
        "task": "measure_curvature",
        "load_dir": str(fitted[1]),
        "eid": [200, 250],
        "probes": 2,
        "eigenvalues": 1,
    }
    measured = results.load(Core(flags).run())["raw"]
    for eid in (200, 250):
        found, stats, info = measured[f"epoch {eid}"], raw[eid]["stats"], raw[eid]
        assert stats["sharpness"] == pytest.approx(found["sharpness"], rel=1e-3)
        assert stats["lr_sharpness"] == pytest.approx(found["lr_sharpness"], rel=1e-3)
        true = stats["sharpness"] * info["lr"] * math.exp(stats["log_loss"] - info["log_frame"])
        assert stats["lr_sharpness"] == pytest.approx(true, rel=1e-9)
        assert stats["sharpness_products"] <= 12


@soak
def test_a_resumed_run_measures_what_the_unbroken_run_measures(fitted):
    flags = fitted[0] | {"E": 60, "measure_every": 10, "archive": 20, "checkpoint_every": 0.05}
    unbroken = Core(flags, "resumed").run()

    seen = 0

    def stop():
        nonlocal seen
        seen += 1
        if seen > 170:
            raise Stopped(2)

    with pytest.raises(Stopped):
        Core(flags, "resumed", stop).run()
    path = sorted((unbroken.parent).glob("2*"))[-1]
    assert 10 < max(results.load(path)["raw"]) < 60
    Core(flag_table.complete(flags | {"resume": str(path)}), "resumed").run()
    np.testing.assert_equal(*(without_times(results.load(p)["raw"]) for p in (path, unbroken)))


def test_all_is_finite_at_a_loss_of_1e_minus_3000(fitted):
    flags, path = fitted
    context = Core(flags).context
    context.model.set_weights([w for _, w in results.load_weights(path)])
    factor = (7000 / results.load(path)["raw"][250]["stats"]["q_min"]) ** (1 / 3)
    before = [np.asarray(w) * np.float32(0.9 * factor) for w in context.model.snapshot()]
    context.model.set_weights([w * np.float32(1 / 0.9) for w in before])
    epoch = measures.Evaluation(context, -6000.0)
    log_loss = epoch.log_loss
    assert log_loss < -3000 * math.log(10)
    log_before = losses_of(context, before)
    infos = [
        {"eid": 1, "lr": 0.1, "log_frame": log_before, "stats": {"rho": theory.norm(before), "log_loss": log_before}}
    ]
    infos.append({"eid": 2, "lr": 0.1, "log_frame": log_loss, "stats": {}})
    now, history = measures.Evaluation(context, log_loss), measures.History(infos[-1], infos, lambda: (1, before))
    stats = measures.record(now, history, [*ALWAYS, "theory", "sharpness"])
    may_be_nan = {"flow_bound", "flow_ratio"}  # the direction did not move: whether the margin fell is rounding
    assert all(math.isfinite(v) for k, v in stats.items() if k not in may_be_nan), stats
    assert stats["euler_residual"] < 1e-4 and stats["sharpness"] > 0


def losses_of(context, weights):
    after = context.model.snapshot()
    context.model.set_weights(weights)
    found = measures.Evaluation(context, 0.0).log_loss
    context.model.set_weights(after)
    return found


def test_a_network_that_is_not_homogeneous_has_only_what_is_true_of_it(tiny_flags, caplog):
    caplog.set_level(logging.INFO, log.name)
    model = tiny_flags["model"]
    described = [["C", 4, [3, 3], {"bn": True}], ["F", 10, {"act": False}]]
    for changes in (
        {"bias_mode": "ALL", "init": model["init"] | {"bias": "random_normal"}},
        {"description": described},
    ):
        flags = tiny_flags | {"model": model | changes, "E": 2, "measure": ("theory",), "measure_every": 2}
        flags["lr"] = 0.01
        path = Core(flags).run()
        stats = results.load(path)["raw"][2]["stats"]
        assert {"beta", "nu", "n_eff", "euler_residual"} <= set(stats)
        assert not {"growth_rate", "kkt_stationarity", "kkt_certificate", "flow_bound", "loss_rate"} & set(stats)
        assert stats["euler_residual"] > 1e-3
        said = [line for line in (path / "stdout").read_text().splitlines() if "theory: " in line]
        assert len(said) == 1 and "are left out: it has" in said[0]


def test_with_relu2_the_order_is_the_networks_and_not_that_of_rhoL(tiny_flags, caplog):
    caplog.set_level(logging.INFO, log.name)
    changes = {"act_type": "relu2", "init": {"weight": "glorot_uniform"}}
    flags = tiny_flags | {"model": tiny_flags["model"] | changes, "E": 2, "measure": ("theory",), "measure_every": 2}
    flags["lr"] = 0.001
    core = Core(flags)
    assert core.context.model.degrees == [4, 2, 1]
    path = core.run()
    stats = results.load(path)["raw"][2]["stats"]
    assert stats["euler_residual"] < 1e-4 and math.isnan(stats["smoothed_q_bar"])
    assert "smoothed_q_bar is NaN: the network is homogeneous of order 7" in (path / "stdout").read_text()


def test_a_run_of_an_older_version_has_smoothed_margins_when_it_is_loaded(fitted, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(fitted[1], old)
    res = results.read_res(old)
    keys = ("smoothed_q_bar", "smoothed_q_bar2", "balance")
    expected = {eid: {key: info["stats"][key] for key in keys} for eid, info in res["raw"].items()}
    for info in res["raw"].values():
        for key in ("smoothed_q_bar", "smoothed_q_bar2", "balance"):
            del info["stats"][key]
    results.WorkDir(old).write_res(res)
    about = results.read_about(old)
    del about["format"]
    results.WorkDir(old).write_json("about.json", about)
    found = results.load(old)["raw"]
    np.testing.assert_equal({eid: {key: info["stats"][key] for key in keys} for eid, info in found.items()}, expected)


def test_a_deep_relu2_network_whose_own_powers_leave_float64_has_none_and_no_error():
    rho_k = [50.0] + [1.0] * 7
    norms = {"rho": 51.0, "rhoL": 51.0**129, "norm_prod": 1e200} | {f"rho_{k}": r for k, r in enumerate(rho_k)}
    found = margins.smoothed_stats(-20.0, 100, norms, [2 ** (7 - k) for k in range(8)])  # of order 255
    assert math.isnan(found["smoothed_q_bar"]) and math.isnan(found["smoothed_q_bar2"])
    assert 0 < found["balance"] < 1


@pytest.mark.parametrize("n_layers", [2, 3, 4])
def test_an_older_run_with_relu2_has_no_smoothed_margin_over_a_norm_that_is_not_its_own(n_layers, tmp_path):
    rho_k = [2.0, 3.0, 1.5, 0.7][:n_layers]
    stats = margins.norms([[np.array([r])] for r in rho_k], "relu2") | {"log_loss": -20.0}
    path = tmp_path / "run"
    path.mkdir()
    written = results.WorkDir(path)
    layers = [["F", 5]] * (n_layers - 1) + [["F", 5, {"act": False}]]
    model = {"description": layers, "act_type": "relu2"}
    written.write_json("flags.json", flag_table.complete({"dataset": "digits", "model": model}))
    written.write_json("about.json", {"data": {"train": 100}})
    written.write_res({"flags": {}, "raw": {1: {"eid": 1, "stats": stats}}})
    found = results.load(path)["raw"][1]["stats"]
    g = margins.smoothed_margin(-20.0, 100)
    assert found["smoothed_q_bar2"] == pytest.approx(g / stats["norm_prod"])
    assert math.isnan(found["smoothed_q_bar"]) == (n_layers > 2)


# The largest eigenvalue


def dense(eigenvalues, seed=0):
    from scipy.sparse.linalg import aslinearoperator

    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    matrix = q * np.array(eigenvalues) @ q.T
    operator = aslinearoperator(matrix)
    operator.products = 0
    matvec = operator.matvec

    def counted(v):
        operator.products += 1
        return matvec(v)

    operator.matvec = counted
    return operator, q


def crowded(seed, n):
    """(eigenvalues of a dense matrix, the matrix, what `largest_eigenvalue` finds from a random start)."""
    rng = np.random.default_rng(seed)
    eigenvalues = rng.standard_normal(n) + 3
    operator, _ = dense(eigenvalues, seed)
    return eigenvalues, operator, *curvature.largest_eigenvalue(operator, None, rng.standard_normal(n))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(2, 60))
def test_lanczos_ends_at_an_eigenvalue_of_the_dense_matrix(seed, n):
    eigenvalues, operator, value, vector = crowded(seed, n)
    assert min(abs(eigenvalues - value)) <= 0.011 * value
    assert np.linalg.norm(operator.matvec(vector) - value * vector) <= 0.011 * value


def test_from_99_of_100_random_starts_it_is_the_largest_of_a_spectrum_without_gaps():
    ends = [crowded(seed, 56) for seed in range(300)]
    assert sum(value < 0.97 * max(eigenvalues) for eigenvalues, _, value, _ in ends) <= 3


def test_a_good_guess_saves_products_and_a_wrong_one_is_found_out():
    rng = np.random.default_rng(0)
    operator, q = dense([*4 * rng.random(398), 5.0, 6.0])
    cold = curvature.largest_eigenvalue(operator, None, rng.standard_normal(400))
    spent, operator.products = operator.products, 0
    warm = curvature.largest_eigenvalue(operator, q[:, -1] + 0.02 * q[:, 0], rng.standard_normal(400))
    assert operator.products <= 8 < spent
    wrong = curvature.largest_eigenvalue(operator, q[:, -2], rng.standard_normal(400))
    for value, _ in (cold, warm, wrong):
        assert value == pytest.approx(6.0, rel=1e-3)
    assert curvature.largest_eigenvalue(operator, np.zeros(3), rng.standard_normal(400))[0] == pytest.approx(
        6, rel=1e-3
    )


# Linear networks


def test_the_largest_margin_is_the_one_that_the_separable_set_was_made_with():
    (x, y), _ = loading.load("separable")
    x = x.reshape(len(x), -1) / 255
    expected = math.sqrt(2) * 8 * loading.SEPARABLE_CONTRAST / 255
    assert theory.largest_margin(x, y, bias=False) == pytest.approx(expected, rel=1e-5)
    assert theory.largest_margin(x, y, bias=True) >= expected * (1 - 1e-5)
    assert math.isnan(theory.largest_margin(np.concatenate([x, x]), np.concatenate([y, 1 - y]), bias=False))
    at_random = np.random.default_rng(0).integers(0, 2, 300)  # nearly separable: the SVM alone would not end
    assert math.isnan(theory.largest_margin(np.random.default_rng(1).random((300, 30)), at_random, bias=True))


def test_a_network_of_zeros_and_a_peek_have_what_can_be_known_of_them(tiny_flags, tmp_path):
    model = tiny_flags["model"] | {"init": {"weight": "zeros"}}
    flags = tiny_flags | {
        "model": model,
        "lr": 0.01,
        "E": 2,
        "archive": 1,
        "measure": ("theory",),
        "measure_every": 1,
    }
    stats = results.load(Core(flags).run())["raw"][2]["stats"]
    assert math.isnan(stats["flow_bound"]) and math.isnan(stats["beta"])
    run = Core(tiny_flags | {"archive": 2}).run()
    peek = {"task": "train_peek", "load_dir": str(run), "eid": [2], "E": 2, "lr": 1e-3, "log_frame0": 0.0}
    peek |= {"measure": ("theory", "sharpness"), "measure_every": 1, "logs_dir": str(tmp_path)}
    found = results.load(Core(tiny_flags | peek).run())["raw"][2]["epochs"][1]["stats"]
    assert found["lr_sharpness"] == pytest.approx(1e-3 * found["sharpness"] * math.exp(found["log_loss"]), rel=1e-9)
    assert "beta" in found and "log_time" not in found  # the learning rates before the peek are not its own


def test_a_linear_network_tends_to_the_svm_and_never_beyond(tmp_path):
    import importlib

    script = importlib.import_module("exper-quick-separable-linear").flags
    path = Core(script | {"E": 160, "measure_every": 40, "logs_dir": str(tmp_path), "gpu": -1}).run()
    raw = results.load(path)["raw"]
    best = raw[160]["stats"]["q_bar_svm"]
    assert max(info["stats"]["q_bar_min"] for info in raw.values()) <= best * (1 + 1e-5)
    assert raw[160]["stats"]["q_bar_min"] > 0.8 * best
    gaps = {eid: 1 - raw[eid]["stats"]["smoothed_q_bar"] / best for eid in (40, 80, 160)}
    assert gaps[160] < gaps[80] < gaps[40]
    assert "linear" in figures.build([path])


def test_no_other_network_has_a_largest_margin(tiny_flags, caplog):
    caplog.set_level(logging.INFO, log.name)
    path = Core(tiny_flags | {"E": 2, "measure": ("max_margin",), "measure_every": 1}).run()
    assert "q_bar_svm" not in results.load(path)["raw"][2]["stats"]
    assert "q_bar_svm is left out: it is known of a linear network of two classes" in (path / "stdout").read_text()
