"""Proved lower bounds of distances: against dense matrices, brute force, and every attack."""

import functools
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from builders import soak, trained_on_digits
from hypothesis import given, settings
from hypothesis import strategies as st

import results
from attacks import base, certificate, local_certificate, operator_norms
from attacks.apgd import AutoPGD
from attacks.bim import BasicIterativeMethod
from attacks.certificate import Certifier
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.fmn import FMN, FMNL1, FMNLinf
from attacks.l2_attack import CarliniWagnerL2
from attacks.linf_attack import ProjectedGradientDescent
from attacks.local_certificate import LocalCertificate
from core import Core
from models.architectures import CNN, VGG16, parse
from models.network import Network
from storage.run_flags import of_trained
from support.errors import UserError

SHAPE = (8, 8, 1)
SMALL = [["C", 4, [3, 3]], ["P"], ["F", 16], ["F", 10, {"act": False}]]


def nothing(fraction):
    pass


@pytest.fixture(scope="module")
def trained():
    """A small CNN after 15 epochs of digits, and 1000 images: (model, x, y, logits)."""
    model, x, y = trained_on_digits(SMALL, 1000)
    return model, x, y, model.logits(x).numpy()


def attack_l2(x):
    return tf.reshape(base.l2(x), [-1, 1, 1, 1])


def distances(a, b, norm):
    difference = np.abs(a.astype(np.float64) - b)
    if norm == "Linf":
        return difference.max(axis=(1, 2, 3))
    return difference.sum(axis=(1, 2, 3)) if norm == "L1" else np.sqrt((difference**2).sum(axis=(1, 2, 3)))


# The certificate


def plain_conv(size, kernel, **overrides):
    """The spec of a convolution, as `parse` makes it."""
    return parse([["C", 6, list(kernel), overrides], ["F", 2]], "NONE", size)[0]


def dense_norm(kernel, in_shape):
    """Largest singular value of a SAME convolution written out as a matrix."""
    n = int(np.prod(in_shape))
    basis = np.eye(n, dtype=np.float32).reshape(n, *in_shape)
    return np.linalg.norm(tf.nn.conv2d(basis, kernel, 1, "SAME").numpy().reshape(n, -1), 2)


SIZES = [((8, 8, 3), (3, 3)), ((7, 5, 2), (5, 3)), ((2, 2, 4), (3, 3)), ((5, 4, 1), (2, 4))]


@pytest.mark.parametrize(("size", "kernel"), SIZES)
def test_a_small_convolutions_norm_is_exact_and_that_by_fft_above_it(size, kernel):
    weight = np.random.default_rng(0).standard_normal((*kernel, size[2], 6)).astype(np.float32)
    exact = dense_norm(weight, size)
    assert operator_norms.conv_norm(weight, plain_conv(size, kernel)) == pytest.approx(exact, rel=1e-5)
    assert exact * (1 - 1e-6) <= operator_norms.fft_norm(weight, size) <= 1.6 * exact


GEOMETRIES = [{"stride": [2, 2]}, {"stride": [2, 1], "pad": [1, 0, 0, 2]}, {"pad": [0, 0, 0, 0]}]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("size", "kernel"), SIZES[:2])
def test_other_strides_and_pads_have_their_own_norm_below_the_fft_bound(size, kernel, geometry):
    spec = plain_conv(size, kernel, **geometry)
    weight = np.random.default_rng(0).standard_normal((*kernel, size[2], 6))
    n = int(np.prod(size))
    (top, bottom, left, right), eye = spec.pads, np.eye(n).reshape(n, *size)
    padded = np.pad(eye, ((0, 0), (top, bottom), (left, right), (0, 0)))
    matrix = tf.nn.conv2d(padded, weight, spec.stride, "VALID").numpy().reshape(n, -1)
    np.testing.assert_allclose(operator_norms.conv_as_matrix(weight, spec).toarray(), matrix, atol=1e-12)
    exact = np.linalg.norm(matrix, 2)
    assert operator_norms.conv_norm(weight, spec) == pytest.approx(exact, rel=1e-9)
    assert exact <= operator_norms.fft_norm(weight, size) * (1 + 1e-9)


@pytest.mark.parametrize(
    "entry", [["A", [3, 2], {"stride": [2, 1]}], ["A", [2, 3]], ["P", [3, 3], {"stride": [1, 2]}]]
)
def test_a_pools_constant_bounds_the_pool_and_an_average_is_its_matrix(entry):
    (spec, *_) = parse([entry, ["F", 2]], "NONE", (7, 8, 2))
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, 50, 7, 8, 2))
    pool = tf.nn.avg_pool2d if entry[0] == "A" else tf.nn.max_pool2d
    values, others = (pool(v, spec.window, spec.stride, "VALID").numpy().reshape(50, -1) for v in (x, other))
    change = np.linalg.norm(values - others, axis=1) / np.linalg.norm((x - other).reshape(50, -1), axis=1)
    constant = operator_norms.pool_norm(spec)
    assert change.max() <= constant
    if entry[0] == "A":
        matrix = operator_norms.average_as_matrix(spec)
        np.testing.assert_allclose(x.reshape(50, -1) @ matrix, values, atol=1e-6)
        assert np.linalg.norm(matrix.toarray(), 2) <= constant * (1 + 1e-9)


STRIDED = [["C", 4, [3, 3], {"stride": [2, 2], "pad": [1, 1, 0, 1]}], ["A", [2, 2], {"stride": [1, 1]}],
           ["C", 6, [2, 2], {"pad": [0, 0, 0, 0]}], ["F", 10, {"act": False}]]  # fmt: skip


@pytest.mark.parametrize("act_type", ["relu", "leaky_relu,0.2"])
def test_no_attack_comes_below_the_certificates_of_strides_pads_and_leaky_relu(act_type):
    model = Network(STRIDED, SHAPE, "ALL", act_type, seed=3)
    x = np.random.default_rng(0).uniform(0, 1, (20, *SHAPE)).astype(np.float32)
    z = model.logits(x).numpy()
    y = z.argmax(axis=1)
    local = act_type == "relu"
    assert (local_certificate.why_not(model) is None) == local
    by_norms, radii = (Certifier(model, "L2", local=use)(x, z, y, nothing) for use in (False, local))
    found = DDN(lambda images: model.logits(images), SHAPE)(x, y)
    away = np.linalg.norm((found - x).reshape(20, -1), axis=1)
    fooled = model.logits(found).numpy().argmax(axis=1) != y
    assert fooled.any() and (by_norms > 0).all() and (radii >= by_norms).all()
    assert (radii[fooled] <= away[fooled]).all()


def test_the_fft_bound_nears_the_norm_as_the_input_grows():
    weight = np.random.default_rng(0).standard_normal((3, 3, 1, 4)).astype(np.float32)
    excess = [operator_norms.fft_norm(weight, (n, n, 1)) / dense_norm(weight, (n, n, 1)) - 1 for n in (4, 8, 28)]
    assert 0 <= excess[2] < excess[1] < excess[0] and excess[2] < 0.02


def test_a_matrix_norm_is_its_largest_singular_value():
    for shape in ((7, 3), (3, 7)):
        weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert operator_norms.fc_norm(weight) == pytest.approx(np.linalg.norm(weight.astype(np.float64), 2))


def test_gaps_of_random_images_never_grow_faster_than_the_lipschitz_constant(trained):
    model, x, *_ = trained
    bound, difference = certificate.lipschitz(model.specs, model.effective_weights(), "relu")
    other = np.clip(x + np.random.default_rng(0).normal(0, 0.1, x.shape), 0, 1).astype(np.float32)
    change = (model.logits(other) - model.logits(x)).numpy()
    gaps = np.abs(change[:, :, None] - change[:, None, :])  # [N, C, C]
    assert (gaps <= bound * difference * distances(other, x, "L2")[:, None, None] * (1 + 1e-4) + 1e-4).all()


LAST = ["F", 10, {"act": False}]
NORMALIZED = {"input_mean": (0.2, 0.5, 0.1), "input_std": (0.25, 0.5, 0.1)}


def normalized_network(description, shape=(6, 6, 3), **options):
    """A network with normalized input, and batch norms whose running statistics are anything."""
    model = Network(description, shape, "ALL", **NORMALIZED, **options)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.bn is not None:
            for variable, low in ((layer.bn.scale, -2), (layer.bn.mean, -2), (layer.bn.variance, 0.01)):
                variable.assign(rng.uniform(low, 2, variable.shape))
    return model


def test_of_a_linear_network_the_certificate_is_the_distance_also_with_batch_norm_and_normalized_input():
    model = normalized_network([["F", 10, {"act": False, "bn": True}]])
    x = np.random.default_rng(1).uniform(0, 1, (8, 6, 6, 3)).astype(np.float32)
    z = model.logits(x).numpy().astype(np.float64)
    y = z.argmax(axis=1)
    # A logit's gradient by the pixels, from the network itself.
    w = np.stack([(model.logits(x[:1] + e[None]) - model.logits(x[:1])).numpy()[0] for e in
                  np.eye(108, dtype=np.float32).reshape(108, 6, 6, 3)])  # fmt: skip
    exact = [
        min((z[i, k] - z[i, j]) / np.linalg.norm(w[:, k] - w[:, j]) for j in range(10) if j != k)
        for i, k in enumerate(y)
    ]
    bound = certificate.lipschitz(model.specs, model.effective_weights(), "relu")
    np.testing.assert_allclose(certificate.certified(z, y, *bound), exact, rtol=1e-3)


def test_effective_weights_alone_give_the_same_differences_of_logits():
    description = [["A"], ["C", 5, [3, 2], {"bn": True}], ["F", 7, {"bn": True}], ["F", 10]]
    model = normalized_network(description, act_type="linear")
    plain = Network([["A"], ["C", 5, [3, 2]], ["F", 7], ["F", 10]], (6, 6, 3), "NONE", "linear")
    plain.set_weights(model.effective_weights())
    x = np.random.default_rng(1).uniform(0, 1, (4, 6, 6, 3)).astype(np.float32)
    ours, theirs = ((m.logits(x) - m.logits(x[:1])).numpy() for m in (model, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(ours).max())


def test_relu2_has_no_lipschitz_constant_and_an_average_pool_halves_it():
    with_pool = parse([["A"], ["F", 10, {"act": False}]], "NONE", (4, 4, 1))
    weight = np.ones((4, 10), np.float32)
    assert certificate.lipschitz(with_pool, [weight], "relu")[0] == 0.5
    squared = parse([["F", 4], ["F", 10, {"act": False}]], "NONE", (4, 4, 1))
    bound, difference = certificate.lipschitz(squared, [np.ones((16, 4)), weight], "relu2")
    z = np.eye(10, dtype=np.float32)
    assert (certificate.certified(z, np.arange(10), bound, difference) == 0).all()


def test_a_layer_that_is_dead_in_the_whole_ball_proves_nothing_beyond_it():
    """At 0.5 the relu is off, and everything near is the first class; at 0.92 it is the second."""
    description = [["F", 1, {"act": False}], ["F", 1], ["F", 2, {"act": False}]]
    model = Network(description, (1, 1, 1), "ALL")
    model.set_weights([np.ones((1, 1)), np.zeros(1), np.ones((1, 1)), np.full(1, -0.9), [[0.0, 10.0]], [0.1, 0.0]])
    x = np.full((1, 1, 1, 1), 0.5, np.float32)
    for norm in ("L1", "L2", "Linf"):
        radius = Certifier(model, norm, local=True)(x, model.logits(x).numpy(), np.zeros(1, int), nothing)
        assert 0.3 < radius[0] <= 0.41


def test_a_dead_network_has_a_finite_radius():
    model = Network(SMALL, SHAPE, "ALL")
    weights = [array for _, array in model.get_weights()]
    weights[3] = weights[3] - 12  # the hidden layer's biases
    weights[5] = np.arange(10, dtype=np.float32)
    model.set_weights(weights)
    x = np.random.default_rng(0).uniform(0, 1, (3, *SHAPE)).astype(np.float32)
    radii = Certifier(model, "L2", local=True)(x, model.logits(x).numpy(), np.full(3, 9), nothing)
    assert np.isfinite(radii).all() and (radii > 1).all()


# Pairs of layers


def test_a_pairs_constant_lies_between_the_worst_pattern_of_the_relu_and_the_product():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.standard_normal((5, 8)), rng.standard_normal((8, 4))
        worst = max(np.linalg.norm((first * on) @ second, 2) for on in itertools.product((0, 1), repeat=8))
        product = np.linalg.norm(first, 2) * np.linalg.norm(second, 2)
        assert worst <= certificate.pair_norm(first, second) * (1 + 1e-9) <= product * (1 + 1e-8)


def test_pairs_tighten_the_constants_of_fully_connected_networks_and_gaps_keep_to_them():
    model = Network([["F", 20], ["F", 15], ["F", 12], ["F", 5, {"act": False}]], SHAPE, "ALL")
    weights = model.effective_weights()
    bound, difference = certificate.lipschitz(model.specs, weights, "relu")
    product = math.prod(np.linalg.norm(w, 2) for w in weights[:-1])
    columns = np.linalg.norm(weights[-1].T[:, None] - weights[-1].T, axis=2)
    off = ~np.eye(5, dtype=bool)
    assert (bound * difference[off] < 0.8 * product * columns[off]).all()
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (200, *SHAPE)).astype(np.float32)
    other = (x + rng.normal(0, 0.05, x.shape)).astype(np.float32)
    change = (model.logits(other) - model.logits(x)).numpy()
    gaps = np.abs(change[:, :, None] - change[:, None, :])
    assert (gaps <= bound * difference * distances(other, x, "L2")[:, None, None] * (1 + 1e-4) + 1e-6).all()


# Near an image


@pytest.mark.parametrize(("size", "kernel"), [*SIZES, ((2, 2, 1), (7, 7)), ((2, 3, 2), (5, 7))])
def test_layers_as_matrices_are_tensorflows_own(size, kernel):
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((*kernel, size[2], 6)), rng.standard_normal((3, *size))
    ours = x.reshape(3, -1) @ operator_norms.conv_as_matrix(weight, plain_conv(size, kernel))
    np.testing.assert_allclose(ours, tf.nn.conv2d(x, weight, 1, "SAME").numpy().reshape(3, -1), atol=1e-12)
    pooled = x.reshape(3, -1) @ operator_norms.average_as_matrix(parse([["A"], ["F", 2]], "NONE", size)[0])
    np.testing.assert_allclose(pooled, tf.nn.avg_pool2d(x, 2, 2, "VALID").numpy().reshape(3, -1), atol=1e-6)
    windows = local_certificate.windows(x[0].ravel(), size)
    np.testing.assert_allclose(windows.max(axis=1), tf.nn.max_pool2d(x[:1], 2, 2, "VALID").numpy().ravel(), 1e-6)
    back = local_certificate.from_windows(windows, size)
    h, w = size[0] // 2 * 2, size[1] // 2 * 2
    np.testing.assert_array_equal(back.reshape(size)[:h, :w], x[0][:h, :w])


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_bound_of_the_largest_eigenvalue_is_above_it_and_near(n, rank, seed):
    part = np.random.default_rng(seed).standard_normal((n, rank))
    gram = part @ part.T
    exact = np.linalg.eigvalsh(gram)[-1]
    assert exact <= local_certificate.largest_eigenvalue_bound(gram) <= 1.05 * exact + 1e-9


def test_the_largest_eigenvalue_of_an_empty_matrix_is_0():
    assert 0 <= local_certificate.largest_eigenvalue_bound(np.zeros((4, 4))) < 1e-6


KINDS = {
    "max pools": [["C", 5, [3, 2]], ["P"], ["C", 6, [3, 3]], ["P"], ["F", 9], ["F", 10, {"act": False}]],
    "average pools, batch norm": [["A"], ["C", 5, [3, 2], {"bn": True}], ["F", 7, {"bn": True}], LAST],
    "odd sizes": [["C", 4, [2, 2]], ["P"], ["C", 5, [3, 3], {"act": False}], ["P"], LAST],
    "fully connected": [["F", 20], ["F", 12], LAST],
}


def kind(name):
    shape = (7, 6, 3) if name == "odd sizes" else (6, 6, 3)
    return normalized_network(KINDS[name], shape)


@functools.cache
def of_kind(name):
    """A network of KINDS, images and their classes there."""
    model = kind(name)
    x = np.random.default_rng(1).uniform(0, 1, (12, *model.specs[0].in_shape)).astype(np.float32)
    return model, x, model.logits(x).numpy().argmax(axis=1).astype(np.int32)


@pytest.mark.parametrize(
    "name, norm", [*((name, "L2") for name in KINDS), ("max pools", "L1"), ("max pools", "Linf")]
)
def test_inside_the_proved_radius_no_ascent_finds_another_class(name, norm):
    """By 40 steps of the steepest ascent of each gap from random points of the ball."""
    model, x, y = of_kind(name)
    z = model.logits(x).numpy()
    far = Certifier(model, norm, local=False)(x, z, y, nothing)
    radii = Certifier(model, norm, local=True)(x, z, y, nothing)
    assert (radii >= far).all() and (far[radii > 0] > 0).all()
    assert np.median(radii / far) > 1.2
    ball = {"L1": FMNL1, "L2": FMN, "Linf": FMNLinf}[norm](model.logits, x.shape[1:])
    x, y, radii = np.repeat(x, 10, axis=0), np.repeat(y, 10), tf.constant(np.repeat(radii, 10), tf.float32)
    other = np.tile(np.arange(10), len(x) // 10)  # each image heads for each class
    delta = ball.project(tf.constant(np.random.default_rng(0).normal(0, 1, x.shape).astype(np.float32)), radii)
    for k in range(40):
        with tf.GradientTape() as tape:
            tape.watch(delta)
            logits = model.logits(x + delta)
            gap = tf.gather(logits, other, axis=1, batch_dims=1) - tf.gather(logits, y, axis=1, batch_dims=1)
        assert (gap.numpy()[y != other] < 1e-5 * np.abs(z).max()).all()
        gradient = tape.gradient(gap, delta)
        unit = tf.sign(gradient) if norm == "Linf" else gradient / (1e-30 + attack_l2(gradient))
        delta = ball.project(delta + 2 / (1 + k) * tf.reshape(radii, [-1, 1, 1, 1]) * unit, radii)


def test_of_a_linear_network_the_local_certificate_is_the_distance_in_each_norm():
    model = normalized_network([["A"], ["C", 5, [3, 2], {"bn": True}], LAST], act_type="linear")
    x = np.random.default_rng(1).uniform(0, 1, (6, 6, 6, 3)).astype(np.float32)
    z = model.logits(x).numpy().astype(np.float64)
    y = z.argmax(axis=1)
    eye = np.eye(108, dtype=np.float32).reshape(108, 6, 6, 3)
    w = (model.logits(x[:1] + eye) - model.logits(x[:1])).numpy().astype(np.float64)
    for norm, dual in (("L1", np.inf), ("L2", 2), ("Linf", 1)):
        exact = [
            min((z[i, k] - z[i, j]) / np.linalg.norm(w[:, k] - w[:, j], dual) for j in range(10) if j != k)
            for i, k in enumerate(y)
        ]
        found = Certifier(model, norm, local=True)(x, z, y, nothing)
        np.testing.assert_allclose(found, exact, rtol=0.06)
        assert (found <= np.array(exact) * (1 + 1e-3)).all()


def test_every_radius_that_is_shown_holds_at_every_smaller_radius_too(trained):
    model, x, y, z = trained
    local = LocalCertificate(model, 2)
    for k in np.flatnonzero(z.argmax(axis=1) == y)[:20]:
        image = x[k].astype(np.float64).ravel()
        shown = [r * local._share(image, int(y[k]), r) for r in (0.02, 0.05, 0.1, 0.3)]
        proved = [min(r, s) for r, s in zip((0.02, 0.05, 0.1, 0.3), shown, strict=True)]
        assert local.radius(x[k], int(y[k]), 1e-3) >= 0.9 * max(proved)
        assert all(a >= b * (1 - 1e-9) for a, b in itertools.pairwise(shown))  # a larger ball leaves more open


ATTACKS = {
    "cw": (CarliniWagnerL2, "L2", {"iterations": 40, "binary_search_steps": 3, "initial_const": 1.0}),
    "ddn": (DDN, "L2", {}),
    "fmn": (FMN, "L2", {}),
    "deepfool": (DeepFool, "L2", {}),
    "bim": (BasicIterativeMethod, "L2", {}),
    "fmn-l1": (FMNL1, "L1", {}),
    "fmn-linf": (FMNLinf, "Linf", {}),
    "pgd": (ProjectedGradientDescent, "Linf", {"eps_list": (0.02, 0.05, 0.1), "restarts": 1, "steps": 20}),
    "apgd": (AutoPGD, "Linf", {"eps_list": (0.02, 0.05, 0.1), "steps": 30}),
}


@pytest.fixture(scope="module")
def radii(trained):
    model, x, y, z = trained
    return functools.cache(lambda norm: Certifier(model, norm, local=True)(x, z, y, nothing))


OFTEN = ("fmn", "fmn-linf")  # of each norm an attack that finds near examples


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in OFTEN else soak) for name in ATTACKS])
def test_no_attack_on_1000_images_comes_below_the_certificate(trained, radii, name):
    model, x, y, _ = trained
    attack, norm, options = ATTACKS[name]
    adversarial = attack(model.logits, SHAPE, **options)(x, y)
    fooled = model.logits(adversarial).numpy().argmax(axis=1) != y
    assert fooled.sum() > 300
    assert (distances(adversarial, x, norm)[fooled] >= radii(norm)[fooled]).all()
    assert (radii(norm) > 0).mean() > 0.9


def test_a_misclassified_image_has_no_radius(trained):
    model, x, y, z = trained
    wrong = (y + 1) % 10
    assert (Certifier(model, "L2", local=True)(x[:5], z[:5], wrong[:5], nothing) == 0).all()


def test_the_reason_for_a_missing_local_certificate_is_reported():
    def reason(description, shape=(32, 32, 3), **options):
        return local_certificate.why_not(Network(description, shape, **options))

    assert reason(CNN, (28, 28, 1)) is None
    assert "at most 3e+07" in reason(VGG16)
    assert "relu2" in reason([["F", 10, {"act": False}]], act_type="relu2")
    assert "follows the last layer" in reason([["F", 10]])
    assert "max pool" in reason([["P"], ["F", 10, {"act": False}]])


def test_an_attack_proves_what_its_flag_says_in_its_own_norm(tmp_path):
    model = {"description": SMALL, "init": {"weight": "he_normal"}}
    script = {"dataset": "digits", "train_N": 200, "B": 20, "E": 10, "lr": 0.05, "gpu": -1, "model": model}
    run = Core(script | {"logs_dir": str(tmp_path), "figures": False}, "run").run()
    flags = of_trained(run) | {"task": "attack", "load_dir": str(run), "eid": [10], "attack_N": 40}

    def certified(how, method="ddn"):
        asked = {"attack_certificate": how, "attack_method": method, "attack_K": 5}
        return results.load(Core(flags | asked, "eval").run())[10]

    norms, local = certified("norms"), certified("local")
    assert (certified("none")["certified"] == 0).all()
    right = norms["clean_correct"]
    assert (local["certified"] >= norms["certified"]).all() and right.sum() > 20
    assert np.median((local["certified"] / norms["certified"])[right]) > 1.3
    np.testing.assert_allclose(certified("norms", "fmn-linf")["certified"], norms["certified"] / 8)
    np.testing.assert_array_equal(certified("norms", "fmn-l1")["certified"], norms["certified"])
    squared = {"model": {"description": SMALL, "act_type": "relu2"}, "logs_dir": str(tmp_path)}
    other = Core(script | squared | {"E": 1, "lr": 1e-4, "figures": False}, "relu2").run()
    asked = {"task": "attack", "load_dir": str(other), "eid": [1], "attack_certificate": "local"}
    with pytest.raises(UserError, match=r"--attack_certificate local: not available for this network: .*relu2"):
        Core(of_trained(other) | asked, "eval").run()
