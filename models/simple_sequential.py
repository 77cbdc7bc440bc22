"""A sequential network from a layer description: the CNN, the MLP and the VGGs of the two papers."""

import numpy as np
import tensorflow as tf

from models.architectures import parse
from models.base_model import Model
from models.initializers import initial_value
from models.layers import ACTIVATIONS, Conv, FullyConnected, Weighted, avg_pool, max_pool, relu_max_pool


class SimpleSequential(Model):
    """The network of a description (`models.architectures`).

    Args:
      description, bias_mode, act_type: see `models.architectures`.
      init: dict with any of weight, bias (names of initializers), weight_normalized, bias_normalized
        (bool), weight_rescale, bias_rescale (float).
      input_shape: (h, w, c).
      scale: maps integer pixels to [0, 1].
      seed: of the initial weights; each tensor has its own stream.
      input_mean, input_std: the network sees (pixel in [0, 1] - input_mean) / input_std; numbers, one
        for all channels or one for each; None leaves the pixels as they are.

    Raises: ValueError for a description that makes no sense for these images.
    """

    def __init__(
        self,
        description: list,
        input_shape: tuple[int, int, int],
        bias_mode: str = "FIRST_LAYER",
        act_type: str = "relu",
        init: dict | None = None,
        scale: float = 1 / 255,
        seed: int = 0,
        input_mean: tuple | None = None,
        input_std: tuple | None = None,
    ):
        super().__init__(scale)
        self.specs = parse(description, bias_mode, input_shape)
        self.flops = sum(spec.flops for spec in self.specs)
        self.act_type = act_type
        init = {"weight": "glorot_uniform", "bias": "zeros"} | (init or {})

        def draw(kind, shape, weight_shape):
            rng = np.random.default_rng([seed, len(self.layers), kind == "bias"])
            return initial_value(
                rng,
                shape,
                init[kind],
                init.get(f"{kind}_normalized", False),
                init.get(f"{kind}_rescale", 1.0),
                weight_shape,
            )

        self._pipeline, factor = [], np.ones(1, np.float32)
        if (input_mean, input_std) != (None, None):
            factor, shift = _normalization(input_mean, input_std, input_shape[-1])
            self._pipeline.append(lambda x: x * factor + shift)
        activation = ACTIVATIONS[act_type]
        # An activation waits for the max pool after it: being monotone, it gives the same numbers there,
        # on a quarter of the data.
        pending = None
        for spec in self.specs:
            if spec.kind == "P":
                fused = pending is tf.nn.relu
                self._pipeline.append(relu_max_pool if fused else max_pool)
                pending = None if fused else pending
                continue
            if pending is not None:
                self._pipeline.append(pending)
                pending = None
            if spec.kind == "A":
                self._pipeline.append(avg_pool)
                continue
            layer_class = {"C": Conv, "F": FullyConnected}[spec.kind]
            layer = layer_class(
                draw("weight", spec.weight_shape, spec.weight_shape),
                draw("bias", spec.out_shape[-1:], spec.weight_shape) if spec.bias else None,
                name=f"layer{len(self.layers)}",
                bn=spec.bn,
            )
            self.layers.append(layer)
            self._pipeline.append(layer)
            pending = activation if spec.act else None
        if pending is not None:
            self._pipeline.append(pending)
        self._input_factor = factor
        self.build_done()

    @property
    def n_classes(self) -> int:
        return self.specs[-1].out_shape[0]

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float32 [B, h, w, c] in [0, 1] -> float32 [B, n_classes]."""
        return _through(self._pipeline, images, training)

    def before(self, k: int, images: tf.Tensor) -> tf.Tensor:
        """What layer k is given: float32 [B, ...]."""
        return _through(self._pipeline[: self._pipeline.index(self.layers[k])], images)

    def after(self, k: int, z: tf.Tensor) -> tf.Tensor:
        """From the affine part of layer k (no batch norm or activation yet) on to the logits."""
        bn = self.layers[k].bn
        rest = self._pipeline[self._pipeline.index(self.layers[k]) + 1 :]
        return _through(rest, z if bn is None else bn(z, training=False))

    def counted_weights(self) -> list[list[np.ndarray]]:
        """For each layer the tensors whose norm counts: its weight, and the first layer's bias."""
        return [
            [layer.weight.numpy()] + ([layer.bias.numpy()] if k == 0 and layer.bias is not None else [])
            for k, layer in enumerate(self.layers)
        ]

    def effective_weights(self) -> list[np.ndarray]:
        """What each layer multiplies pixels in [0, 1], or the layer below, with when images are classified.

        The weights, float64, with the factors of their batch norm (running variance) in them, and in the
        first layer's those of the input's normalization too; pools below it let these pass.
        """
        found = []
        for layer in self.layers:
            weight = layer.weight.numpy().astype(np.float64)
            if layer.bn is not None:
                weight *= (layer.bn.scale / tf.sqrt(layer.bn.variance + layer.bn.EPS)).numpy()
            found.append(weight)
        # Channels are the last axis of what a first F layer flattens.
        by_channel = found[0].reshape(-1, self.specs[0].in_shape[-1], found[0].shape[-1])
        found[0] = (by_channel * self._input_factor[:, None]).reshape(found[0].shape)
        return found


def _through(pipeline: list, x: tf.Tensor, training: bool = False) -> tf.Tensor:
    for part in pipeline:
        x = part(x, training) if isinstance(part, Weighted) else part(x)
    return x


def _normalization(mean, std, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(factor, shift). Raises: ValueError when there is neither one number nor one a channel."""
    mean, std = (np.ravel(0.0 if value is None else value) for value in (mean, 1.0 if std is None else std))
    for name, values in (("input_mean", mean), ("input_std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers for images of {channels} channels")
    return (1 / std).astype(np.float32), (-mean / std).astype(np.float32)
