"""A sequential network from a layer description: the CNN and the VGG of the margin paper."""

import numpy as np
import tensorflow as tf

from models.architectures import parse
from models.base_model import Model
from models.initializers import initial_value
from models.layers import ACTIVATIONS, Conv, FullyConnected, avg_pool, max_pool, relu_max_pool


class SimpleSequential(Model):
    """The network of a description (`models.architectures`).

    Args:
      description, bias_mode, act_type: see `models.architectures`.
      init: dict with any of weight, bias (names of initializers), weight_normalized, bias_normalized
        (bool), weight_rescale, bias_rescale (float).
      input_shape: (h, w, c).
      scale: maps integer pixels to [0, 1].
      seed: of the initial weights; each tensor has its own stream.

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
    ):
        super().__init__(scale)
        self.specs = parse(description, bias_mode, input_shape)
        self.act_type = act_type
        init = {"weight": "glorot_uniform", "bias": "zeros"} | (init or {})

        def draw(kind, shape):
            rng = np.random.default_rng([seed, len(self.layers), kind == "bias"])
            return initial_value(
                rng,
                shape,
                init[kind],
                init.get(f"{kind}_normalized", False),
                init.get(f"{kind}_rescale", 1.0),
            )

        self._pipeline = []
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
                draw("weight", spec.weight_shape),
                draw("bias", spec.out_shape[-1:]) if spec.bias else None,
                name=f"layer{len(self.layers)}",
            )
            self.layers.append(layer)
            self._pipeline.append(layer)
            pending = activation if spec.act else None
        if pending is not None:
            self._pipeline.append(pending)
        self.build_done()

    @property
    def n_classes(self) -> int:
        return self.specs[-1].out_shape[0]

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """float32 [B, h, w, c] in [0, 1] -> float32 [B, n_classes]."""
        x = images
        for part in self._pipeline:
            x = part(x)
        return x

    def counted_weights(self) -> list[list[np.ndarray]]:
        """For each layer the tensors whose norm counts: its weight, and the first layer's bias (SPEC M3)."""
        return [
            [layer.weight.numpy()] + ([layer.bias.numpy()] if k == 0 and layer.bias is not None else [])
            for k, layer in enumerate(self.layers)
        ]
