"""Imported networks: the source's logits, distances, eigenvalue and radius, and one line for what does not fit."""

import json
import re
import shutil
import zipfile

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

import import_network
import results
from core import Core
from data import loading
from engine.context import Context
from exchange import importing
from flatness import radius
from storage.run_flags import of_trained
from support.errors import UserError
from support.files import ROOT

KEPT = ROOT / "tests" / "imported"
L = keras.layers


def shuffled(model, seed=0):
    """The model with random weights, also of its batch norms."""
    rng = np.random.default_rng(seed)
    weights = [
        rng.normal(0, 0.3, w.shape) if w.ndim > 1 else rng.uniform(0.1, 1, w.shape) for w in model.get_weights()
    ]
    model.set_weights(weights)
    return model


def functional():
    x = keras.Input((8, 8, 1))
    y = L.Conv2D(4, 3, activation="relu", padding="same")(x)
    y = L.Flatten()(L.Dropout(0.5)(L.AveragePooling2D(2)(y)))
    return keras.Model(x, L.Softmax()(L.Dense(10)(y)))


KERAS = {
    "batch norm after strides and padding": lambda: keras.Sequential(
        [keras.Input((8, 8, 1)), L.Rescaling(1 / 255), L.ZeroPadding2D(((1, 0), (2, 1))),
         L.Conv2D(4, 3, 2, use_bias=False), L.BatchNormalization(), L.ReLU(),
         L.Conv2D(5, (2, 3), (1, 2), "same"), L.BatchNormalization(scale=False), L.Activation("relu"),
         L.GlobalAveragePooling2D(), L.Dense(10, activation="softmax")]),
    "functional": functional,
    "nested, leaky": lambda: keras.Sequential(
        [keras.Input((8, 8, 1)), L.BatchNormalization(), L.Rescaling(2.0, -1.0), L.Conv2D(4, 3), L.LeakyReLU(0.2),
         keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(6, 3, 2, "same", activation="linear"), L.LeakyReLU(0.2)]),
         L.Flatten(), L.Dense(10)]),
    "overlapping pools": lambda: keras.Sequential(
        [keras.Input((8, 8, 1)), L.Conv2D(4, 3, padding="same"), L.MaxPooling2D(3, 2), L.ReLU(),
         L.GlobalMaxPooling2D(), L.Dense(10, use_bias=False)]),
    "without channels": lambda: keras.Sequential(
        [keras.Input((8, 8)), L.Flatten(), L.Normalization(mean=0.3, variance=0.2),
         L.Dense(20, "relu"), L.Dense(12), L.ReLU(), L.Dense(10)]),
    "flat": lambda: keras.Sequential(
        [keras.Input((64,)), L.Reshape((8, 8, 1)), L.Conv2D(3, 3, activation="relu"), L.Permute((3, 1, 2)),
         L.Flatten(), L.Dense(10)]),
}  # fmt: skip


def source_input(model, pixels, levels):
    return pixels.reshape(-1, *model.input_shape[1:]) * levels


def imported(file, tmp_path, **flags):
    """(working directory, network with its weights, its test images in [0, 1])."""
    run = importing.import_network(file, {"dataset": "digits", "gpu": -1, "logs_dir": str(tmp_path / "logs")} | flags)
    context = Context(of_trained(run))
    context.model.set_weights(context.stored_weights(run, 0))
    return run, context, context.model.pixels(context.dataset[1][0]).numpy()


def logits_without_softmax(model):
    last = model.layers[-1]
    if isinstance(last, L.Softmax):
        return keras.Model(model.inputs, last.input)
    if getattr(last, "activation", None) is keras.activations.softmax:
        last.activation = keras.activations.linear
    return model


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", KERAS)
def test_the_logits_are_keras_own(name, suffix, tmp_path, capsys):
    model = shuffled(KERAS[name]())
    model.save(tmp_path / f"net{suffix}")
    softmax = "softmax" in str(getattr(model.layers[-1], "activation", model.layers[-1])).lower()
    run, context, pixels = imported(tmp_path / f"net{suffix}", tmp_path)
    said = capsys.readouterr().out
    assert ("the final softmax, was removed" in said) == softmax
    levels = 255 if "batch norm" in name else 1
    assert f"reads pixels in [0, {levels}]" in said
    own = context.model.logits(pixels).numpy()
    source = logits_without_softmax(model)
    theirs = source(source_input(model, pixels, levels)).numpy()
    assert (np.abs(own - theirs).max(axis=1) < 1e-5 * np.abs(theirs).max(axis=1)).all()
    stats = results.load(run)["raw"][0]["stats"]
    y = context.dataset[0][1]
    x = context.model.pixels(context.dataset[0][0]).numpy()
    z = source(source_input(model, x, levels)).numpy().astype(np.float64)
    others = np.where(np.eye(10, dtype=bool)[y], -np.inf, z).max(axis=1)
    assert stats["q_min"] == pytest.approx((z[np.arange(len(y)), y] - others).min(), rel=1e-4)
    assert stats["acc"] == (z.argmax(1) == y).mean()
    weights = model.get_weights()
    first = next(k for k, w in enumerate(weights) if w.ndim > 1)
    bias = np.linalg.norm(weights[first + 1]) if context.model.specs[0].bias else 0.0
    assert stats["rho_0"] == pytest.approx(np.hypot(np.linalg.norm(weights[first]), bias), rel=1e-6)


@pytest.mark.parametrize("file", sorted(KEPT.glob("*.onnx")), ids=lambda path: path.stem)
def test_a_network_of_pytorchs_exporter_has_onnxruntimes_logits(file, tmp_path, capsys):
    import onnxruntime

    run, context, pixels = imported(file, tmp_path)
    assert "LogSoftmax), the final softmax, was removed" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    theirs = session.run(None, {name: pixels.transpose(0, 3, 1, 2)})[0]
    own = context.model.logits(pixels).numpy()
    np.testing.assert_allclose(own - own[:, :1], theirs - theirs[:, :1], atol=1e-5 * np.abs(own).max())
    assert results.load(run)["raw"][0]["stats"]["acc"] > 0.9


def onnx_file(path, nodes, constants, first=(None, 1, 8, 8), kind=TensorProto.FLOAT):
    """Write a network of these nodes from `x` to `z`."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in
              (("x", ["n", *first[1:]]), ("z", ["n", None]))]  # fmt: skip
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def random_array(*shape):
    return np.random.default_rng(len(shape)).normal(0, 0.3, shape).astype(np.float32)


def test_a_network_as_tf2onnx_writes_it_is_read_with_its_transpositions(tmp_path):
    """It reads channels last, turns to channels first for the convolution, and back before the reshape."""
    node = helper.make_node
    nodes = [
        node("Sub", ["x", "mean"], ["a"]), node("Mul", ["a", "factor"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[0, 3, 1, 2]),
        node("Conv", ["c", "kernel"], ["d"], auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]),
        node("Add", ["d", "bias"], ["e"]), node("Relu", ["e"], ["f"]),
        node("Transpose", ["f"], ["g"], perm=[0, 2, 3, 1]), node("Reshape", ["g", "shape"], ["h"]),
        node("MatMul", ["h", "weight"], ["i"]), node("Add", ["last", "i"], ["z"]),
    ]  # fmt: skip
    constants = {
        "mean": np.float32(0.2), "factor": np.float32(3), "kernel": random_array(4, 1, 3, 3),
        "bias": random_array(1, 4, 1, 1), "shape": np.array([-1, 64]), "weight": random_array(64, 10),
        "last": random_array(10),
    }  # fmt: skip
    file = onnx_file(tmp_path / "tf.onnx", nodes, constants, (None, 8, 8, 1))
    run, _, _ = imported(file, tmp_path)  # compares with onnxruntime itself
    model = of_trained(run)["model"]
    assert model["description"] == [
        ["C", 4, [3, 3], {"stride": [2, 2], "pad": [0, 1, 0, 1]}],
        ["F", 10, {"act": False}],
    ]
    assert model["bias_mode"] == "ALL" and model["input_mean"] == pytest.approx((0.2,))


def test_constants_are_computed_and_other_floats_are_read(tmp_path):
    """In double, the weight turned and the bias squeezed by operations of the graph, as exporters leave them."""
    node = helper.make_node
    nodes = [
        node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("Squeeze", ["b"], ["bs"]), node("Flatten", ["x"], ["f"]),
        node("MatMul", ["f", "wt"], ["p"]), node("Add", ["p", "bs"], ["z"]),
    ]  # fmt: skip
    constants = {"w": random_array(10, 64).astype(np.float64), "b": random_array(1, 10).astype(np.float64)}
    file = onnx_file(tmp_path / "net.onnx", nodes, constants, kind=TensorProto.DOUBLE)
    run, _, _ = imported(file, tmp_path)
    (_, weight), (_, bias) = results.load_weights(run, 0)
    np.testing.assert_array_equal(weight, constants["w"].T.astype(np.float32))
    np.testing.assert_array_equal(bias, constants["b"][0].astype(np.float32))


def test_a_factor_adds_no_bias_and_a_batch_norm_may_follow_the_flattening(tmp_path):
    layers = [L.Conv2D(4, 3), L.Flatten(), L.BatchNormalization(), L.Dense(10)]
    shuffled(chain(*layers)).save(tmp_path / "flat.keras")
    with pytest.raises(UserError, match=r"BatchNormalization.*constants that differ within a channel"):
        imported(tmp_path / "flat.keras", tmp_path)
    shuffled(
        chain(L.Flatten(), L.Dense(9, "relu", use_bias=False), L.Dense(10, use_bias=False), L.Rescaling(2.0))
    ).save(tmp_path / "scaled.keras")
    run, context, _ = imported(tmp_path / "scaled.keras", tmp_path)
    assert of_trained(run)["model"]["bias_mode"] == "NONE" and context.model.why_not_homogeneous is None


def test_published_statistics_are_scaled_to_what_the_network_reads(tmp_path):
    shuffled(chain(L.Flatten(), L.Dense(10))).save(tmp_path / "net.keras")
    flags = {"dataset": "digits", "gpu": -1, "logs_dir": str(tmp_path / "logs")}
    auto = flags | {"model": {"input_mean": "auto", "input_std": "auto"}}
    one, many = (importing.import_network(tmp_path / "net.keras", auto, levels=n) for n in (1, 255))
    a, b = (results.load(run)["raw"][0]["stats"]["log_loss"] for run in (one, many))
    assert a == pytest.approx(b, rel=1e-5)


# Measured as any run


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    """(a Keras network of 300 digits, its working directory, a Context, the training images in [0, 1], labels)."""
    path = tmp_path_factory.mktemp("mlp")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), L.Flatten(), L.Rescaling(2.5, -0.75), L.Dense(12, "relu"), L.Dense(10)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    (x, y), _ = loading.load("digits", train_N=300)
    model.fit(x / 16, y, epochs=40, verbose=0)
    model.save(path / "net.keras")
    run, context, _ = imported(path / "net.keras", path, train_N=300)
    return model, run, context, (x / 16).astype(np.float32), y


def measured(run, name, **flags):
    return Core({"task": name, "load_dir": str(run), "eid": "last", "figures": False} | flags, name).run()


@pytest.mark.filterwarnings("ignore")
def test_distances_are_those_that_foolbox_finds_on_the_source(mlp):
    foolbox = pytest.importorskip("foolbox")
    model, run, _, x, y = mlp
    right = np.flatnonzero(model(x).numpy().argmax(1) == y)[:40]
    flags = {"attack_set": "train", "attack_indices": tuple(map(int, right))}
    network = foolbox.TensorFlowModel(model, bounds=(0, 1), device="/CPU:0")
    data = tf.constant(x[right]), tf.constant(y[right], tf.int64)

    def theirs(attack):
        _, found, success = attack(network, *data, epsilons=None)
        assert success.numpy().all()
        return np.sqrt(np.square(found.numpy() - x[right]).sum((1, 2, 3)))

    deepfool = results.table(measured(run, "attack", **flags, attack_method="deepfool"))["distance"]
    of_source = theirs(foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02))
    assert np.median(deepfool) == pytest.approx(np.median(of_source), rel=0.02)
    assert (np.abs(deepfool / of_source - 1) < 0.05).mean() >= 0.9
    ddn = results.table(measured(run, "attack", **flags, attack_method="ddn"))["distance"]
    assert np.median(ddn) == pytest.approx(np.median(theirs(foolbox.attacks.DDNAttack(steps=100))), rel=0.05)


def loss_of_source(model, x, y, flat):
    """Mean cross-entropy, float64, of the Keras network with these weights, written out."""
    w0, b0, w1, b1 = flat
    z = tf.nn.relu(tf.constant(x.reshape(len(x), -1) * 2.5 - 0.75, tf.float64) @ w0 + b0) @ w1 + b1
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, z))


def test_the_largest_eigenvalue_is_that_of_the_sources_own_hessian(mlp):
    model, run, _, x, y = mlp
    flat = [tf.constant(w, tf.float64) for w in model.get_weights()]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(flat)
        with tf.GradientTape() as inner:
            inner.watch(flat)
            loss = loss_of_source(model, x, y, flat)
        gradient = tf.concat([tf.reshape(g, [-1]) for g in inner.gradient(loss, flat)], 0)
    blocks = outer.jacobian(gradient, flat)
    hessian = np.concatenate([b.numpy().reshape(len(gradient), -1) for b in blocks], axis=1)
    (found,) = results.load(measured(run, "measure_curvature", eigenvalues=2, probes=2))["raw"].values()
    exact = np.linalg.eigvalsh(hessian)[-1]
    largest = max(found["eigenvalues"]) * np.exp(found["log_frame"])
    assert largest == pytest.approx(exact, rel=2e-3)


def test_the_radius_is_that_of_a_plain_walk_in_the_source(mlp):
    model, run, context, x, y = mlp
    names, weights = context.model.names, model.get_weights()
    raw = results.load(measured(run, "measure_radius", directions=2, radius_step=0.05))["raw"]
    for k, found in enumerate(raw["networks"]["epoch 0"]["radii"]):
        delta = radius.direction(np.random.default_rng([0, 0, k]), names, weights)
        losses, step = [], 0
        while not losses or abs(losses[-1] - losses[0]) < 0.05:
            moved = [tf.constant(w + 0.05 * step * d, tf.float64) for w, d in zip(weights, delta, strict=True)]
            losses.append(float(loss_of_source(model, x, y, moved)))
            step += 1
        assert found == pytest.approx(0.05 * (step - 2))


def test_every_measure_export_and_report_works_on_it(mlp, tmp_path):
    import export
    import report

    _, run, _, _, _ = mlp
    stats = results.load(run)["raw"][0]["stats"]
    margin = Core(
        {"task": "measure_epochs", "load_dir": str(run), "eid": "all", "measure": ("margins", "losses")}
    ).run()
    again = results.load(margin)["raw"][0]["stats"]
    assert again == pytest.approx(stats, rel=1e-6, nan_ok=True)
    measured(run, "measure_sharpness", rho=(0.05,))
    measured(run, "measure_epochs", measure=("theory", "sharpness"))
    measured(run, "make_surface", grid=3)
    assert [path.name for path in export.export(run, "npz")] == ["eid-000000.npz"]
    assert report.main([str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").exists()


def test_the_theory_of_a_homogeneous_one_is_measured_without_the_time_that_it_was_trained(tmp_path):
    file = tmp_path / "net.keras"
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(8, "relu", use_bias=False),
            layers.Dense(10, use_bias=False),
        ]
    )
    model.save(file)
    run, _, _ = imported(file, tmp_path)
    found = results.load(measured(run, "measure_epochs", measure=("theory",)))["raw"][0]["stats"]
    assert found["euler_residual"] < 1e-5 and {"growth_rate", "kkt_certificate"} <= set(found)
    assert not {"log_time", "loss_rate"} & set(found)


# Training goes on from it


def test_training_starts_with_its_weights_and_flags_and_at_its_loss(mlp, tmp_path):
    _, run, _, _, _ = mlp
    flags = {"dataset": "digits", "train_N": 300, "B": 50, "E": 2, "gpu": -1, "logs_dir": str(tmp_path)}
    more = Core(flags | {"init_from": str(run), "lr": ["loss-based-v1", 0.01, 1.1, 1.05]}, "exper-more").run()
    before, after = results.load(run)["raw"][0]["stats"], results.load(more)["raw"]
    assert of_trained(more)["model"] == of_trained(run)["model"]
    assert after[1]["log_frame"] == pytest.approx(before["log_loss"], rel=1e-6)
    assert after[1]["stats"]["log_loss"] < before["log_loss"] and after[1]["stats"]["angle_to_last_epoch"] < 0.1
    tiny = Core(flags | {"init_from": str(run), "E": 1, "lr": 1e-12, "train_mode": "NORMAL"}, "exper-still").run()
    for (name, a), (_, b) in zip(results.load_weights(run), results.load_weights(tiny), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9, err_msg=name)
    peeked = Core(
        {"task": "train_peek", "load_dir": str(run), "eid": "last", "lr": 0.01, "E": 1, "B": 50}, "peek"
    ).run()
    assert results.load(peeked)["raw"][0]["epochs"][0]["stats"]["acc"] > 0.5


def test_a_network_of_another_shape_or_a_missing_directory_is_a_one_line_error(mlp, tmp_path):
    _, run, _, _, _ = mlp
    flags = {"dataset": "digits", "gpu": -1, "logs_dir": str(tmp_path / "logs"), "init_from": str(run)}
    with pytest.raises(UserError, match="holds another network"):
        Core(flags | {"model": {"description": [["F", 10, {"act": False}]]}}, "x").run()
    with pytest.raises(UserError, match="no such directory"):
        Core(flags | {"init_from": str(tmp_path / "gone")}, "x")
    assert not (tmp_path / "logs").exists()


def test_a_run_is_resumed_also_when_the_network_that_it_began_with_is_gone(mlp, tmp_path):
    _, run, _, _, _ = mlp
    source = shutil.copytree(run, tmp_path / "source", ignore=shutil.ignore_patterns("measure*", "attack", "export"))
    flags = {
        "dataset": "digits",
        "train_N": 300,
        "B": 50,
        "gpu": -1,
        "logs_dir": str(tmp_path),
        "init_from": str(source),
    }
    more = Core(flags | {"E": 1, "lr": 0.01}, "exper-more").run()
    shutil.rmtree(source)
    assert Core({"resume": str(more), "E": 2}, "exper-more").run() == more
    assert sorted(results.load(more)["raw"]) == [1, 2]
    with pytest.raises(UserError, match="an imported network; train it further with --init_from"):
        Core({"resume": str(run)}, "exper-more").run()


# Mistakes


def chain(*layers, shape=(8, 8, 1)):
    return keras.Sequential([keras.Input(shape), *layers])


def residual():
    x = keras.Input((8, 8, 1))
    y = L.Conv2D(4, 3, padding="same")(x)
    return keras.Model(x, L.Dense(10)(L.Flatten()(L.Add()([y, L.Conv2D(4, 3, padding="same")(y)]))))


def with_nan():
    model = chain(L.Flatten(), L.Dense(10))
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    return model


def two_outputs():
    x = keras.Input((8, 8, 1))
    return keras.Model(x, [L.Dense(10)(L.Flatten()(x))] * 2)


REFUSED = {
    "residual": (residual, r"layer add\w* \(Add\): this kind of layer is not supported; supported are"),
    "groups": (
        lambda: chain(L.Conv2D(4, 3), L.Conv2D(4, 3, groups=2), L.Flatten(), L.Dense(10)),
        "groups: it reads 2 of 4",
    ),
    "dilation": (lambda: chain(L.Conv2D(4, 3, dilation_rate=2), L.Flatten(), L.Dense(10)), r"\(Conv2D\): dilation"),
    "another activation": (lambda: chain(L.Flatten(), L.Dense(5, "tanh"), L.Dense(10)), "the activation tanh;"),
    "two activations": (
        lambda: chain(L.Flatten(), L.Dense(5, "relu"), L.Dense(5), L.LeakyReLU(0.1), L.Dense(10)),
        "the activation leaky_relu,0.1, where others are relu",
    ),
    "relu6": (lambda: chain(L.Flatten(), L.Dense(5), L.ReLU(6), L.Dense(10)), "a relu with a largest value"),
    "batch norm after the activation": (
        lambda: chain(L.Conv2D(4, 3, activation="relu"), L.BatchNormalization(), L.Flatten(), L.Dense(10)),
        "a batch norm that does not follow a convolution",
    ),
    "padded pool": (lambda: chain(L.MaxPooling2D(3, 2, "same"), L.Flatten(), L.Dense(10)), "a pool with padding"),
    "softmax in the middle": (lambda: chain(L.Flatten(), L.Softmax(), L.Dense(10)), "Softmax"),
    "no last layer": (lambda: chain(L.Conv2D(10, 3), L.GlobalAveragePooling2D()), "does not end with"),
    "other classes": (lambda: chain(L.Flatten(), L.Dense(5)), "5 outputs, but digits has 10 classes"),
    "more classes": (lambda: chain(L.Flatten(), L.Dense(12)), "12 outputs, but digits has 10 classes"),
    "other images": (
        lambda: chain(L.Flatten(), L.Dense(10), shape=(28, 28, 1)),
        "inputs of 28x28x1, but the images are 8x8x1",
    ),
    "nan": (with_nan, "weights that are not finite"),
    "two outputs": (two_outputs, "1 inputs and 2 outputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_network_is_a_one_line_error_that_names_the_layer(name, tmp_path, capsys):
    make, says = REFUSED[name]
    make().save(tmp_path / "net.keras")
    words = [str(tmp_path / "net.keras"), "--dataset", "digits", "--gpu", "-1", "--logs_dir", str(tmp_path / "logs")]
    assert import_network.main(words) == 2
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_a_branch_in_onnx_is_named(tmp_path):
    node = helper.make_node
    nodes = [node("Conv", ["x", "k"], ["a"], pads=[1] * 4, name="first"), node("Add", ["a", "x"], ["b"], name="join"),
             node("Flatten", ["b"], ["c"]), node("Gemm", ["c", "w"], ["z"])]  # fmt: skip
    file = onnx_file(tmp_path / "net.onnx", nodes, {"k": random_array(1, 1, 3, 3), "w": random_array(64, 10)})
    with pytest.raises(UserError, match=r"operation join \(Add\): it joins two branches"):
        imported(file, tmp_path)
    unknown = [
        node("Sigmoid", ["x"], ["a"], name="s"),
        node("Flatten", ["a"], ["c"]),
        node("Gemm", ["c", "w"], ["z"]),
    ]
    file = onnx_file(tmp_path / "net.onnx", unknown, {"w": random_array(64, 10)})
    with pytest.raises(UserError, match=r"operation s \(Sigmoid\): this operation is not supported"):
        imported(file, tmp_path)


def test_files_that_are_not_networks_are_one_line_errors(tmp_path, capsys, monkeypatch):
    def fails(name, says, *words):
        words = [
            str(tmp_path / name),
            "--dataset",
            "digits",
            "--gpu",
            "-1",
            "--logs_dir",
            str(tmp_path / "l"),
            *words,
        ]
        assert import_network.main(words) == 2, name
        error = capsys.readouterr().err
        assert re.search(says, error) and error.count("\n") == 1, error

    model = chain(L.Flatten(), L.Dense(10))
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"whole{suffix}")
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    onnx_model = (KEPT / "digits-torch.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(onnx_model[: len(onnx_model) // 2])
    (tmp_path / "text.onnx").write_text("weights")
    (tmp_path / "net.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("a", "b")
    fails("cut.keras", "not a .keras file, or cut short")
    fails("zip.keras", "not a Keras model that can be loaded")
    fails("cut.h5", "not a Keras model that can be loaded")
    fails("cut.onnx", "not an ONNX network of one input and one output")
    fails("text.onnx", "not an ONNX network")
    fails("net.npz", "not a .npz file, or cut short")
    fails("other.npz", "python export.py --to npz")
    fails("gone.keras", "no such file")
    fails("net.pt", "expected a file that ends in .keras, .h5, .onnx, .npz")
    fails("whole.keras", "--levels 0: expected the largest value", "--levels", "0")
    fails("whole.keras", "there is none of that name", "--dataset", "digit")
    assert import_network.main([str(tmp_path / "whole.keras")]) == 2
    assert "give --dataset, the data" in capsys.readouterr().err
    fails("whole.keras", "--name a/../b: expected letters", "--name", "a/../b")
    monkeypatch.setattr(importing, "MOST_BYTES", 1000)
    for suffix in (".keras", ".h5"):
        fails(f"whole{suffix}", "GB; networks of less than")
    assert not (tmp_path / "l").exists()


def test_logits_that_are_not_the_sources_are_refused(tmp_path, monkeypatch):
    model = shuffled(chain(L.Flatten(), L.Dense(10)))
    model.save(tmp_path / "net.keras")
    read = importing.READERS[".keras"]

    def other(path, shape):
        chain, logits = read(path, shape)
        return chain, lambda images: logits(images) * 1.0001

    monkeypatch.setitem(importing.READERS, ".keras", other)
    with pytest.raises(UserError, match=r"differ from the source's by 0.0001 of the largest .* nothing was written"):
        imported(tmp_path / "net.keras", tmp_path)
    assert not (tmp_path / "logs").exists()


# The page


def test_the_pages_snippets_work_as_printed(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "import.md").read_text()
    of_keras, of_torch = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(of_keras, {})
    shutil.copy(KEPT / "digits-torch.onnx", "digits.onnx")
    for line in re.findall(r"^python import_network.py (digits.*)$", page, re.MULTILINE):
        assert import_network.main([*line.split(), "--logs_dir", "logs", "--gpu", "-1"]) == 0
    assert capsys.readouterr().out.count("epoch 0 of") == 2
    pytest.importorskip("torch")
    exec(of_torch, {})
    assert import_network.main(["digits.onnx", "--dataset", "digits", "--logs_dir", "logs", "--gpu", "-1"]) == 0


def test_about_names_the_source(mlp):
    _, run, _, _, _ = mlp
    about = json.loads((run / "about.json").read_text())
    assert about["imported"]["file"] == "net.keras" and len(about["imported"]["sha256"]) == 64
