"""A sequential network from a layer description: the CNN, the MLP and the VGGs of the two papers.

It maps images to logits, and knows where its weights are. Images are integer pixels as stored, on the device.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models.architectures import LayerSpec, degrees, parse, why_not_homogeneous
from models.initializers import initial_value
from models.layers import Conv, FullyConnected, Weighted, activation, pool_of, relu_max_pool

MOST_WEIGHTS = 2**31

Weights = Sequence[Any]  # an array or a tensor for each of `Sequential.tensors`, in their order


class Place(NamedTuple):
    """Where a tensor of a checkpoint lives: attribute `kind` of `owner`, in the layer with weights number `layer`."""

    name: str
    layer: int
    owner: tf.Module
    kind: str

    @property
    def variable(self) -> tf.Variable:
        return getattr(self.owner, self.kind)


class Sequential(tf.Module):
    """The network of a description (`models.architectures`).

    Args:
      description, bias_mode, act_type: see `models.architectures`.
      input_shape: (h, w, c).
      init: dict with any of weight, bias (names of initializers), weight_normalized, bias_normalized (bool),
        weight_rescale, bias_rescale (float).
      scale: maps integer pixels to [0, 1].
      seed: of the initial weights; see `initial_weights`.
      input_mean, input_std: the network sees (pixel in [0, 1] - input_mean) / input_std; numbers, one for all
        channels or one per channel; None: the pixels themselves.

    Attributes:
      layers: the layers with weights, in order.
      flops: floating-point operations of one example's forward pass.
      input_normalization: (factor, shift), float32 [1 or c]: the first layer sees pixel * factor + shift; or None.
      degrees, why_not_homogeneous: as the functions of `models.architectures`.

    Raises: ValueError for a description that does not fit these images.
    """

    def __init__(
        self,
        description: list[Any],
        input_shape: tuple[int, int, int],
        bias_mode: str = "FIRST_LAYER",
        act_type: str = "relu",
        init: dict[str, Any] | None = None,
        scale: float = 1 / 255,
        seed: int = 0,
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.specs = parse(description, bias_mode, input_shape)
        n_weights = sum(math.prod(spec.weight_shape) for spec in self.specs if spec.weight_shape is not None)
        if n_weights > MOST_WEIGHTS:
            raise ValueError(f"the layers have {n_weights} weights; at most {MOST_WEIGHTS} are possible")
        self.flops = sum(spec.flops for spec in self.specs)
        self.act_type, self.scale = act_type, scale
        self.degrees, self.why_not_homogeneous = degrees(self.specs, act_type), why_not_homogeneous(self.specs)
        self._init = {"weight": "glorot_uniform", "bias": "zeros"} | (init or {})
        self.input_normalization: tuple[np.ndarray, np.ndarray] | None = None
        self._pipeline: list[Any] = []
        if (input_mean, input_std) != (None, None):
            factor, shift = self.input_normalization = normalization(input_mean, input_std, input_shape[-1])
            self._pipeline.append(lambda x: x * factor + shift)
        self.layers = self._append_layers(seed)
        self._first_connected = next(i for i, stage in enumerate(self._pipeline) if isinstance(stage, FullyConnected))

    def _append_layers(self, seed: int) -> list[Weighted]:
        """Fill the pipeline after the input's normalization. Returns the layers with weights."""
        layers: list[Weighted] = []
        act = activation(self.act_type)
        # An activation waits for the max pool after it: being monotone, it gives the same numbers there,
        # on a quarter of the data.
        pending = None
        for spec in self.specs:
            if spec.kind == "P":
                fused = pending is tf.nn.relu and spec.plain
                self._pipeline.append(relu_max_pool if fused else pool_of(spec))
                pending = None if fused else pending
                continue
            if pending is not None:
                self._pipeline.append(pending)
                pending = None
            if spec.kind == "A":
                self._pipeline.append(pool_of(spec))
                continue
            k = len(layers)
            layer_class: Any = {"C": Conv, "F": FullyConnected}[spec.kind]
            geometry = {} if spec.plain else {"stride": spec.stride, "pads": spec.pads}
            layers.append(layer_class(*self._drawn(seed, k, spec), name=f"layer{k}", bn=spec.bn, **geometry))
            self._pipeline.append(layers[-1])
            pending = act if spec.act else None
        if pending is not None:
            self._pipeline.append(pending)
        return layers

    def _drawn(self, seed: int, k: int, spec: LayerSpec) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw weight and bias of the k-th layer with weights; each tensor has its own stream of numbers."""

        def draw(kind: str, shape: tuple[int, ...]) -> np.ndarray:
            return initial_value(
                np.random.default_rng([seed, k, kind == "bias"]),
                shape,
                self._init[kind],
                self._init.get(f"{kind}_normalized", False),
                self._init.get(f"{kind}_rescale", 1.0),
                spec.weight_shape,
            )

        assert spec.weight_shape is not None
        return draw("weight", spec.weight_shape), draw("bias", spec.out_shape[-1:]) if spec.bias else None

    @property
    def n_classes(self) -> int:
        return int(self.specs[-1].out_shape[0])

    # Images to logits

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Compute logits: float32 [B, h, w, c] in [0, 1] -> float32 [B, n_classes].

        Args:
          training: batch norm uses the batch's moments, and moves its running ones.
        """
        return _through(self._pipeline, images, training)

    def features(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the input of the first fully connected layer, [B, cin]; arguments as for `logits`."""
        x = _through(self._pipeline[: self._first_connected], images, training)
        # A reshape of what TensorFlow returns for an empty slice, which has other channels.
        return tf.reshape(x, [x.shape[0] or -1, self._pipeline[self._first_connected].weight.shape[0]])

    def from_features(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the logits of what `features` returns."""
        return _through(self._pipeline[self._first_connected :], features, training)

    def before(self, k: int, images: tf.Tensor) -> tf.Tensor:
        """Return the input of layer k: float32 [B, ...]."""
        return _through(self._pipeline[: self._pipeline.index(self.layers[k])], images)

    def after(self, k: int, z: tf.Tensor) -> tf.Tensor:
        """Compute the logits from the affine part of layer k (before its batch norm and activation)."""
        bn = self.layers[k].bn
        rest = self._pipeline[self._pipeline.index(self.layers[k]) + 1 :]
        return _through(rest, z if bn is None else bn(z, training=False))

    def walk(self, images: tf.Tensor) -> tuple[tf.Tensor, list[tuple[tf.Tensor, tf.Tensor]]]:
        """Logits, and of each layer with weights its input and its affine part.

        Args:
          images: float32 [B, h, w, c] in [0, 1].
        """
        x, seen = images, []
        for stage in self._pipeline:
            if not isinstance(stage, Weighted):
                x = stage(x)
                continue
            z = stage.affine(x)
            seen.append((x, z))
            x = z if stage.bn is None else stage.bn(z, training=False)
        return x, seen

    def pixels(self, images: tf.Tensor) -> tf.Tensor:
        """Convert integer pixels as stored to float32 in [0, 1]."""
        return tf.cast(images, tf.float32) * self.scale

    # Weights in and out

    def stages(self) -> Iterator[tuple[LayerSpec, Weighted | None, str]]:
        """Yield (spec, layer, name) of each layer of the description; a pool has no layer with weights.

        Names are 'layer0', 'layer1', ... and 'pool0', 'pool1', ...
        """
        layers, pools = 0, 0
        for spec in self.specs:
            if spec.weight_shape is None:
                yield spec, None, f"pool{pools}"
                pools += 1
            else:
                yield spec, self.layers[layers], f"layer{layers}"
                layers += 1

    def places(self) -> list[Place]:
        """Return the place of every tensor of a checkpoint, in layer order.

        These are a layer's weight, its bias, and its batch norm's scale, shift, running mean and variance; their
        names are 'layer0/weight', 'layer0/bias', 'layer0/bn/scale', ...
        """
        found = []
        for k, layer in enumerate(self.layers):
            found += [Place(f"layer{k}/{kind}", k, layer, kind) for kind in ("weight", "bias")]
            if layer.bn is not None:
                kinds = ("scale", "shift", "mean", "variance")
                found += [Place(f"layer{k}/bn/{kind}", k, layer.bn, kind) for kind in kinds]
        return [place for place in found if place.variable is not None]

    @property
    def names(self) -> list[str]:
        """The names of `places`."""
        return [place.name for place in self.places()]

    @property
    def tensors(self) -> list[tf.Variable]:
        """The variables of `places`."""
        return [place.variable for place in self.places()]

    @property
    def weights(self) -> list[tf.Variable]:
        """All trainable variables in layer order, a layer's weight before its bias."""
        return [v for v in self.tensors if v.trainable]

    def get_weights(self) -> list[tuple[str, np.ndarray]]:
        """Return [(name, float32 array), ...] of `places`, in their order."""
        return [(place.name, place.variable.numpy()) for place in self.places()]

    def snapshot(self) -> Weights:
        """Return the weights as they are now, as tensors on the device.

        Costs nothing until the variables change: TensorFlow copies a variable that is written while a tensor
        shares its memory.
        """
        return [v.read_value() for v in self.tensors]

    def check_weights(self, values: Weights) -> None:
        """Raises: ValueError for tensors of other shapes than this network's, or of another count."""
        shapes = [tuple(v.shape) for v in self.tensors]
        given = [tuple(np.shape(value)) for value in values]
        if shapes != given:
            raise ValueError(f"this network has tensors of shapes {shapes}; given were {given}")

    def set_weights(self, values: Weights) -> None:
        """Put in arrays or tensors in the order of `tensors`. Raises: ValueError as `check_weights`."""
        self.check_weights(values)
        for variable, value in zip(self.tensors, values, strict=True):
            variable.assign(value)

    def initial_weights(self, seed: int) -> Weights:
        """Return the weights that a network of this description starts from with a seed, in the order of
        `tensors`."""
        values: list[np.ndarray] = []
        weighted = [spec for spec in self.specs if spec.weight_shape is not None]
        for k, (spec, layer) in enumerate(zip(weighted, self.layers, strict=True)):
            weight, bias = self._drawn(seed, k, spec)
            values += [weight] if bias is None else [weight, bias]
            values += [] if layer.bn is None else layer.bn.initial_values()
        return values

    def counted_weights(self) -> list[list[np.ndarray]]:
        """Return for each layer the tensors whose norm counts: its weight, and the first layer's bias."""
        return [
            [layer.weight.numpy()] + ([layer.bias.numpy()] if k == 0 and layer.bias is not None else [])
            for k, layer in enumerate(self.layers)
        ]

    def effective_weights(self) -> list[np.ndarray]:
        """Return by what each layer multiplies its input when images are classified.

        The weights, float64, times the factors of their batch norm (running variance); in the first layer
        also times those of the input's normalization. Pools below the first layer let these pass.
        """
        found = [layer.weight.numpy().astype(np.float64) * layer.folded()[0] for layer in self.layers]
        # Channels are the last axis of what a first F layer flattens.
        by_channel = found[0].reshape(-1, self.specs[0].in_shape[-1], found[0].shape[-1])
        factor = np.ones(1) if self.input_normalization is None else self.input_normalization[0]
        found[0] = (by_channel * factor[:, None]).reshape(found[0].shape)
        return found


def _through(pipeline: list[Any], x: tf.Tensor, training: bool = False) -> tf.Tensor:
    for stage in pipeline:
        x = stage(x, training) if isinstance(stage, Weighted) else stage(x)
    return x


def normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (factor, shift). Raises: ValueError when there is neither one number nor one a channel."""
    means = np.ravel(0.0 if mean is None else mean)
    stds = np.ravel(1.0 if std is None else std)
    for name, values in (("input_mean", means), ("input_std", stds)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers for images of {channels} channels")
    return (1 / stds).astype(np.float32), (-means / stds).astype(np.float32)
