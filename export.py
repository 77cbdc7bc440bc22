"""Export trained networks.

    python export.py <working directory> --to keras|saved_model|onnx|npz [--eid n|last|all] [--out FILE]

The logits of each export are compared with the program's own on the whole test set before it gets its name.
docs/export.md shows how to use it in each tool.
"""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

from engine.context import Context
from flags import values
from flags.command_line import Parser, exit_status, refuse_empty
from storage import read
from storage.run_flags import of_trained
from support.device import compiled
from support.errors import UserError, reason
from support.files import arrays_of

SUFFIX = {"keras": ".keras", "saved_model": "", "onnx": ".onnx", "npz": ".npz"}
TOLERANCE = 1e-5  # of an image's logits, relative to the largest of them
CHECK_BATCH = 500
ONNX_OPSET, ONNX_IR = 17, 8  # of 2022: every consumer of today reads them
SAVED_MODEL_HOLDS = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}
METADATA = "run.json"  # in a .keras, which is a zip, and in a SavedModel's assets.extra


# What every form is made from


def metadata(directory: Path, eid: int) -> dict[str, Any]:
    """Return the metadata of an export: experiment, epoch, log_loss, q_min, rho, log_frame, flags."""
    info = read.load(directory)["raw"].get(eid, {})
    stats = info.get("stats") or {}
    about = read.read_about(directory) if (directory / "about.json").exists() else {}
    return {
        "experiment": about.get("experiment", ""),
        "epoch": eid,
        **{key: stats.get(key) for key in ("log_loss", "log_frame", "q_min", "rho")},
        "input": "pixels in [0, 1]",
        "flags": read.read_flags(directory),
    }


def keras_model(network: Any) -> Any:
    """Return a plain keras.Sequential with the network's layers, names and weights; input [B, h, w, c] in [0, 1]."""
    import keras

    layers: list[Any] = [keras.Input(network.specs[0].in_shape, name="pixels")]
    if network.input_normalization is not None:
        factor, shift = (np.broadcast_to(v, network.specs[0].in_shape[-1:]) for v in network.input_normalization)
        layers.append(keras.layers.Rescaling(factor.tolist(), shift.tolist(), name="normalization"))
    weights = {}
    for spec, own, name in network.stages():
        if own is None:
            pool = keras.layers.MaxPooling2D if spec.kind == "P" else keras.layers.AveragePooling2D
            layers.append(pool(2, 2, "valid", name=name))
            continue
        if spec.kind == "F" and len(spec.in_shape) > 1:
            layers.append(keras.layers.Flatten(name="flatten"))
        if spec.kind == "F":
            layers.append(keras.layers.Dense(spec.out_shape[0], use_bias=spec.bias, name=name))
        else:
            size = own.weight.shape[:2]
            layers.append(keras.layers.Conv2D(own.weight.shape[-1], size, 1, "same", use_bias=spec.bias, name=name))
        weights[name] = [own.weight.numpy()] + ([own.bias.numpy()] if spec.bias else [])
        if own.bn is not None:
            layers.append(keras.layers.BatchNormalization(epsilon=own.bn.EPS, momentum=0.9, name=f"{name}_bn"))
            weights[f"{name}_bn"] = [v.numpy() for v in (own.bn.scale, own.bn.shift, own.bn.mean, own.bn.variance)]
        if spec.act and network.act_type != "linear":
            layers.append(_keras_activation(network.act_type, spec.out_shape, f"{name}_{network.act_type}"))
    model = keras.Sequential(layers, name="network")
    for name, arrays in weights.items():
        model.get_layer(name).set_weights(arrays)
    return model


def _keras_activation(act_type: str, shape: tuple[int, ...], name: str) -> Any:
    import keras

    if act_type == "relu":
        return keras.layers.Activation("relu", name=name)
    x = keras.Input(shape)  # Keras lacks relu2; this model of two layers loads without our code
    y = keras.layers.Activation("relu")(x)
    return keras.Model(x, keras.layers.Multiply()([y, y]), name=name)


def onnx_model(network: Any, about: dict[str, Any]) -> Any:
    """Return an onnx.ModelProto: input `pixels` float32 [B, c, h, w] in [0, 1], output `logits` [B, classes]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    h, w, c = network.specs[0].in_shape
    nodes, initializers, last = [], [], "pixels"

    def constant(name: str, array: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(op: str, name: str, *inputs: str, **attributes: Any) -> None:
        nonlocal last
        nodes.append(helper.make_node(op, [last, *inputs], [name], name, **attributes))
        last = name

    if network.input_normalization is not None:
        factor, shift = (np.broadcast_to(v, (c,)).reshape(1, c, 1, 1) for v in network.input_normalization)
        add("Mul", "input_scaled", constant("input_factor", factor))
        add("Add", "input_normalized", constant("input_shift", shift))
    for spec, own, name in network.stages():
        if own is None:
            op = "MaxPool" if spec.kind == "P" else "AveragePool"
            add(op, name, kernel_shape=[2, 2], strides=[2, 2])
            continue
        weight = own.weight.numpy()
        bias = [constant(f"{name}/bias", own.bias.numpy())] if spec.bias else []
        if spec.kind == "C":
            kh, kw = weight.shape[:2]
            pads = [(kh - 1) // 2, (kw - 1) // 2, kh // 2, kw // 2]
            kernel = constant(f"{name}/weight", weight.transpose(3, 2, 0, 1))
            add("Conv", name, kernel, *bias, kernel_shape=[kh, kw], pads=pads, strides=[1, 1])
        else:
            if len(spec.in_shape) > 1:
                add("Transpose", "nhwc", perm=[0, 2, 3, 1])  # the order that the weight's rows have
                add("Flatten", "flatten", axis=1)
            add("Gemm", name, constant(f"{name}/weight", weight), *bias)
        if own.bn is not None:
            order = (own.bn.scale, own.bn.shift, own.bn.mean, own.bn.variance)
            names = ("scale", "shift", "mean", "variance")
            inputs = [constant(f"{name}/bn/{what}", v.numpy()) for what, v in zip(names, order, strict=True)]
            add("BatchNormalization", f"{name}_bn", *inputs, epsilon=own.bn.EPS)
        if spec.act and network.act_type != "linear":
            add("Relu", f"{name}_relu")
            if network.act_type == "relu2":
                add("Mul", f"{name}_relu2", last)
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", c, h, w])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", network.n_classes])],
        initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=ONNX_IR, producer_name="margins"
    )
    helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    checker.check_model(model, full_check=True)
    return model


# One form each: write to a path, and read the logits back from there


def write_keras(network: Any, path: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Write a .keras; returns images [B, h, w, c] -> logits of what was written."""
    import keras

    keras_model(network).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(about, indent=1))
    loaded = keras.models.load_model(path, compile=False)
    return lambda images: loaded(images, training=False).numpy()


def write_saved_model(network: Any, path: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Write a SavedModel with the signatures `logits` and `gap`."""
    import tensorflow as tf

    class Exported(tf.Module):
        def __init__(self, model: Any):
            super().__init__()
            self.model = model
            self.held = model.variables

    module = Exported(keras_model(network))
    pixels = tf.TensorSpec([None, *network.specs[0].in_shape], tf.float32, "pixels")

    @compiled(input_signature=[pixels])
    def logits(pixels: Any) -> dict[str, Any]:
        return {"logits": module.model(pixels, training=False)}

    @compiled(input_signature=[pixels, tf.TensorSpec([None], tf.int64, "labels")])
    def gap(pixels: Any, labels: Any) -> dict[str, Any]:
        z = module.model(pixels, training=False)
        is_label = tf.one_hot(labels, network.n_classes, True, False, dtype=tf.bool)
        others = tf.reduce_max(tf.where(is_label, -math.inf, z), axis=1)
        return {"gap": tf.gather(z, labels, axis=1, batch_dims=1) - others}

    tf.saved_model.save(module, str(path), signatures={"logits": logits, "gap": gap})
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / METADATA).write_text(json.dumps(about, indent=1))
    loaded = tf.saved_model.load(str(path)).signatures["logits"]
    return lambda images: loaded(pixels=tf.constant(images))["logits"].numpy()


def write_onnx(network: Any, path: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Write an .onnx; its logits are onnxruntime's."""
    import onnx
    import onnxruntime

    onnx.save(onnx_model(network, about), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"pixels": images.transpose(0, 3, 1, 2)})[0]


def write_npz(network: Any, path: Path, about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Write all tensors under their names, and `metadata`, JSON text; its logits are the network's with these."""
    layers = [
        {"kind": spec.kind, "act": network.act_type if spec.act else "linear", "bn": spec.bn, "bias": spec.bias}
        for spec in network.specs
    ]
    arrays = dict(network.get_weights())
    if network.input_normalization is not None:
        arrays |= dict(zip(("input/factor", "input/shift"), network.input_normalization, strict=True))
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays, metadata=np.array(json.dumps(about | {"layers": layers})))
    stored = arrays_of(path.read_bytes())
    network.set_weights([stored[name] for name in network.names])
    return lambda images: network.logits(images).numpy()


FORMS = {"keras": write_keras, "saved_model": write_saved_model, "onnx": write_onnx, "npz": write_npz}


# The export


def export(
    directory: Path | str, to: str, eid: Any = "last", out: Path | str | None = None, **flags: Any
) -> list[Path]:
    """Export stored epochs of a training run.

    Args:
      directory: its working directory. to: a key of FORMS. eid: an epoch, several, 'last' or 'all'.
      out: the file, of one epoch; None: export/eid-<epoch> in the directory.
      flags: of the run, to be replaced: data_dir, gpu.

    Returns: what was written. Raises: UserError, also for logits that are not the network's own; OSError.
    """
    if to not in FORMS:
        raise UserError(f"--to {to}: expected one of {', '.join(FORMS)}")
    _require(to)
    directory = read.check_run(directory).resolve()
    run = of_trained(directory)
    eids = read.choose_eids(directory, values.epochs(eid))
    if out is not None and len(eids) > 1:
        raise UserError(f"--out {out}: one file for {len(eids)} epochs; leave it out, or choose one with --eid")
    changed = {name: value for name, value in flags.items() if value is not None}
    context = Context(run | {"task": "measure_curvature", "resume": None, "cluster": None} | changed)
    context.check_data(directory)
    folder = directory / "export"
    places = [Path(out) if out is not None else folder / f"eid-{number:06d}{SUFFIX[to]}" for number in eids]
    for place in places:
        _check_place(place, to)
    pairs = tqdm(list(zip(eids, places, strict=True)), unit="epoch", disable=None)
    return [_export(context, directory, number, to, place) for number, place in pairs]


def _check_place(place: Path, to: str) -> None:
    """Raises: UserError for a place that cannot be this form's, or that holds something else."""
    if not place.name or place.name == "..":
        raise UserError(f"--out '{place}': expected the name of a file")
    if to == "keras" and place.suffix != ".keras":
        raise UserError(f"--out {place}: Keras reads files that end in .keras; give it such a name")
    if place.is_dir():
        foreign = sorted(path.name for path in place.iterdir() if path.name not in SAVED_MODEL_HOLDS)
        if to != "saved_model" or foreign or not (place / "saved_model.pb").exists():
            raise UserError(f"--out {place}: a folder is in the way; give the name of a new file, or one to replace")
    elif to == "saved_model" and place.exists():
        raise UserError(f"--out {place}: a file is in the way; a SavedModel is a folder")


def _require(to: str) -> None:
    if to == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        raise UserError(
            "--to onnx: the packages onnx and onnxruntime are not installed here; install them with "
            f"{sys.executable} -m pip install -r requirements-export.txt, or choose another form"
        )


def _export(context: Context, directory: Path, eid: int, to: str, place: Path) -> Path:
    network = context.model
    network.set_weights(context.stored_weights(directory, eid))
    own = _logits_of(context, lambda images: network.logits(images).numpy())
    with _in_place(place) as temporary:
        theirs = _logits_of(context, FORMS[to](network, temporary, metadata(directory, eid)))
        size = np.abs(own).max(axis=1, keepdims=True)
        deviation = float((np.abs(theirs - own) / np.maximum(size, 1e-30)).max())
        other = int((theirs.argmax(axis=1) != own.argmax(axis=1)).sum())
        if not deviation < TOLERANCE or other:
            raise UserError(
                f"epoch {eid}: the logits of the {to} form deviate by {deviation:.2g} (allowed is {TOLERANCE:g}), "
                f"{other} predictions differ; nothing was written"
            )
    print(
        f"{place}: epoch {eid}, {len(own)} test images: largest relative deviation {deviation:.2g}, "
        f"same predictions, logits up to {np.abs(own).max():.4g}"
    )
    return place


def _logits_of(context: Context, logits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Of the whole test set, float64."""
    _, (x, _) = context.dataset
    blocks = (context.model.pixels(x[k : k + CHECK_BATCH]).numpy() for k in range(0, len(x), CHECK_BATCH))
    return np.concatenate([np.asarray(logits(images), np.float64) for images in blocks])


@contextlib.contextmanager
def _in_place(place: Path) -> Iterator[Path]:
    """Context manager: a temporary path, whose content replaces `place` at the end, and is removed after an error.

    It is in the system's folder for temporary files: TensorFlow takes a `[` in a path for a pattern.
    """
    near = place.with_name(f".{os.getpid()}-{place.name}")

    def remove(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / f"export{place.suffix}"
            yield temporary
            shutil.move(temporary, near)
        if place.is_dir():
            remove(place)
        os.replace(near, place)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({reason(error)}); choose another place with --out") from None
    finally:
        remove(near)


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status: 0; 2 for a user's mistake, 130 for Ctrl-C."""
    parser = Parser(prog="python export.py", description="Export trained networks.", allow_abbrev=False)
    parser.add_argument("directory", metavar="DIRECTORY", help="a training run's working directory")
    parser.add_argument("--to", required=True, metavar="FORM", help=", ".join(FORMS))
    parser.add_argument("--eid", default="last", help="the epochs: last, all, n or n,n,n [last]")
    parser.add_argument("--out", metavar="FILE", help="where to [export/eid-<epoch> in the directory]")
    parser.add_argument("--data_dir", metavar="DIR", help="where the run's data is now")

    def answer() -> None:
        options = parser.parse_args(argv)
        refuse_empty(options.directory, options.out, options.data_dir)
        try:
            eid = values.epochs(values.from_text(options.eid))
        except values.Bad as error:
            raise UserError(f"--eid {options.eid}: expected {error}") from None
        export(options.directory, options.to, eid, options.out, data_dir=options.data_dir)

    return exit_status(answer, "files that were written are complete")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
