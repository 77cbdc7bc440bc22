"""Exports: the same logits in other programs, in a process that knows nothing of this one."""

import importlib.util
import json
import re
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import onnx
import pytest
from builders import TINY, soak
from onnx.reference import ReferenceEvaluator

import export
import results
from core import Core
from engine.context import Context
from exchange import npz_form, onnx_form
from exchange.importing import import_network
from models.architectures import VGG16_BN
from storage import workdir
from storage.run_flags import of_trained
from support.errors import UserError
from support.files import ROOT

SMALL_VGG_BN = [[layer[0], max(layer[1] // 32, 2), *layer[2:]] if layer[0] == "C" else layer for layer in VGG16_BN]
RELU2 = [["C", 4, [2, 3]], ["P"], ["C", 3, [3, 2]], ["A"], ["F", 10, {"act": False}]]
STRIDED = [["C", 4, [3, 2], {"stride": [2, 1]}], ["P", [3, 2], {"stride": [2, 1]}],
           ["C", 5, [2, 3], {"pad": [0, 1, 2, 0], "bn": True}], ["A", [2, 3], {"stride": [1, 2]}],
           ["F", 10, {"act": False}]]  # fmt: skip
NETWORKS = {  # {name: (data set's image shape, flags of the model)}
    "mnist cnn": ((28, 28, 1), {"description": "CNN/8"}),
    "vgg16 with batch norm": ((32, 32, 3), {"description": SMALL_VGG_BN, "bias_mode": "ALL", "input_mean": "auto",
                                            "input_std": "auto"}),
    "mlp": ((28, 28, 1), {"description": "MLP", "input_mean": 0.1307, "input_std": 0.3081}),
    "relu2": ((9, 7, 2), {"description": RELU2, "act_type": "relu2", "bias_mode": "ALL"}),
    "strided": ((13, 11, 2), {"description": STRIDED, "act_type": ["leaky_relu", 0.2], "input_std": 0.5}),
    "linear": ((8, 8, 1), {"description": [["F", 2, {"act": False}]], "bias_mode": "NONE"}),
}  # fmt: skip

# What a stranger does, with nothing of this program on the path.
STRANGERS = {
    "keras": """
import keras
model = keras.models.load_model(path)
assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
z = model(x, training=False).numpy()
""",
    "saved_model": """
import tensorflow as tf
loaded = tf.saved_model.load(path)
z = loaded.signatures["logits"](pixels=tf.constant(x))["logits"].numpy()
gap = loaded.signatures["gap"](pixels=tf.constant(x), labels=tf.constant(z.argmax(1)))["gap"].numpy()
top = np.sort(z, axis=1)
assert np.abs(gap - (top[:, -1] - top[:, -2])).max() <= 1e-6 * np.abs(z).max()
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
z = session.run(["logits"], {"pixels": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})[0]
""",
    "npz": """
import json
arrays = np.load(path)
layers = json.loads(str(arrays["metadata"]))["layers"]
z = x.astype(np.float64)
if "input/factor" in arrays:
    z = z * arrays["input/factor"] + arrays["input/shift"]
k = 0
for layer in layers:
    if layer["kind"] in "PA":
        (sh, sw), size = layer.get("stride", (2, 2)), tuple(layer.get("window", (2, 2)))
        windows = np.lib.stride_tricks.sliding_window_view(z, size, (1, 2))[:, ::sh, ::sw]
        z = windows.max((4, 5)) if layer["kind"] == "P" else windows.mean((4, 5))
        continue
    weight = arrays[f"layer{k}/weight"].astype(np.float64)
    if layer["kind"] == "C":
        kh, kw = weight.shape[:2]
        top, bottom, left, right = layer.get("pads", ((kh - 1) // 2, kh // 2, (kw - 1) // 2, kw // 2))
        padded, (sh, sw) = np.pad(z, ((0, 0), (top, bottom), (left, right), (0, 0))), layer.get("stride", (1, 1))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (1, 2))[:, ::sh, ::sw]
        z = np.einsum("bhwcij,ijcd->bhwd", windows, weight)
    else:
        z = z.reshape(len(z), -1) @ weight
    if layer["bias"]:
        z = z + arrays[f"layer{k}/bias"]
    if layer["bn"]:
        bn = {what: arrays[f"layer{k}/bn/{what}"] for what in ("scale", "shift", "mean", "variance")}
        z = (z - bn["mean"]) / np.sqrt(bn["variance"] + 1e-5) * bn["scale"] + bn["shift"]
    if layer["act"].startswith("leaky_relu"):
        z = np.maximum(z, float(layer["act"].split(",")[1]) * z)
    elif layer["act"] != "linear":
        z = np.maximum(z, 0) ** (2 if layer["act"] == "relu2" else 1)
    k += 1
""",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{network: (a run of one epoch on made-up images, its test images in [0, 1], the program's own logits)}."""
    found = {}
    for name, (shape, model) in NETWORKS.items():
        path = tmp_path_factory.mktemp("run")
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (80, *shape), dtype=np.uint8)
        y = np.arange(80) % (2 if name == "linear" else 10)
        np.savez(path / "data.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
        flags = {
            "dataset": str(path / "data.npz"),
            "model": {"init": {"weight": "he_normal"}} | model,
            "E": 1,
            "B": 25,
        }
        flags |= {"lr": 1e-5, "train_mode": "NORMAL", "gpu": -1, "logs_dir": str(path / "logs")}
        run = Core(flags, "exper-made-up").run()
        context = Context(of_trained(run))
        context.model.set_weights(context.stored_weights(run, 1))
        pixels = context.model.pixels(x[50:]).numpy()
        found[name] = run, pixels, context.model.logits(pixels).numpy()
    return found


def relative(z, own):
    """The largest deviation of an image's logits, relative to the largest of them."""
    return (np.abs(z - own) / np.abs(own).max(axis=1, keepdims=True)).max()


@pytest.mark.parametrize("form", ["keras", pytest.param("saved_model", marks=soak), "onnx", "npz"])
def test_a_stranger_without_this_program_gets_the_same_logits(trained, form, tmp_path):
    words = []
    for k, (run, pixels, _) in enumerate(trained.values()):
        words += [str(path) for path in export.export(run, form)]
        np.save(tmp_path / f"x{k}.npy", pixels)
    loop = "import sys\nimport numpy as np\nfor n, path in enumerate(sys.argv[1:]):\n    x = np.load(f'x{n}.npy')\n"
    code = loop + textwrap.indent(STRANGERS[form] + "np.save(f'z{n}.npy', z)\n", "    ")
    environment = {"PATH": "/usr/bin:/bin", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for k, (name, (_, _, own)) in enumerate(trained.items()):
        z = np.load(tmp_path / f"z{k}.npy")
        assert relative(z, own) < 1e-5, name
        np.testing.assert_array_equal(z.argmax(1), own.argmax(1))


@pytest.mark.parametrize("form", ["keras", "onnx", "npz"])
def test_an_export_that_is_imported_has_equal_weights_and_logits(trained, form, tmp_path):
    for name, (run, pixels, own) in trained.items():
        (path,) = export.export(run, form)
        flags = {"dataset": of_trained(run)["dataset"], "gpu": -1, "logs_dir": str(tmp_path)}
        back = import_network(path, flags, f"import-{name.replace(' ', '-')}")
        before, after = results.load_weights(run, 1), results.load_weights(back, 0)
        assert [name for name, _ in before] == [name for name, _ in after]
        for (tensor, a), (_, b) in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b, f"{name} {tensor}")
        context = Context(of_trained(back))
        context.model.set_weights(context.stored_weights(back, 0))
        np.testing.assert_array_equal(context.model.logits(pixels).numpy(), own)


def test_a_second_onnx_consumer_agrees_and_the_model_is_of_the_stated_opset(trained):
    for run, pixels, own in trained.values():
        (path,) = export.export(run, "onnx")
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [entry.version for entry in model.opset_import] == [onnx_form.OPSET]
        (z,) = ReferenceEvaluator(model).run(["logits"], {"pixels": pixels[:3].transpose(0, 3, 1, 2)})
        assert relative(z, own[:3]) < 1e-5


# Of a real run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs of digits, all archived."""
    flags = {"dataset": "digits", "train_N": 300, "B": 50, "E": 3, "gpu": -1, "archive": 1}
    flags |= {"model": {"description": TINY, "init": {"weight": "he_normal"}}}
    return Core(flags | {"logs_dir": str(tmp_path_factory.mktemp("logs"))}, "exper-tiny").run()


def told(path, form):
    """The metadata of an export."""
    if form == "keras":
        return json.loads(zipfile.ZipFile(path).read("run.json"))
    if form == "saved_model":
        return json.loads((path / "assets.extra" / "run.json").read_text())
    if form == "onnx":
        return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    return json.loads(str(np.load(path)["metadata"]))


@pytest.mark.parametrize("form", export.FORMS)
def test_every_export_names_its_run_and_epoch(run, form, capsys):
    paths = export.export(run, form, "all")
    assert [path.stem for path in paths] == ["eid-000001", "eid-000002", "eid-000003"]
    stats = results.load(run)["raw"][2]["stats"]
    about = told(paths[1], form)
    assert (about["experiment"], about["epoch"]) == ("exper-tiny", 2)
    assert {key: about[key] for key in ("log_loss", "q_min", "rho")} == {
        k: stats[k] for k in ("log_loss", "q_min", "rho")
    }
    assert about["flags"] == results.read_flags(run)
    said = capsys.readouterr().out.splitlines()
    said = [line for line in said if not line.startswith("note:")]  # of the threads of an earlier test
    assert len(said) == 3 and "epoch 2, 297 test images: largest relative deviation" in said[1]


@pytest.mark.parametrize("form", export.FORMS)
def test_logits_of_ten_thousand_are_exported_as_well(run, form, capsys):
    """As of a loss far below 1e-800."""
    context = Context(of_trained(run))
    context.model.set_weights(context.stored_weights(run, 3))
    size = np.abs(context.model.logits(context.model.pixels(context.dataset[1][0])).numpy()).max()
    large = run.parent / f"large-{form}"
    weights = [(name, array * np.float32((1e4 / size) ** (1 / 3))) for name, array in results.load_weights(run, 3)]
    for name in ("flags.json", "about.json", "journal.jsonl"):
        large.mkdir(exist_ok=True)
        (large / name).write_bytes((run / name).read_bytes())
    workdir.WorkDir(large).save(weights, {"eid": 3})
    export.export(large, form)
    said = capsys.readouterr().out
    assert float(said.split("logits up to ")[1]) > 2000


@soak
def test_foolbox_finds_deepfools_distances_on_the_exported_keras_model(run):
    import foolbox
    import keras

    context = Context(of_trained(run))
    context.model.set_weights(context.stored_weights(run, 3))
    _, (x, y) = context.dataset
    right = np.flatnonzero(context.model.logits(context.model.pixels(x)).numpy().argmax(1) == y)[:20]
    images, labels = context.model.pixels(x[right]), y[right]
    flags = of_trained(run) | {"task": "attack", "load_dir": str(run), "eid": "last", "attack_method": "deepfool"}
    flags |= {"attack_set": "test", "attack_indices": tuple(int(k) for k in right)}
    attacked = results.table(Core(flags, "eval-deepfool").run())
    (path,) = export.export(run, "keras")
    import tensorflow as tf

    attack = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)

    def distances(network):
        bounded = foolbox.TensorFlowModel(network, bounds=(0, 1), device="/CPU:0")
        _, found, success = attack(bounded, images, tf.constant(labels, tf.int64), epsilons=None)
        assert success.numpy().all()
        return np.sqrt(np.square(found.numpy() - images.numpy()).sum((1, 2, 3)))

    of_keras = distances(keras.models.load_model(path))
    np.testing.assert_allclose(of_keras, distances(lambda x: context.model.logits(x)), rtol=1e-3)
    assert attacked["success"].all()
    assert np.median(attacked["distance"]) == pytest.approx(np.median(of_keras), rel=0.02)
    assert (np.abs(attacked["distance"] / of_keras - 1) < 0.05).mean() >= 0.9
    (lines,) = re.findall(
        r"```python\n(import foolbox\n.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL
    )
    names = {"model": keras.models.load_model(path), "images": images, "labels": labels}  # int32, as here
    exec(lines, names)
    assert names["success"].numpy().all()


def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, capsys, monkeypatch):
    def fails(words, says):
        assert export.main([str(run), *words]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1

    fails(["--to", "torch"], "--to torch: expected one of keras, saved_model, onnx, npz")
    fails(["--to", "npz", "--eid", "7"], "--eid 7: not stored in")
    fails(["--to", "npz", "--eid", "x"], "--eid x: expected")
    fails(["--to", "npz", "--eid", "all", "--out", str(tmp_path / "a.npz")], "one file for 3 epochs")
    fails(["--to", "npz", "--out", "/proc/nowhere/a.npz"], "cannot be written")
    fails(["--to", "npz", "--out", "."], "expected the name of a file")
    fails(["--to", "npz", "--out", ""], "an empty word where a path is expected")
    fails(["--to", "keras", "--out", str(tmp_path / "net.h5")], "Keras reads files that end in .keras")
    for form in ("npz", "saved_model"):
        fails(["--to", form, "--out", str(run)], "a folder is in the way")
    assert (run / "journal.jsonl").exists()
    assert export.main([str(tmp_path), "--to", "npz"]) == 2 and "not a working directory" in capsys.readouterr().err
    wrong = npz_form.write
    monkeypatch.setitem(export.FORMS, "npz", lambda *args: lambda images: wrong(*args)(images) * 1.001)
    fails(["--to", "npz", "--out", str(tmp_path / "b.npz")], "deviate by 0.001")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(["--to", "onnx"], "not installed here; install them with")
    assert not list(tmp_path.iterdir())


# The record as a table


def test_a_runs_table_has_every_number_of_every_epoch(run):
    rows, raw = results.table(run), results.load(run)["raw"]
    assert rows["eid"].tolist() == [1, 2, 3] and rows["eid"].dtype == np.int64
    for eid, row in zip(raw, rows, strict=True):
        for key, value in raw[eid]["stats"].items():
            np.testing.assert_equal(row[key], value)
        assert (row["lr"], row["time"]) == (raw[eid]["lr"], raw[eid]["time"])


def test_tables_of_attacks_and_radii_have_a_row_an_image_and_a_direction(run):
    flags = of_trained(run) | {"task": "attack", "load_dir": str(run), "eid": [1, 3], "attack_method": "ddn"}
    attacked = Core(flags | {"attack_N": 6, "attack_K": 5}, "eval-ddn").run()
    rows, found = results.table(attacked), results.load(attacked)
    assert rows["eid"].tolist() == [1] * 6 + [3] * 6 and rows["index"].tolist() == [*range(6)] * 2
    expected = np.where(found[3]["success"], np.sqrt(found[3]["errors"]), np.nan)
    np.testing.assert_array_equal(rows["distance"][6:], expected)
    np.testing.assert_array_equal(rows["certified"][6:], found[3]["certified"])
    measured = Core({"task": "measure_radius", "load_dir": str(run), "eid": [3], "directions": 2}, "r").run()
    rows = results.table(measured)
    assert rows["radius"].tolist() == results.load(measured)["raw"]["networks"]["epoch 3"]["radii"]
    assert rows["network"].tolist() == ["epoch 3"] * 2 and rows["direction"].tolist() == [0, 1]


def test_the_csv_has_all_digits(run, tmp_path):
    done = subprocess.run(
        [sys.executable, "results.py", str(run), "--csv", str(tmp_path / "run.csv")],
        cwd=export.__file__.rsplit("/", 1)[0], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "3 rows" in done.stdout
    head, *lines = (tmp_path / "run.csv").read_text().splitlines()
    k = head.split(",").index("rho")
    stats = [info["stats"] for info in results.load(run)["raw"].values()]
    assert [float(line.split(",")[k]) for line in lines] == [s["rho"] for s in stats]


def test_tasks_without_a_table_are_reported(tmp_path, run):
    measured = Core({"task": "measure_curvature", "load_dir": str(run), "eid": [3], "probes": 2}, "c").run()
    seeds = Core({"task": "train_seeds", "seeds": (0, 1), "dataset": "digits", "train_N": 100, "E": 1, "lr": 0.01,
                  "model": {"description": TINY}, "logs_dir": str(tmp_path)}, "s").run()  # fmt: skip
    with pytest.raises(UserError, match="has several runs; give the directory of one of them"):
        results.table(seeds)
    with pytest.raises(
        UserError, match="there is no table for the task measure_curvature, only for train, measure_epochs, attack"
    ):
        results.table(measured)
