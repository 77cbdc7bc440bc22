"""Keras: .keras, .h5 and, for TensorFlow, SavedModel. One row per layer, for both directions."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exchange.chain import Chain, Logits, Step, steps_of
from models.architectures import BN_EPSILON, slope_of
from support.device import compiled, import_tensorflow
from support.errors import UserError, reason

METADATA = "run.json"  # in a .keras, which is a zip, and in a SavedModel's assets.extra


# Our network as a Keras model


def model_of(network: Any) -> Any:
    """Return a plain keras.Sequential with the network's layers, names and weights; input [B, h, w, c] in [0, 1]."""
    import keras

    layers: list[Any] = [keras.Input(network.specs[0].in_shape, name="pixels")]
    weights = {}
    for step in steps_of(network):
        layers += WRITE[step.kind](step, network.act_type)
        if step.kind in ("C", "F", "bn"):
            weights[step.name] = step.arrays
    model = keras.Sequential(layers, name="network")
    for name, arrays in weights.items():
        model.get_layer(name).set_weights(arrays)
    return model


def _conv(step: Step, act_type: str) -> list[Any]:
    from keras import layers

    spec, (kernel, *bias) = step.spec, step.arrays
    (top, bottom, left, right), size = spec.pads, {"kernel_size": spec.window, "strides": spec.stride}
    padding = [] if spec.plain or not any(spec.pads) else [layers.ZeroPadding2D(((top, bottom), (left, right)))]
    way = "same" if spec.plain else "valid"
    return [*padding, layers.Conv2D(kernel.shape[-1], **size, padding=way, use_bias=bool(bias), name=step.name)]


def _pool(step: Step, act_type: str) -> list[Any]:
    from keras import layers

    pool = layers.MaxPooling2D if step.kind == "P" else layers.AveragePooling2D
    return [pool(step.spec.window, step.spec.stride, "valid", name=step.name)]


def _activation(step: Step, act_type: str) -> list[Any]:
    import keras

    if act_type.startswith("leaky_relu"):
        return [keras.layers.LeakyReLU(slope_of(act_type), name=step.name)]
    if act_type == "relu":
        return [keras.layers.Activation("relu", name=step.name)]
    x = keras.Input(step.spec.out_shape)  # Keras lacks relu2; this model of two layers loads without our code
    y = keras.layers.Activation("relu")(x)
    return [keras.Model(x, keras.layers.Multiply()([y, y]), name=step.name)]


def _simple(kind: str, settings: Callable[[Step], dict[str, Any]]) -> Callable[[Step, str], list[Any]]:
    def write(step: Step, act_type: str) -> list[Any]:
        from keras import layers

        return [getattr(layers, kind)(name=step.name, **settings(step))]

    return write


WRITE: dict[str, Callable[[Step, str], list[Any]]] = {
    "scale": _simple(
        "Rescaling", lambda step: {k: v.tolist() for k, v in zip(("scale", "offset"), step.arrays, strict=True)}
    ),
    "flatten": _simple("Flatten", lambda step: {}),
    "C": _conv,
    "F": _simple("Dense", lambda step: {"units": step.spec.out_shape[0], "use_bias": step.spec.bias}),
    "P": _pool,
    "A": _pool,
    "bn": _simple("BatchNormalization", lambda step: {"epsilon": BN_EPSILON, "momentum": 0.9}),
    "act": _activation,
}


def write_keras(network: Any, path: Path, about: dict[str, Any]) -> Logits:
    """Write a .keras; returns images [B, h, w, c] -> logits of what was written."""
    import keras

    model_of(network).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(about, indent=1))
    loaded = keras.models.load_model(path, compile=False)
    return lambda images: loaded(images, training=False).numpy()


def write_saved_model(network: Any, path: Path, about: dict[str, Any]) -> Logits:
    """Write a SavedModel with the signatures `logits` and `gap`."""
    import tensorflow as tf

    class Exported(tf.Module):
        def __init__(self, model: Any):
            super().__init__()
            self.model = model
            self.held = model.variables

    module = Exported(model_of(network))
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


# A Keras model as ours


def read(path: Path, shape: tuple[int, ...]) -> tuple[Chain, Logits]:
    """Read a .keras or .h5; returns its chain, and images as the model reads them, [B, h, w, c] -> its logits.

    Args:
      shape: (h, w, c) of our images.

    Raises: UserError.
    """
    import_tensorflow()
    import keras

    try:
        model = keras.models.load_model(path, compile=False)
        ends = list(model.inputs), list(model.outputs)
    except Exception as error:  # of Keras, h5py, zipfile, and whatever a layer raises
        raise UserError(f"{path}: not a Keras model that can be loaded ({reason(error)})") from None
    if [len(end) for end in ends] != [1, 1]:
        raise UserError(f"{path}: it has {len(ends[0])} inputs and {len(ends[1])} outputs; expected one of each")
    chain = Chain(shape, tuple(ends[0][0].shape[1:]))
    layers = list(_layers(model))
    for k, layer in enumerate(layers):
        kind, act = type(layer).__name__, _activation_of(layer)
        chain.where = f"layer {layer.name} ({kind})"
        if k == len(layers) - 1 and "softmax" in (act, kind.lower()):
            chain.softmax()
            act, layer.activation = "linear", keras.activations.linear
            if kind == "Softmax":
                layer.call = lambda inputs, mask=None: inputs
                break
        if kind not in READ:
            raise chain.refuse("this kind of layer is not supported")
        with chain.whole():
            READ[kind](chain, layer)
        if kind in ("Conv2D", "Dense") and isinstance(layer.activation, keras.Layer):
            READ.get(type(layer.activation).__name__, _no_activation)(chain, layer.activation)
        elif kind in ("Conv2D", "Dense") and act != "linear":
            chain.act(act)
    arranged = chain.arranged
    return chain, lambda images: model(arranged(images), training=False).numpy()


def _layers(model: Any) -> Iterator[Any]:
    """Yield the operations of a model and of the models in it; one that squares a relu, as a whole.

    Raises: UserError for a layer that is called twice.
    """
    import keras

    graph = getattr(model, "_functional", None) or model
    if sum(map(len, graph._nodes_by_depth.values())) != len(graph.operations):
        raise UserError(f"{model.name}: a layer is called twice; expected a chain of layers")
    for layer in graph.operations:
        kinds = [type(inner).__name__ for inner in getattr(layer, "layers", ())]
        if isinstance(layer, keras.Model) and kinds != SQUARED_RELU:
            yield from _layers(layer)
        else:
            yield layer


def _activation_of(layer: Any) -> str:
    """Return an activation's name, with the slope of a leaky relu; 'linear' where a layer has none."""
    import keras

    function = getattr(layer, "activation", None)
    if isinstance(function, keras.Layer):
        return type(function).__name__
    name = "linear" if function is None else keras.activations.serialize(function)
    return {"leaky_relu": "leaky_relu,0.2"}.get(str(name), str(name))


def _read_conv(chain: Chain, layer: Any) -> None:
    if tuple(layer.dilation_rate) != (1, 1) or layer.data_format != "channels_last":
        raise chain.refuse("dilation, or channels first")
    kernel, *bias = layer.get_weights()
    pads = "SAME" if layer.padding == "same" else (0, 0, 0, 0)
    chain.convolution(kernel, bias[0] if bias else None, layer.strides, pads)


def _read_dense(chain: Chain, layer: Any) -> None:
    weight, *bias = layer.get_weights()
    chain.connected(weight, bias[0] if bias else None)


def _read_norm(chain: Chain, layer: Any) -> None:
    if layer.axis not in (-1, len(chain.order.shape)):
        raise chain.refuse("a batch norm over another axis than the last")
    mean, variance = layer.moving_mean, layer.moving_variance
    scale = np.ones(mean.shape) if layer.gamma is None else layer.gamma
    shift = np.zeros(mean.shape) if layer.beta is None else layer.beta
    chain.batch_norm([scale, shift, mean, variance], layer.epsilon)


def _read_normalization(chain: Chain, layer: Any) -> None:
    if layer.invert:
        raise chain.refuse("an inverted normalization")
    mean, variance = (np.asarray(v, np.float64) for v in (layer.mean, layer.variance))
    factor = 1 / np.maximum(np.sqrt(variance), 1e-7)  # Keras's epsilon
    chain.scale(factor, -mean * factor)


def _read_pool(kind: str, chain: Chain, layer: Any) -> None:
    chain.pool(kind, layer.pool_size, layer.strides, "SAME" if layer.padding == "same" else (0, 0, 0, 0))


def _read_global_pool(kind: str, chain: Chain, layer: Any) -> None:
    chain.pool(kind, chain.shape[:2], chain.shape[:2])
    if not layer.keepdims:
        chain.reshape([-1])


def _read_relu(chain: Chain, layer: Any) -> None:
    if getattr(layer, "max_value", None) is not None or getattr(layer, "threshold", None):
        raise chain.refuse("a relu with a largest value or a threshold")
    chain.act(f"leaky_relu,{float(layer.negative_slope)!r}" if layer.negative_slope else "relu")


def _read_activation(chain: Chain, layer: Any) -> None:
    if _activation_of(layer) != "linear":
        chain.act(_activation_of(layer))


def _no_activation(chain: Chain, layer: Any) -> None:
    raise chain.refuse(f"the activation {type(layer).__name__}")


def _nothing(chain: Chain, layer: Any) -> None:
    """Skip a layer that does nothing at inference."""


SQUARED_RELU = ["InputLayer", "Activation", "Multiply"]
READ: dict[str, Callable[[Chain, Any], None]] = {
    "Rescaling": lambda chain, layer: chain.scale(layer.scale, layer.offset),
    "Normalization": _read_normalization,
    "Flatten": lambda chain, layer: chain.reshape([-1]),
    "Reshape": lambda chain, layer: chain.reshape(list(layer.target_shape)),
    "Permute": lambda chain, layer: chain.transpose([axis - 1 for axis in layer.dims]),
    "ZeroPadding2D": lambda chain, layer: chain.pad([n for axis in layer.padding for n in axis]),
    "Conv2D": _read_conv,
    "Dense": _read_dense,
    "MaxPooling2D": partial(_read_pool, "P"),
    "AveragePooling2D": partial(_read_pool, "A"),
    "GlobalMaxPooling2D": partial(_read_global_pool, "P"),
    "GlobalAveragePooling2D": partial(_read_global_pool, "A"),
    "BatchNormalization": _read_norm,
    "Activation": _read_activation,
    "ReLU": _read_relu,
    "Relu": lambda chain, layer: chain.act("relu"),  # keras.ops.relu
    "LeakyReLU": _read_relu,
    "Functional": lambda chain, layer: chain.act("relu2"),
    **dict.fromkeys(("InputLayer", "Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise"), _nothing),
}
