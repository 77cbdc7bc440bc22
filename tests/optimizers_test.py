"""Optimizers: their updates against independent implementations, in any frame; margins over their norms."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import tensorflow as tf
from builders import TINY, soak

import flags as flag_table
import results
from catalogue import optimizers as catalogue
from core import Core
from flags.values import from_text
from models import margins, optimizers
from models.network import Network, on_device
from support.errors import TrainingDiverged, UserError
from training import theory

RNG = np.random.default_rng(0)
START = [RNG.standard_normal(shape) for shape in ((3, 3, 2, 4), (6, 5), (5,))]
GOALS = [RNG.standard_normal(w.shape) for w in START]


def gradients(weights):
    """Of an uneven quadratic bowl around GOALS."""
    return [(1 + np.arange(w.size).reshape(w.shape)) * (w - goal) for w, goal in zip(weights, GOALS, strict=True)]


def svd_polar(g):
    """(U V^T in g's shape, sum of the singular values), by LAPACK's SVD."""
    u, s, vt = np.linalg.svd(g.reshape(-1, g.shape[-1]), full_matrices=False)
    present = s > optimizers.RANK * s[0]
    return ((u * present) @ vt).reshape(g.shape), s[present].sum()


def by_hand(name, g, memory, t, a=0.9, b=0.999):
    """Return the directions at step t = 1, 2, ...; `memory` is a list of two lists of arrays, changed in place."""
    first, second = memory
    if name in ("momentum", "nesterov", "muon"):
        first[:] = [a * m + x for m, x in zip(first, g, strict=True)]
    elif name in ("signum", "adam"):
        first[:] = [a * m + (1 - a) * x for m, x in zip(first, g, strict=True)]
        second[:] = [b * m + (1 - b) * x**2 for m, x in zip(second, g, strict=True)]
    everything = np.concatenate([x.ravel() for x in g])
    match name:
        case "gd" | "l2":
            return g
        case "momentum":
            return first
        case "nesterov":
            return [x + a * m for x, m in zip(g, first, strict=True)]
        case "normalized":
            return [x / np.linalg.norm(everything) for x in g]
        case "sign":
            return [np.sign(x) for x in g]
        case "signum":
            return [np.sign(m) for m in first]
        case "adam":
            return [(m / (1 - a**t)) / np.sqrt(v / (1 - b**t)) for m, v in zip(first, second, strict=True)]
        case "muon":
            return [svd_polar(m)[0] for m in first]
        case "linf":
            return [np.abs(everything).sum() * np.sign(x) for x in g]
        case "spectral":
            return [svd_polar(x)[0] * sum(svd_polar(y)[1] for y in g) for x in g]


def rule(opt):
    return optimizers.build(*catalogue.parsed(opt), [w.shape for w in START])


OPTS = [
    *("gd", ("momentum", 0.9), ("nesterov", 0.9), "normalized", "sign", ("signum", 0.9), ("adam", 0.9, 0.999)),
    *(("muon", 0.9), ("steepest", "l2"), ("steepest", "linf"), ("steepest", "spectral")),
]


@pytest.mark.parametrize("opt", OPTS, ids=str)
def test_fifty_steps_are_those_of_an_independent_implementation(opt):
    made, lr = rule(opt), 1e-3 if opt[0] != "steepest" else 1e-6
    variables = [tf.Variable(w) for w in START]
    weights, memory = list(START), [[np.zeros_like(w) for w in START] for _ in range(2)]
    name = opt if isinstance(opt, str) else opt[1] if opt[0] == "steepest" else opt[0]
    for t in range(1, 51):
        g = gradients([v.numpy() for v in variables])
        rate = tf.constant(lr, tf.float64)
        made.apply(variables, [made.loss_factor(rate) * tf.constant(x) for x in g], rate)
        weights = [w - lr * d for w, d in zip(weights, by_hand(name, gradients(weights), memory, t), strict=True)]
    for v, w in zip(variables, weights, strict=True):
        np.testing.assert_allclose(v.numpy(), w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("opt", [("momentum", 0.9), ("nesterov", 0.8), ("adam", 0.8, 0.99)], ids=str)
def test_momentum_nesterov_and_adam_are_those_of_keras(opt):
    import keras

    theirs = {
        "momentum": lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
        "nesterov": lambda: keras.optimizers.SGD(1e-3, momentum=0.8, nesterov=True),
        "adam": lambda: keras.optimizers.Adam(1e-3, beta_1=0.8, beta_2=0.99, epsilon=1e-30),
    }[opt[0]]()
    made, ours = rule(opt), [tf.Variable(w) for w in START]
    keras_variables = [keras.Variable(w, dtype="float64") for w in START]
    theirs.build(keras_variables)
    for _ in range(20):
        g = [tf.constant(x) for x in gradients([v.numpy() for v in ours])]
        made.apply(ours, g, tf.constant(1e-3, tf.float64))
        theirs.apply_gradients(zip(g, keras_variables, strict=True))
    for v, w in zip(ours, keras_variables, strict=True):
        np.testing.assert_allclose(v.numpy(), w.numpy(), rtol=0, atol=1e-6)  # Keras keeps its rate in float32


@pytest.mark.parametrize("log10_loss", [-300, -3000])
@pytest.mark.parametrize("opt", ["normalized", ("momentum", 0.9), ("adam", 0.9, 0.999)], ids=str)
def test_steps_across_frames_equal_those_of_the_true_loss(opt, log10_loss):
    """A linear network of two classes at losses that float64 cannot hold, against mpmath; a new frame every step."""
    x = RNG.integers(0, 5, (6, 2, 2, 1)).astype(np.uint8)
    y = np.zeros(6, np.int32)
    description = [["F", 2, {"act": False}]]
    network = Network(description, (2, 2, 1), bias_mode="NONE", scale=1.0, optimizer=catalogue.parsed(opt))
    x[:, 0, 0, 0] = 5  # so that one pixel separates the examples from the other class
    height = np.float32(-log10_loss * math.log(10) / 10)
    network.set_weights([np.array([[height, -height]] + [[0, 0]] * 3, np.float32)])
    images, batch = on_device(x, y), np.arange(6, dtype=np.int32)[None]
    inputs = x.reshape(6, 4).astype(int)
    first, second = mpmath.zeros(4, 2), mpmath.zeros(4, 2)
    a, b = 0.9, 0.999
    with mpmath.workdps(40):
        for t in range(1, 6):
            before = network.get_weights()[0][1]
            w = mpmath.matrix(before.tolist())
            z = [[mpmath.fdot(row, w[:, c]) for c in range(2)] for row in inputs.tolist()]
            p = [1 / (1 + mpmath.exp(z0 - z1)) for z0, z1 in z]
            log_loss = mpmath.log(mpmath.fsum(mpmath.log1p(mpmath.exp(z1 - z0)) for z0, z1 in z) / 6)
            g = mpmath.matrix(4, 2)
            for j in range(4):
                slope = mpmath.fsum(p_n * int(row[j]) for p_n, row in zip(p, inputs, strict=True)) / 6
                g[j, 0], g[j, 1] = -slope, slope
            frame = float(log_loss) + (t % 3 - 1) * 20.0  # it need not be the loss itself
            true_lr = mpmath.mpf(0.01) * mpmath.exp(-log_loss) if opt[0] == "momentum" else mpmath.mpf(0.5)
            if opt[0] == "momentum":
                first = first * a + g
                step = first * true_lr
            elif opt == "normalized":
                step = g * (true_lr / mpmath.mnorm(g, "f"))
            else:
                first = first * a + g * (1 - a)
                second = second * b + g.apply(lambda v: v * v) * (1 - b)
                step = mpmath.matrix(4, 2)
                for k in range(8):
                    m, v = first[k // 2, k % 2] / (1 - a**t), second[k // 2, k % 2] / (1 - b**t)
                    step[k // 2, k % 2] = true_lr * m / mpmath.sqrt(v)
            lr = float(true_lr * mpmath.exp(frame)) if opt[0] == "momentum" else 0.5
            ok, _ = network.train_epoch(*images, batch, lr, frame, np.inf)
            moved = before.astype(np.float64) - network.get_weights()[0][1]
            assert ok
            # A float32 weight of this height holds no smaller change; nor are its logits more exact.
            np.testing.assert_allclose(moved, np.array(step.tolist(), float), rtol=4e-3, atol=2e-7 * float(height))


def test_a_direction_that_is_zero_and_a_moment_of_zero_stay_so():
    for opt in OPTS:
        made, variables = rule(opt), [tf.Variable(w) for w in START]
        made.carry(tf.constant(-1e5, tf.float64))
        made.apply(variables, [tf.zeros(w.shape, tf.float64) for w in START], tf.constant(1.0, tf.float64))
        for v, w in zip(variables, START, strict=True):
            np.testing.assert_array_equal(v.numpy(), w)


@pytest.mark.parametrize("opt, lr", [("normalized", 0.01), (("muon", 0.0), 0.01), ("sign", 1e-3)], ids=str)
def test_a_constant_lr_is_the_length_of_every_step(tiny_flags, opt, lr):
    path = Core(tiny_flags | {"opt": opt, "lr": lr, "B": 300, "E": 4, "archive": 1}).run()
    stored = [[w for _, w in results.load_weights(path, eid)] for eid in (2, 3, 4)]
    for before, after in itertools.pairwise(stored):
        change = [b.astype(np.float64) - a for a, b in zip(before, after, strict=True)]
        length = {
            "normalized": math.sqrt(sum((c**2).sum() for c in change)),
            "sign": max(np.abs(c).max() for c in change),
        }.get(opt, max(np.linalg.norm(c.reshape(-1, c.shape[-1]), 2) for c in change))
        assert length == pytest.approx(lr, rel=1e-3)


@pytest.mark.parametrize("opt", ["adam", ("muon", 0.9), pytest.param("nesterov", marks=soak)], ids=str)
def test_a_resumed_run_has_the_optimizers_state(tiny_flags, opt):
    flags = tiny_flags | {"E": 7, "opt": opt, "lr": ("loss-based-v1", 0.05, 2.0, 1.5), "archive": 2}
    whole, path = Core(flags).run(), Core(flags | {"E": 3}).run()
    Core(flags | {"resume": str(path)}).run()
    assert sum(info["stats"]["attempts"] for info in results.load(whole)["raw"].values()) > 7  # some were rejected
    for (_, mine), (_, theirs) in zip(results.load_weights(path), results.load_weights(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    measured = Core({"task": "measure_epochs", "load_dir": str(path), "eid": "all", "measure": "norm_margins"}).run()
    assert set(results.load(measured)["raw"]) >= {2, 4, 6}


def test_an_lr_that_moves_nothing_ends_the_run_and_names_what_to_do(tiny_flags):
    with pytest.raises(TrainingDiverged, match=r"no longer changes the weights.*--lr decay"):
        Core(tiny_flags | {"opt": "sign", "lr": ("loss-based-v1", 1e-12)}).run()


def test_a_decaying_lr_falls_as_the_power_of_the_epoch(tiny_flags):
    path = Core(tiny_flags | {"opt": "sign", "lr": ("decay", 1e-3, 0.5), "E": 4}).run()
    rates = [info["lr"] for info in results.load(path)["raw"].values()]
    np.testing.assert_allclose(rates, [1e-3 / math.sqrt(t) for t in range(1, 5)], rtol=1e-12)


@pytest.mark.parametrize(
    "opt, says",
    [("adamw", "did you mean adam"), ("muon,1.5", "below 1"), ("gd,1", "no argument"), ("steepest,l7", "one of l2")],
)
def test_an_impossible_optimizer_is_refused_with_what_is_possible(opt, says):
    script = {"dataset": "digits", "model": {"description": TINY}}
    with pytest.raises(UserError, match=says):
        flag_table.complete(script | {"opt": from_text(opt)})


def test_margins_over_other_norms_are_those_of_brute_force():
    tensors = [RNG.standard_normal((3, 3, 2, 4)), RNG.standard_normal(4), RNG.standard_normal((5, 3))]
    found = margins.norm_margins(tensors, 2.0, -500.0, 10, 3)
    singular = [np.sqrt(np.linalg.eigvalsh(m.T @ m)[-1]) for m in (t.reshape(-1, t.shape[-1]) for t in tensors)]
    assert found["norm_linf"] == max(abs(v) for t in tensors for v in t.ravel())
    assert found["norm_spectral"] == pytest.approx(max(singular), rel=1e-12)
    assert found["q_bar_spectral"] == pytest.approx(2 / max(singular) ** 3, rel=1e-12)
    assert found["smoothed_q_bar_linf"] == pytest.approx((500 - math.log(10)) / found["norm_linf"] ** 3, rel=1e-9)


def test_the_largest_margin_in_l_infinity_is_that_of_a_grid_of_directions():
    x, y = np.array([[2.0, 1.0], [1.5, -0.5], [-1.0, -2.0]]), np.array([0, 0, 1])
    signed = np.where(y == 0, 1, -1)[:, None] * x
    edge = np.linspace(-2, 2, 4001)
    square = np.concatenate([np.stack(p, -1) for s in (-2, 2) for p in ((edge, 0 * edge + s), (0 * edge + s, edge))])
    assert theory.largest_margins(x, y, bias=False)[1] == pytest.approx((square @ signed.T).min(1).max(), rel=1e-3)
