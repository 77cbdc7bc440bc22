"""Random labels, batch norm, spans, walks, planes and curvature, each against its definition."""

import functools
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf

from data import labels as random_labels
from data import loading
from flatness import curvature, interpolation, radius, span
from flatness.hessian import Hessian
from flatness.published import table_row
from flatness.span import Examples, FastSpan, PlainSpan
from models import losses, margins
from models.architectures import VGG16, VGG16_BN
from models.augmentation import crop_and_flip
from models.layers import BatchNorm
from models.losses import hp_sparse_softmax_cross_entropy_with_logits_v1 as hp_loss
from models.network import Network
from support.errors import UserError
from support.files import ROOT

TORCH = {"weight": "torch_default", "bias": "torch_default"}
LAST = ["F", 10, {"act": False}]
NETWORKS = {
    "mlp": [["F", 40], ["F", 20], LAST],
    "cnn": [["C", 6, [3, 3]], ["P"], ["C", 8, [3, 3]], ["A"], ["F", 16], LAST],
    "batch norm": [
        ["C", 6, [3, 3], {"bn": True}],
        ["P"],
        ["C", 8, [3, 3], {"bn": True}],
        ["F", 12, {"bn": True}],
        LAST,
    ],
    "strided": [["C", 6, [3, 3], {"stride": [2, 2], "pad": [1, 0, 1, 0]}], ["P", [2, 2], {"stride": [1, 1]}], LAST],
    "thin first layer": [["C", 1, [1, 1], {"bn": True}], ["C", 16, [3, 3], {"bn": True}], ["P"], LAST],
}


def digits(n=500):
    dataset = loading.load("digits", train_N=n)
    return dataset[0]


def untrained(name, seed):
    return Network(
        NETWORKS[name], (8, 8, 1), "ALL", init=TORCH, scale=1 / 16, seed=seed, input_mean=(0.3,), input_std=(0.4,)
    )


@functools.cache
def trainer(name):
    """One network trains all of its kind: its graph is traced only once."""
    return untrained(name, 0)


@functools.cache
def trained(name, seed, steps):
    """Tensors after some steps on 500 digits."""
    model = trainer(name)
    model.set_weights(arrays(untrained(name, seed)))
    x, y = digits()
    batches = np.random.default_rng(seed).integers(0, len(y), (steps, 50)).astype(np.int32)
    assert model.train_epoch(tf.constant(x), tf.constant(y), batches, 0.1, 0.0, 600.0)[0]
    return arrays(model)


def network(name, seed=0, steps=60):
    """A network of NETWORKS, trained a little on digits."""
    model = untrained(name, seed)
    model.set_weights(trained(name, seed, steps))
    return model


@functools.cache
def examples_of(name):
    """Digits for a network of NETWORKS: spans and walks set its weights, and share its graphs."""
    return Examples(network(name), *digits())


def arrays(model):
    return [array for _, array in model.get_weights()]


def names(model):
    return [name for name, _ in model.get_weights()]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 examples and at most 6 points at once, so that a walk takes many of both."""
    monkeypatch.setattr(span, "CACHED_FLOATS", 64)
    monkeypatch.setattr(span, "MOST_POINTS", 6)


# What the networks are made of


def test_batch_norm_in_training_is_the_batchs_and_moves_the_running_statistics_as_pytorch_does():
    x = np.random.default_rng(0).normal(3, 2, (16, 4, 4, 5)).astype(np.float32)
    bn = BatchNorm(5)
    bn.scale.assign([1, 2, 3, 4, 5.0])
    bn.shift.assign([5, 4, 3, 2, 1.0])
    mean, variance = x.mean((0, 1, 2), np.float64), x.var((0, 1, 2), np.float64)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * bn.scale.numpy() + bn.shift.numpy()
    np.testing.assert_allclose(bn(tf.constant(x), training=True), expected, atol=1e-4)
    np.testing.assert_allclose(bn.mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(bn.variance, 0.9 + 0.1 * variance * 256 / 255, rtol=1e-5)
    running = (x - bn.mean.numpy()) / np.sqrt(bn.variance.numpy() + 1e-5) * bn.scale.numpy() + bn.shift.numpy()
    np.testing.assert_allclose(bn(tf.constant(x), training=False), running, atol=1e-4)


def test_training_moves_the_running_statistics_and_a_snapshot_brings_them_back():
    model = network("batch norm", steps=1)
    snapshot = model.snapshot()
    before = dict(model.get_weights())
    x, y = digits()
    model.train_epoch(tf.constant(x), tf.constant(y), np.arange(50, dtype=np.int32)[None], 0.1, 0.0, 600.0)
    after = dict(model.get_weights())
    assert all((before[name] != after[name]).any() for name in before if "/bn/" in name)
    model.set_weights(snapshot)
    assert all((before[name] == array).all() for name, array in model.get_weights())


def test_vgg_with_batch_norm_is_vgg_with_one_after_each_convolution():
    assert [layer[:-1] if layer[0] == "C" else layer for layer in VGG16_BN] == VGG16
    model = Network(VGG16_BN, (32, 32, 3), "ALL", init=TORCH)
    assert sum(name.endswith("bn/scale") for name in names(model)) == 13
    assert not any(v.trainable for v in model.tensors if v.name.startswith(("mean", "variance")))


def test_torch_default_is_uniform_within_one_over_the_root_of_the_weights_fan_in():
    model = Network([["C", 64, [3, 3]], ["F", 50], LAST], (8, 8, 1), "ALL", init=TORCH)
    for layer, fan_in in zip(model.layers, (9, 64 * 64, 50), strict=True):
        for tensor in (layer.weight.numpy(), layer.bias.numpy()):
            bound = 1 / np.sqrt(fan_in)
            assert 0.7 * bound < np.abs(tensor).max() <= bound * (1 + 1e-6)
            assert abs(tensor.std() - bound / np.sqrt(3)) < 4 * bound / np.sqrt(tensor.size)


def test_crops_and_flips_are_windows_of_the_padded_image_and_repeat_with_the_seed():
    images = np.random.default_rng(0).integers(1, 256, (60, 6, 5, 2)).astype(np.uint8)
    out = crop_and_flip(tf.constant(images), tf.constant([1, 2])).numpy()
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    seen = set()
    for image, cropped in zip(padded, out, strict=True):
        windows = {
            (top, left, flip): image[top : top + 6, left : left + 5][:, :: -1 if flip else 1]
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
        }
        found = [key for key, window in windows.items() if (window == cropped).all()]
        assert found
        seen.add(found[0])
    assert {flip for *_, flip in seen} == {False, True} and len(seen) > 40
    assert (crop_and_flip(tf.constant(images), tf.constant([1, 2])).numpy() == out).all()
    assert (crop_and_flip(tf.constant(images), tf.constant([1, 3])).numpy() != out).any()


def test_input_statistics_are_the_published_ones_or_make_the_training_pixels_standard():
    (x, _), _ = dataset = loading.load("digits")
    (mean,), (std,) = random_labels.input_statistics(dataset)
    seen = (x / 16.0 - mean) / std
    assert abs(seen.mean()) < 1e-9 and abs(seen.std() - 1) < 1e-9
    colours = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(40, dtype=np.int32) % 10
    cifar = loading.Dataset((colours, labels), (colours, labels), "cifar10", 1 / 255)
    assert random_labels.input_statistics(cifar)[0] == (0.4914, 0.4822, 0.4465)
    other = loading.Dataset((colours, labels), (colours, labels), "other", 1 / 255)
    np.testing.assert_allclose(random_labels.input_statistics(other)[0], (colours / 255).mean((0, 1, 2)))


def test_random_labels_replace_half_of_the_labels_by_uniform_draws():
    labels = np.repeat(np.arange(10, dtype=np.int32), 6000)
    drawn = random_labels.draw_random_labels(labels)
    assert abs((drawn != labels).mean() - 0.45) < 0.01
    wrong = drawn[drawn != labels]
    np.testing.assert_allclose(np.bincount(wrong) / len(wrong), 0.1, atol=0.01)
    assert (random_labels.draw_random_labels(labels) == drawn).all()
    assert (random_labels.draw_random_labels(labels, seed=1) != drawn).any()


def test_random_labels_of_another_length_or_no_labels_at_all_are_refused(tmp_path):
    dataset = loading.load("digits", train_N=100)
    path = tmp_path / "labels.npz"
    with pytest.raises(UserError, match="make_random_labels"):
        random_labels.with_labels_of(dataset, path)
    random_labels.save_random_labels(path, np.zeros(99, np.int32), 0)
    with pytest.raises(UserError, match=r"labels \[99\].* 100 training"):
        random_labels.with_labels_of(dataset, path)
    path.write_bytes(b"no labels")
    with pytest.raises(UserError, match="not a file of labels"):
        random_labels.with_labels_of(dataset, path)
    random_labels.save_random_labels(path, np.arange(100, dtype=np.int32) % 10, 0)
    (x, y), test = random_labels.with_labels_of(dataset, path)
    assert (y == np.arange(100) % 10).all() and (x == dataset[0][0]).all() and test is dataset[1]


# Spans


def test_the_plain_losses_are_the_high_precision_cross_entropy():
    logits = np.random.default_rng(0).normal(0, 1, (40, 10)).astype(np.float32) * np.geomspace(0.1, 100, 40)[:, None]
    labels = np.arange(40, dtype=np.int32) % 10
    labels[20:] = logits[20:].argmax(1)  # the losses of these are as small as 1e-40
    expected = hp_loss(tf.constant(labels), tf.constant(logits))
    assert float(tf.reduce_min(expected)) < 1e-30
    got = losses.cross_entropy(tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    in_frame = losses.cross_entropy_in_frame(tf.constant(labels), tf.constant(logits), -50.0)
    np.testing.assert_allclose(in_frame, expected * np.exp(50.0), rtol=1e-12)
    s = margins.log_odds_of_gaps(margins.gaps(logits, labels))
    np.testing.assert_allclose(s, losses.log_odds(labels, tf.constant(logits)), rtol=1e-12)
    np.testing.assert_allclose(np.exp(margins.log_losses(s)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "params"),
    [*((name, "all") for name in NETWORKS), ("batch norm", "trainable"), ("batch norm", "top"), ("mlp", "top")],
)
def test_the_fast_span_gives_the_plain_losses_along_a_ray(name, params, small_blocks):
    examples = examples_of(name)
    model, weights = examples.model, trained(name, 0, 60)
    delta = radius.direction(np.random.default_rng(0), names(model), weights, params)
    points = np.array([[1, t] for t in (0, 0.1, 0.5, 1, 2, 3, 5, 8)], float)
    plain = PlainSpan(examples, [weights, delta]).losses(points)
    model.set_weights([0 * w for w in weights])  # the fast span must not look at the model's own
    fast = FastSpan(examples, [weights, delta]).losses(points)
    np.testing.assert_allclose(fast, plain, rtol=2e-5)


def test_which_layers_are_taken_as_linear_follows_from_their_share_of_the_work():
    for name, linear in (("mlp", True), ("thin first layer", False)):
        model = network(name, steps=1)
        delta = radius.direction(np.random.default_rng(0), names(model), arrays(model))
        assert FastSpan(Examples(model, *digits()), [arrays(model), delta]).linear is linear


@pytest.mark.parametrize("name", ["mlp", "batch norm", "thin first layer"])
def test_the_fast_span_gives_the_plain_losses_in_a_plane(name, small_blocks):
    networks = [trained(name, seed, 60) for seed in (0, 1, 2)]
    examples = examples_of(name)
    fast, plain = FastSpan(examples, networks, keep=3), PlainSpan(examples, networks)
    X, Y = (values[:, :5] for values in interpolation.grid(9))
    for row in (0, 4, 8):
        points = interpolation.coefficients(X[row], Y[row])
        a, b = fast.losses(points), plain.losses(points)
        np.testing.assert_allclose(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=5e-5)


def test_the_planes_corners_are_the_networks_themselves():
    models = [network("mlp", seed) for seed in (0, 1, 2)]
    x, y = digits()
    examples = Examples(models[0], x, y)
    own = [model.evaluate(tf.constant(x), tf.constant(y))[1] for model in models]
    span = FastSpan(examples, [arrays(model) for model in models], keep=3)
    corners = span.losses(interpolation.coefficients(np.array([1.0, 0, 0]), np.array([0.0, 1, 0])))
    np.testing.assert_allclose(corners, own, rtol=1e-5)


def test_the_grid_is_the_papers():
    X, Y = interpolation.grid()
    assert X.shape == (50, 50) and (X[0] == np.linspace(-0.4, 1.3, 50)).all() and (X[0] == Y[:, 0]).all()
    assert (Y[0] == -0.4).all()


# Walks


@pytest.mark.parametrize(
    ("name", "params", "step"),
    [("mlp", "all", 0.5), ("mlp", "top", 0.1), ("batch norm", "all", 0.5), ("batch norm", "trainable", 0.5)],
)
def test_fast_walks_give_the_radii_and_profiles_of_plain_walks(name, params, step, small_blocks):
    examples = examples_of(name)
    model, weights = examples.model, trained(name, 0, 60)
    fast, plain = (radius.WALKS[method](examples, weights) for method in ("fast", "plain"))
    for k in range(4):
        delta = radius.direction(np.random.default_rng(k), names(model), weights, params)
        a, b = (walks.walk(delta, step, 0.05, 1000) for walks in (fast, plain))
        assert a["radius"] == b["radius"]
        np.testing.assert_allclose(a["profile"], b["profile"], rtol=2e-5)
        assert np.isnan(b["end"]) or abs(b["end"] - b["profile"][0]) >= 0.05
        assert not abs(a["end"] - a["profile"][0]) < 0.0499


@pytest.mark.parametrize(("params", "step"), [("all", 0.5), ("top", 0.1)])
def test_radii_equal_those_of_a_walk_in_numpy_with_float64(params, step):
    examples, weights = examples_of("mlp"), trained("mlp", 0, 60)
    x, y = digits()
    pixels = (x.reshape(len(y), -1) / 16.0 - 0.3) / 0.4

    def loss(tensors):
        h = pixels
        for k in (0, 2, 4):
            h = (np.maximum(h, 0) if k else h) @ tensors[k] + tensors[k + 1]
        return np.mean(np.log(np.exp(h).sum(1)) - h[np.arange(len(y)), y])

    origin = loss(np_weights := [w.astype(np.float64) for w in weights])
    for seed in range(3):
        delta = radius.direction(np.random.default_rng(seed), names(examples.model), weights, params)
        k = 1
        moved = [0.0 if d is None else d for d in delta]
        while abs(origin - loss([w + k * step * d for w, d in zip(np_weights, moved, strict=True)])) < 0.05:
            k += 1
        walk = radius.FastWalks(examples, weights).walk(delta, step, 0.05, 1000)
        assert walk["radius"] == (k - 1) * step
        assert walk["profile"][0] == pytest.approx(origin, rel=1e-5)


def test_a_forecast_that_the_order_of_the_examples_misleads_does_not_change_the_radius(small_blocks):
    model = network("mlp")
    weights = arrays(model)
    x, y = digits()
    delta = radius.direction(np.random.default_rng(1), names(model), weights)
    span_ = PlainSpan(Examples(model, x, y), [weights, delta])
    plain = radius.PlainWalks(Examples(model, x, y), weights).walk(delta, 0.5, 0.05, 1000)
    model.set_weights(span_.at((1.0, plain["radius"] + 0.5)))
    _, _, logits = model.evaluate(tf.constant(x), tf.constant(y))
    order = np.argsort(logits[np.arange(len(y)), y] - logits.max(1))
    for by in (order, order[::-1]):
        assert radius.FastWalks(Examples(model, x[by], y[by]), weights).walk(delta, 0.5, 0.05, 1000)[
            "radius"
        ] == pytest.approx(plain["radius"])


def test_partial_sums_that_prove_a_step_reached_end_its_evaluation(small_blocks, monkeypatch):
    model = network("mlp")
    weights = arrays(model)
    examples = Examples(model, *digits())
    walks = radius.FastWalks(examples, weights)
    delta = radius.direction(np.random.default_rng(0), names(model), weights)
    asked = []
    spy = examples.graph(("sums", 0, False), FastSpan(examples, [weights, delta])._sums_of_losses())
    monkeypatch.setitem(
        examples.functions, ("sums", 0, False), lambda x, p, y, c, s: asked.append(len(c)) or spy(x, p, y, c, s)
    )
    walk = walks.walk(delta, 1000.0, 0.05, 100)
    blocks = len(examples.blocks(64))
    assert walk["radius"] == 0 and asked[:blocks] == [1] * blocks  # w itself, on all examples
    assert asked[blocks:] == [6]  # a step that far is reached with the first block


def test_the_kept_products_of_a_network_go_with_its_walks():
    model = network("mlp")
    weights = arrays(model)
    examples = Examples(model, *digits())
    span_ = FastSpan(examples, [weights, weights])
    span_.losses(np.array([[1.0, 0.0]]))
    gone = weakref.ref(span_)
    del span_
    gc.collect()
    assert gone() is None and examples.functions


def test_a_nan_loss_counts_as_reached():
    model = network("batch norm")
    weights = arrays(model)
    examples = Examples(model, *digits())
    delta = [np.zeros(w.shape) if name.endswith("variance") else None for name, w in model.get_weights()]
    first = next(k for k, d in enumerate(delta) if d is not None)
    delta[first] = -np.ones_like(weights[first])
    step = float(weights[first].max()) + 1
    for walks in radius.WALKS.values():
        walk = walks(examples, weights).walk(delta, step, 0.05, 10)
        assert walk["radius"] == 0 and np.isnan(walk["end"])


def test_a_walk_that_changes_nothing_ends_with_an_error():
    model = network("mlp")
    weights = arrays(model)
    delta = radius.direction(np.random.default_rng(0), names(model), weights)
    for walks in radius.WALKS.values():
        with pytest.raises(radius.EndlessWalk):
            walks(Examples(model, *digits(100)), weights).walk(delta, 1e-9, 0.05, 5)


def test_directions_have_length_one_over_the_perturbed_tensors_and_repeat_with_the_generator():
    model = network("batch norm", steps=1)
    weights = arrays(model)

    def direction(*args):
        return radius.direction(np.random.default_rng(3), names(model), weights, *args)

    moved = {
        params: {name for name, d in zip(names(model), direction(params), strict=True) if d is not None}
        for params in ("all", "trainable", "top")
    }
    assert moved["all"] == set(names(model)) and moved["top"] == {"layer3/weight", "layer3/bias"}
    assert moved["all"] - moved["trainable"] == {f"layer{k}/bn/{s}" for k in range(3) for s in ("mean", "variance")}
    for params in moved:
        for normalize in ("none", "layer"):
            assert radius.norm(direction(params, normalize)) == pytest.approx(1)
    assert all((a == b).all() for a, b in zip(direction(), direction(), strict=True))


def test_normalized_by_layer_every_layer_changes_by_the_same_fraction():
    model = network("mlp", steps=1)
    weights = arrays(model)
    delta = radius.direction(np.random.default_rng(0), names(model), weights, normalize="layer")
    fractions = [radius.norm(delta[k : k + 2]) / radius.norm(weights[k : k + 2]) for k in (0, 2, 4)]
    np.testing.assert_allclose(fractions, fractions[0])


def test_the_row_has_the_mean_and_population_deviation_of_the_networks_means():
    walks = [[{"radius": r, "profile": [0.1], "end": 1.0} for r in radii] for radii in ([13, 15], [13, 14], [14, 14])]
    networks = {str(k): {"eid": 30} | radius.summary(own, 2.0) for k, own in enumerate(walks)}
    row = table_row(networks, "mnist", "all", False, (13.9833, 0.1670))
    assert row["mean"] == pytest.approx(np.mean([14, 13.5, 14])) and row["sd"] == pytest.approx(
        np.std([14, 13.5, 14])
    )
    assert row["by_norm_mean"] == pytest.approx(row["mean"] / 2)
    assert row["published"] == (13.9833, 0.1670) and "published 13.9833 ± 0.1670" in row["text"]
    error = np.sqrt((row["sd"] ** 2 + 0.1670**2) / 2)
    assert row["standard_errors"] == pytest.approx(abs(row["mean"] - 13.9833) / error)
    other = table_row(networks, "digits", "all", False)
    assert other["published"] is None and "published" not in other["text"]


# Curvature


def dense_hessian(weights, x, y):
    """Of an MLP 4-5-4 by central differences of its gradient, all float64 NumPy."""
    shapes = [w.shape for w in weights]
    ends = np.cumsum([w.size for w in weights])[:-1]
    flat = np.concatenate([np.ravel(w) for w in weights]).astype(np.float64)

    def gradient(flat):
        W, b, V, c = (part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True))
        a = x @ W + b
        h = np.maximum(a, 0)
        z = h @ V + c
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        back = (p @ V.T) * (a > 0)
        return np.concatenate([(x.T @ back).ravel(), back.sum(0), (h.T @ p).ravel(), p.sum(0)])

    eps = 1e-5
    return np.stack([(gradient(flat + eps * e) - gradient(flat - eps * e)) / (2 * eps) for e in np.eye(len(flat))])


@pytest.fixture(scope="module")
def small_hessian():
    rng = np.random.default_rng(0)
    model = Network([["F", 5], ["F", 4, {"act": False}]], (2, 2, 1), "ALL", init=TORCH)
    x, y = rng.integers(0, 256, (30, 2, 2, 1)).astype(np.uint8), rng.integers(0, 4, 30).astype(np.int32)
    hessian = Hessian(Examples(model, x, y))
    dense = dense_hessian([w.numpy() for w in model.weights], x.reshape(30, 4) / 255, y)
    return hessian, dense * np.exp(-hessian.log_frame)


def test_hessian_vector_products_are_the_dense_hessians(small_hessian):
    hessian, dense = small_hessian
    columns = np.stack([hessian.matvec(e) for e in np.eye(len(dense))])
    np.testing.assert_allclose(columns, dense, atol=1e-6 * np.abs(dense).max())
    np.testing.assert_allclose(hessian.matvec(1e-60 * np.eye(len(dense))[3]), 1e-60 * dense[3], rtol=1e-4, atol=1e-67)


def test_eigenvalues_and_trace_are_the_dense_hessians(small_hessian):
    hessian, dense = small_hessian
    found = curvature.measure(hessian, 4, 60, np.random.default_rng(0))
    np.testing.assert_allclose(found["eigenvalues"], np.linalg.eigvalsh(dense)[::-1][:4], rtol=1e-3)
    assert abs(found["trace"] - np.trace(dense)) < 4 * found["trace_error"]


def test_a_hessian_far_below_floats_range_is_found_in_its_frame():
    # Two classes, one linear layer, one pixel of value 1: the loss is softplus(s), s = w0 - w1 for label
    # 1, and its second derivative by (w0, w1) exp(s) * [[1, -1], [-1, 1]] for very negative s.
    model = Network([["F", 2, {"act": False}]], (1, 1, 1), "NONE")
    model.set_weights([np.array([[-500.0, 500.0]], np.float32)])
    x, y = np.full((3, 1, 1, 1), 255, np.uint8), np.ones(3, np.int32)
    hessian = Hessian(Examples(model, x, y))
    assert hessian.log_frame == pytest.approx(-1000)
    columns = np.stack([hessian.matvec(e) for e in np.eye(2)])
    np.testing.assert_allclose(columns, [[1, -1], [-1, 1]], rtol=1e-5)


# Pictures


def test_figures_need_no_tensorflow():
    code = "import sys, figures; sys.exit('tensorflow' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
