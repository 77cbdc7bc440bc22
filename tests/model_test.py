"""The network, its gradient step, the epoch and the evaluation, against plain TensorFlow and NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from builders import TINY

from models import network
from models.architectures import CNN, VGG16, parse
from models.network import Network

LOG10 = float(np.log(np.log(10)))


def data(n=120, shape=(8, 8, 1), seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.integers(0, 17, (n, *shape)).astype(np.uint8)), tf.constant(
        rng.integers(0, 10, n).astype(np.int32)
    )


def plain_logits(model, images):
    """The description, layer by layer, with ordinary ops in the order it says."""
    x, layers = images, iter(model.layers)
    for spec in model.specs:
        if spec.kind == "P":
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        elif spec.kind == "A":
            x = tf.nn.avg_pool2d(x, 2, 2, "VALID")
        else:
            layer = next(layers)
            if spec.kind == "C":
                x = tf.nn.conv2d(x, layer.weight, 1, "SAME")
            else:
                x = tf.reshape(x, [len(x), -1]) @ layer.weight
            if layer.bias is not None:
                x = x + layer.bias
            if spec.act:
                act = {"relu": tf.nn.relu, "linear": tf.identity, "relu2": lambda t: tf.nn.relu(t) ** 2}
                x = act[model.act_type](x)
    return x


DESCRIPTIONS = {
    "tiny": TINY,
    "CNN": CNN,
    "average pool, overrides": [
        ["C", 3, [2, 4], {"act": False}],
        ["A"],
        ["C", 5, [3, 3], {"bias": True}],
        ["P"],
        ["P"],
        ["F", 10, {"act": False, "bias": True}],
    ],
    "one layer": [["F", 10, {"act": False}]],
}


@pytest.mark.parametrize("act_type", ["relu", "linear", "relu2"])
@pytest.mark.parametrize("bias_mode", ["NONE", "FIRST_LAYER", "ALL"])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_logits_and_gradients_are_those_of_the_description(name, bias_mode, act_type):
    model = Network(DESCRIPTIONS[name], (8, 8, 1), bias_mode, act_type, scale=1 / 16, init={"bias": "random_normal"})
    x, y = data(20)
    results = []
    for logits in (model.logits, lambda images: plain_logits(model, images)):
        with tf.GradientTape() as tape:
            z = logits(model.pixels(x))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, z))
        results.append([z, *tape.gradient(loss, model.weights)])
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5 * float(tf.reduce_max(tf.abs(want))))


def test_bias_modes_place_biases_and_overrides_have_the_last_word():
    def biases(bias_mode, description=CNN):
        return [spec.bias for spec in parse(description, bias_mode, (28, 28, 1)) if spec.weight_shape]

    assert biases("NONE") == [False] * 4
    assert biases("FIRST_LAYER") == [True, False, False, False]
    assert biases("ALL") == [True] * 4
    assert biases("ALL", [["F", 5, {"bias": False}], ["F", 10]]) == [False, True]
    assert biases("NONE", [["F", 5], ["F", 10, {"bias": True}]]) == [False, True]


def test_norms_count_the_first_layers_bias_and_no_other():
    model = Network(TINY, (8, 8, 1), "ALL", init={"bias": "random_normal"})
    counted = model.counted_weights()
    assert [len(tensors) for tensors in counted] == [2, 1, 1]
    assert counted[0][1] is not None and counted[0][1].shape == (4,)


def test_flops_of_the_paper_networks():
    cnn = [spec.flops for spec in parse(CNN, "NONE", (28, 28, 1))]
    assert cnn == [2 * 28 * 28 * 25 * 32, 0, 2 * 14 * 14 * 9 * 32 * 64, 0, 2 * 7 * 7 * 64 * 1024, 2 * 1024 * 10]
    vgg = parse(VGG16, "FIRST_LAYER", (32, 32, 3))
    assert vgg[-1].in_shape == (1, 1, 512)
    assert sum(int(np.prod(s.weight_shape)) for s in vgg if s.weight_shape) == 14_715_584


@pytest.mark.parametrize(
    "description, says",
    [
        ([], "at least one"),
        ([["X"]], "layer 0"),
        ([["C", 3]], "layer 0"),
        ([["C", 0, [3, 3]]], "layer 0"),
        ([["F", 5], ["P"]], "flat"),
        ([["P"]] * 4 + [["F", 10]], "too small"),
        ([["C", 3, [3, 3]]], "last layer"),
        ([["F", 10, {"activ": False}]], "overrides"),
        ("F", "list"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_by_layer(description, says):
    with pytest.raises(ValueError, match=says):
        parse(description, "NONE", (8, 8, 1))


def test_same_seed_same_weights_and_another_seed_others():
    a, b, c = (Network(TINY, (8, 8, 1), seed=seed).get_weights() for seed in (1, 1, 2))
    assert [name for name, _ in a] == ["layer0/weight", "layer0/bias", "layer1/weight", "layer2/weight"]
    for (_, u), (_, v) in zip(a, b, strict=True):
        np.testing.assert_array_equal(u, v)
    assert not np.array_equal(a[0][1], c[0][1])


@pytest.mark.parametrize("parts, wide", [(1, 0), (3, 0), (3, network.WIDE)])
def test_an_epoch_is_plain_gradient_steps_in_the_frame(parts, wide, monkeypatch):
    """v <- v - grad(lr * loss * exp(-log_frame)), batch by batch, against TensorFlow's own cross-entropy."""
    monkeypatch.setattr(network, "WIDE", wide)  # whether slices join before the fully connected layers
    model, reference = (Network(TINY, (8, 8, 1), scale=1 / 16, seed=3, parts=p) for p in (parts, 1))
    x, y = data()
    batches = np.random.default_rng(0).permutation(120).reshape(6, 20).astype(np.int32)
    ok, losses = model.train_epoch(x, y, batches, 0.3, LOG10, 600.0)
    assert ok and losses.shape == (6,)
    for batch, got in zip(batches, losses, strict=True):
        with tf.GradientTape() as tape:
            z = plain_logits(reference, reference.pixels(tf.gather(x, batch)))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(y, batch), z))
        assert got == pytest.approx(float(loss) / np.log(10), rel=1e-5)
        for v, g in zip(reference.weights, tape.gradient(loss, reference.weights), strict=True):
            v.assign_sub(0.3 / np.float32(np.log(10)) * g)
    for v, w in zip(model.weights, reference.weights, strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-6)


def test_an_epoch_stops_at_the_first_batch_loss_above_the_bound():
    model = Network(TINY, (8, 8, 1), scale=1 / 16)
    x, y = data()
    batches = np.arange(120).reshape(6, 20).astype(np.int32)
    bound = 0.5 * float(model.train_epoch(x, y, batches[:1], 0.0, 0.0, 1e9)[1][0])
    ok, losses = model.train_epoch(x, y, batches, 0.01, 0.0, bound)
    assert not ok and len(losses) == 1 and losses[0] > bound


def test_an_epoch_stops_at_a_loss_that_is_not_finite():
    model = Network(TINY, (8, 8, 1), scale=1 / 16)
    x, y = data()
    batches = np.arange(120).reshape(6, 20).astype(np.int32)
    ok, losses = model.train_epoch(x, y, batches, 1e30, 0.0, np.inf)
    assert not ok and len(losses) < 6 and not np.isfinite(losses[-1])
    assert np.isfinite(losses[:-1]).all()


def test_a_pass_in_many_turns_is_the_pass_at_once_bit_for_bit(monkeypatch):
    x, y = data(1234)
    batches = np.arange(120).reshape(6, 20).astype(np.int32)
    seed = np.array([1, 2], np.int32)
    results, seen = [], {"train": [], "evaluate": []}
    for turn_flops in (2e11, 1):
        monkeypatch.setattr(network, "TURN_FLOPS", turn_flops)
        model = Network(TINY, (8, 8, 1), scale=1 / 16)
        ok, losses = model.train_epoch(x, y, batches, 0.1, 0.0, 600.0, seed, seen["train"].append)
        complete, loss, logits = model.evaluate(x, y, update=seen["evaluate"].append)
        stopped = model.evaluate(x, y, loss_limit=loss / 3)[:2]
        results.append((ok, losses, complete, loss, logits, *stopped, *(v.numpy() for v in model.weights)))
    assert seen == {"train": [0, 0, *(k / 6 for k in range(1, 6))], "evaluate": [0, 0, 1 / 3, 2 / 3]}
    for at_once, in_turns in zip(*results, strict=True):
        np.testing.assert_array_equal(at_once, in_turns)


@pytest.mark.parametrize("wide", [0, network.WIDE])
@pytest.mark.parametrize("n, parts", [(3, 1), (499, 1), (500, 1), (501, 1), (1234, 1), (1, 2), (501, 2), (1234, 3)])
def test_evaluation_in_blocks_equals_evaluation_of_the_whole_set(n, parts, wide, monkeypatch):
    """Also where the last block has fewer examples than parts."""
    monkeypatch.setattr(network, "WIDE", wide)  # whether slices join before the fully connected layers
    model = Network(TINY, (8, 8, 1), scale=1 / 16, parts=parts)
    x, y = data(n)
    complete, loss, logits = model.evaluate(x, y, -1.0)
    want = plain_logits(model, model.pixels(x))
    assert complete and logits.shape == (n, 10)
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(y, tf.cast(want, tf.float64))
    assert loss == pytest.approx(float(tf.reduce_mean(cross_entropy)) * np.e, rel=1e-5)


def test_evaluation_stops_once_the_limit_is_passed_and_only_then():
    model = Network(TINY, (8, 8, 1), scale=1 / 16)
    x, y = data(2000)
    _, loss, _ = model.evaluate(x, y)
    complete, bound, _ = model.evaluate(x, y, loss_limit=loss / 3)
    assert not complete and loss / 3 < bound < 0.7 * loss
    complete, same, _ = model.evaluate(x, y, loss_limit=loss)
    assert complete and same == loss


def test_a_snapshot_keeps_the_weights_of_its_moment_and_other_shapes_are_refused():
    model = Network(TINY, (8, 8, 1), scale=1 / 16)
    before = model.get_weights()
    snapshot = model.snapshot()
    x, y = data()
    model.train_epoch(x, y, np.arange(120).reshape(6, 20), 0.1, 0.0, 1e9)
    assert not np.array_equal(model.get_weights()[0][1], before[0][1])
    model.set_weights(snapshot)
    model.train_epoch(x, y, np.arange(120).reshape(6, 20), 0.1, 0.0, 1e9)
    model.set_weights(snapshot)  # as often as one likes
    for (_, a), (_, b) in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="shapes"):
        model.set_weights([array for _, array in before][:-1])


@pytest.mark.parametrize("seed", [0, 3])
def test_initial_weights_are_those_of_a_new_network_with_that_seed(seed):
    init = {"weight": "he_normal", "bias": "torch_default"}
    description = [["C", 4, [3, 3], {"bn": True}], ["P"], *TINY[2:]]
    new = Network(description, (8, 8, 1), "ALL", init=init, seed=seed)
    for given, (name, expected) in zip(
        Network(description, (8, 8, 1), "ALL", init=init).initial_weights(seed), new.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(given, expected, err_msg=name)


def test_the_gradient_over_the_whole_set_is_that_of_the_mean_loss_in_the_frame():
    model = Network(TINY, (8, 8, 1), scale=1 / 16)
    x, y = data(1234)
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, plain_logits(model, model.pixels(x)))
        loss = tf.reduce_mean(losses)
    for got, want in zip(model.gradient(x, y, -2.0), tape.gradient(loss, model.weights), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got * np.exp(-2.0), want, rtol=1e-3, atol=1e-6)
