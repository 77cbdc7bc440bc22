"""A sequential network from a layer description: the CNN, the MLP and the VGGs of the two papers.

It knows its weights, one epoch of gradient steps and one evaluation pass. Losses are in a frame
(`models.losses`). Images are integer pixels as stored, on the device.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from device import compiled
from models.architectures import LayerSpec, degrees, parse, why_not_homogeneous
from models.augmentation import crop_and_flip
from models.initializers import initial_value
from models.layers import ACTIVATIONS, Conv, FullyConnected, Weighted, avg_pool, max_pool, relu_max_pool
from models.losses import hp_sparse_softmax_cross_entropy_with_logits_v2

EVAL_BATCH = 500
MOST_WEIGHTS = 2**31
TURN_FLOPS = 2e11  # about a second of two cores: the work of one call of a graph. Between two calls a pass can stop.

Weights = Sequence[Any]  # an array or a tensor for each of `Network.tensors`, in their order
Tick = Callable[[int], None]  # is told how much is done; raises Stopped to end a pass


def on_device(images: np.ndarray, labels: np.ndarray) -> tuple[tf.Variable, tf.Tensor]:
    """A data set as a GPU can gather batches from it without the host.

    TensorFlow's GPU kernels gather bytes from a variable only, and it keeps int32 tensors on the host
    (`bench/gpu_placement.py`).

    Args:
      images: integer pixels [N, h, w, c]. labels: integers [N].

    Returns: images, as they are; labels, int64.
    """
    return tf.Variable(images, trainable=False, name="images"), tf.constant(labels, tf.int64)


class Network(tf.Module):
    """The network of a description (`models.architectures`).

    Args:
      description, bias_mode, act_type: see `models.architectures`.
      input_shape: (h, w, c).
      init: dict with any of weight, bias (names of initializers), weight_normalized, bias_normalized
        (bool), weight_rescale, bias_rescale (float).
      scale: maps integer pixels to [0, 1].
      seed: of the initial weights; see `initial_weights`.
      input_mean, input_std: the network sees (pixel in [0, 1] - input_mean) / input_std; numbers, one
        for all channels or one for each; None leaves the pixels as they are.
      parts: into how many slices of examples every batch is cut. They do not need one another, so
        TensorFlow computes them at the same time: one on each core wastes less time than all cores sharing
        every small op (`device.parts_that_pay`). Must be 1 with batch norm, which looks at whole batches.
      xla: compile a turn of an epoch, its loop included, into one program (`device.choose_xla`).

    Attributes:
      layers: the layers with weights, in order.
      flops: floating-point operations of one example's forward pass.
      input_normalization: (factor, shift), float32 [1 or c]: the first layer sees pixel * factor + shift; or None.
      degrees, why_not_homogeneous: as the functions of `models.architectures`.

    Raises: ValueError for a description that makes no sense for these images.
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
        parts: int = 1,
        xla: bool = False,
    ):
        super().__init__()
        self.specs = parse(description, bias_mode, input_shape)
        n_weights = sum(math.prod(spec.weight_shape) for spec in self.specs if spec.weight_shape is not None)
        if n_weights > MOST_WEIGHTS:
            raise ValueError(f"the layers have {n_weights} weights; at most {MOST_WEIGHTS} are possible")
        self.flops = sum(spec.flops for spec in self.specs)
        self.act_type, self.scale, self.parts = act_type, scale, parts
        self.degrees, self.why_not_homogeneous = degrees(self.specs, act_type), why_not_homogeneous(self.specs)
        self._init = {"weight": "glorot_uniform", "bias": "zeros"} | (init or {})
        self.input_normalization: tuple[np.ndarray, np.ndarray] | None = None
        self._pipeline: list[Any] = []
        if (input_mean, input_std) != (None, None):
            factor, shift = self.input_normalization = _normalization(input_mean, input_std, input_shape[-1])
            self._pipeline.append(lambda x: x * factor + shift)
        self.layers = self._append_layers(seed)
        self._train_turn = compiled(self._steps, jit_compile=xla or None)

    def _append_layers(self, seed: int) -> list[Weighted]:
        """Fill the pipeline after the input's normalization. Returns the layers with weights."""
        layers: list[Weighted] = []
        activation = ACTIVATIONS[self.act_type]
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
            k = len(layers)
            layers.append(layer_class(*self._drawn(seed, k, spec), name=f"layer{k}", bn=spec.bn))
            self._pipeline.append(layers[-1])
            pending = activation if spec.act else None
        if pending is not None:
            self._pipeline.append(pending)
        return layers

    def _drawn(self, seed: int, k: int, spec: LayerSpec) -> tuple[np.ndarray, np.ndarray | None]:
        """Initial weight and bias of the k-th layer with weights; each tensor has its own stream of numbers."""

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
        """float32 [B, h, w, c] in [0, 1] -> float32 [B, n_classes].

        Args:
          training: batch norm uses the batch's moments, and moves its running ones.
        """
        return _through(self._pipeline, images, training)

    def before(self, k: int, images: tf.Tensor) -> tf.Tensor:
        """The input of layer k: float32 [B, ...]."""
        return _through(self._pipeline[: self._pipeline.index(self.layers[k])], images)

    def after(self, k: int, z: tf.Tensor) -> tf.Tensor:
        """From the affine part of layer k (before its batch norm and activation) to the logits."""
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
        """Integer pixels as stored -> float32 in [0, 1]."""
        return tf.cast(images, tf.float32) * self.scale

    # Weights in and out

    def places(self) -> list[tuple[str, tf.Module, str]]:
        """(name, owner, attribute) of all that a checkpoint holds, in layer order.

        A layer's weight, its bias, and its batch norm's scale, shift, running mean and variance; names
        are 'layer0/weight', 'layer0/bias', 'layer0/bn/scale', ...
        """
        found: list[tuple[str, tf.Module, str]] = []
        for k, layer in enumerate(self.layers):
            found += [(f"layer{k}/{kind}", layer, kind) for kind in ("weight", "bias")]
            if layer.bn is not None:
                found += [(f"layer{k}/bn/{kind}", layer.bn, kind) for kind in ("scale", "shift", "mean", "variance")]
        return [place for place in found if getattr(*place[1:]) is not None]

    @property
    def names(self) -> list[str]:
        """The names of `places`."""
        return [name for name, _, _ in self.places()]

    @property
    def tensors(self) -> list[tf.Variable]:
        """The variables of `places`."""
        return [getattr(owner, kind) for _, owner, kind in self.places()]

    @property
    def weights(self) -> list[tf.Variable]:
        """All trainable variables in layer order, a layer's weight before its bias."""
        return [v for v in self.tensors if v.trainable]

    def get_weights(self) -> list[tuple[str, np.ndarray]]:
        """[(name, float32 array), ...] of `places`, in their order."""
        return [(name, getattr(owner, kind).numpy()) for name, owner, kind in self.places()]

    def snapshot(self) -> Weights:
        """The weights as they are now, as tensors on the device.

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
        """The weights that a network of this description starts from with a seed, in the order of `tensors`."""
        values: list[np.ndarray] = []
        weighted = [spec for spec in self.specs if spec.weight_shape is not None]
        for k, (spec, layer) in enumerate(zip(weighted, self.layers, strict=True)):
            weight, bias = self._drawn(seed, k, spec)
            values += [weight] if bias is None else [weight, bias]
            values += [] if layer.bn is None else layer.bn.initial_values()
        return values

    def counted_weights(self) -> list[list[np.ndarray]]:
        """For each layer the tensors whose norm counts: its weight, and the first layer's bias."""
        return [
            [layer.weight.numpy()] + ([layer.bias.numpy()] if k == 0 and layer.bias is not None else [])
            for k, layer in enumerate(self.layers)
        ]

    def effective_weights(self) -> list[np.ndarray]:
        """By what each layer multiplies its input when images are classified.

        The weights, float64, times the factors of their batch norm (running variance); in the first layer
        also times those of the input's normalization. Pools below the first layer let these pass.
        """
        found = []
        for layer in self.layers:
            weight = layer.weight.numpy().astype(np.float64)
            if layer.bn is not None:
                weight *= (layer.bn.scale / tf.sqrt(layer.bn.variance + layer.bn.EPS)).numpy()
            found.append(weight)
        # Channels are the last axis of what a first F layer flattens.
        by_channel = found[0].reshape(-1, self.specs[0].in_shape[-1], found[0].shape[-1])
        factor = np.ones(1) if self.input_normalization is None else self.input_normalization[0]
        found[0] = (by_channel * factor[:, None]).reshape(found[0].shape)
        return found

    # Training

    def _loss_sum_and_logits(
        self, pixels: tf.Tensor, labels: tf.Tensor, log_frame: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Sum of the losses in the frame, float64, and logits [B, C], of integer pixels [B, h, w, c]."""
        n = labels.shape[0] or tf.shape(labels)[0]
        sums, logits = [], []
        parts = min(self.parts, labels.shape[0] or self.parts)  # none is empty
        for k in range(parts):
            part = slice(n * k // parts, n * (k + 1) // parts)
            z = self.logits(self.pixels(pixels[part]), training)
            losses = hp_sparse_softmax_cross_entropy_with_logits_v2(labels[part], z, log_frame)
            sums.append(tf.reduce_sum(losses))
            logits.append(z)
        return tf.add_n(sums), tf.concat(logits, axis=0)

    def step(self, images: tf.Tensor, labels: tf.Tensor, lr: tf.Tensor, log_frame: tf.Tensor) -> tf.Tensor:
        """One plain gradient step on integer pixels, v <- v - grad_v(lr * loss).

        Returns: the batch loss before it, float64.
        """
        with tf.GradientTape() as tape:
            total, _ = self._loss_sum_and_logits(images, labels, log_frame, training=True)
            loss = total / tf.cast(tf.shape(labels)[0], tf.float64)
            # lr goes in while all is float64: gradient and lr by themselves may leave float32's range.
            scaled = lr * loss
        gradients = tape.gradient(scaled, self.weights)
        for variable, gradient in zip(self.weights, gradients, strict=True):
            variable.assign_sub(gradient)
        return loss

    def train_epoch(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        batches: np.ndarray,
        lr: float,
        log_frame: float,
        loss_ub: float,
        augment_seed: np.ndarray | None = None,
        tick: Tick = lambda done: None,
    ) -> tuple[bool, np.ndarray]:
        """An epoch of gradient steps; stops after the first bad batch.

        Args:
          images: integer pixels [N, h, w, c]; labels: integers [N]. Both as `on_device` makes them, or tensors.
          batches: int32 [n, B], indices into both.
          lr, loss_ub: in frame units. log_frame: natural log of the frame.
          augment_seed: int32 [2], of random crops and flips; None for the images as they are.
          tick: called about once a second with the number of batches done.

        Returns: (ok, losses): whether every batch loss was finite and <= loss_ub, and the float64
          losses of the batches done, in order (a bad one is the last).
        """
        # Tensors, because a tf.function is traced anew for every new Python number.
        scalars = [tf.constant(value, tf.float64) for value in (lr, log_frame, loss_ub)]
        if augment_seed is not None:
            augment_seed = tf.constant(augment_seed, tf.int32)
        n, losses, ok = len(batches), [], True
        batches = tf.constant(batches, tf.int32)
        for begin, end in _turns(n, 3 * self.flops * batches.shape[1]):
            tick(begin)
            turn = tf.constant(begin), tf.constant(end)
            ok, done, part = self._train_turn(images, labels, batches, *turn, *scalars, augment_seed)
            losses.append(part.numpy()[begin : int(done)])
            if not ok:
                break
        return bool(ok), np.concatenate(losses)

    def _steps(
        self, images: Any, labels: Any, batches: Any, begin: Any, end: Any, lr: Any, log_frame: Any, loss_ub: Any,
        augment_seed: Any,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:  # fmt: skip
        """The gradient steps of batches[begin:end]; arguments as of `train_epoch`, tensors.

        Returns: ok; the first batch that is not done; losses, float64 [n], of which [begin:done] are filled.
        """

        def step(i: tf.Tensor, ok: tf.Tensor, losses: tf.TensorArray) -> tuple[Any, ...]:
            batch = batches[i]
            x, y = tf.gather(images, batch), tf.gather(labels, batch)
            if augment_seed is not None:
                # As float32: on a GPU TensorFlow gathers no bytes from a tensor.
                x = crop_and_flip(tf.cast(x, tf.float32), tf.stack([augment_seed[0], augment_seed[1] + i]))
            loss = self.step(x, y, lr, log_frame)
            return i + 1, loss <= loss_ub, losses.write(i, loss)  # NaN is not <= anything

        losses = tf.TensorArray(tf.float64, batches.shape[0], element_shape=[])  # of a size that XLA knows
        done, ok, losses = tf.while_loop(
            lambda i, ok, losses: ok & (i < end), step, (begin, tf.constant(True), losses)
        )
        return ok, done, losses.stack()

    # Evaluation

    def evaluate(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        log_frame: float = 0.0,
        loss_limit: float = np.inf,
        tick: Tick = lambda done: None,
    ) -> tuple[bool, float, np.ndarray]:
        """Mean loss and logits of a data set, in blocks of EVAL_BATCH, in order.

        Losses are >= 0, so a partial sum can already prove that the mean is above loss_limit; the
        pass stops there.

        Args:
          images: integer pixels [N, h, w, c]; labels: int32 [N].
          log_frame: natural log of the frame. loss_limit: in frame units, infinite for none.
          tick: called about once a second with the number of examples done.

        Returns: (complete, loss, logits): whether all N were evaluated, their mean loss in the frame
          (of a pass that was stopped: a lower bound of it), and float32 logits [N, C], complete or not.
        """
        n = len(labels)
        n_blocks = -(-n // EVAL_BATCH)
        log_frame, limit = (tf.constant(value, tf.float64) for value in (log_frame, loss_limit * n))
        total, logits, done = tf.constant(0.0, tf.float64), [], 0
        for begin, end in _turns(n_blocks, self.flops * EVAL_BATCH):
            tick(begin * EVAL_BATCH)
            turn = tf.constant(begin), tf.constant(end)
            done, total, part = self._evaluate_turn(images, labels, *turn, log_frame, limit, total)
            logits.append(part.numpy())
            if total > limit:
                break
        return bool(done == n_blocks), float(total) / n, np.concatenate(logits)

    @compiled
    def _evaluate_turn(
        self, images: Any, labels: Any, begin: Any, end: Any, log_frame: Any, limit: Any, total: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Blocks begin to end, unless the sum of losses, counted on from total, passes the limit before."""
        n = tf.shape(images)[0]

        def block(i: tf.Tensor, total: tf.Tensor, logits: tf.TensorArray) -> tuple[Any, ...]:
            where = slice(i * EVAL_BATCH, tf.minimum((i + 1) * EVAL_BATCH, n))
            loss_sum, z = self._loss_sum_and_logits(images[where], labels[where], log_frame, training=False)
            return i + 1, total + loss_sum, logits.write(i - begin, z)

        logits = tf.TensorArray(tf.float32, end - begin, infer_shape=False, element_shape=[None, None])
        done, total, logits = tf.while_loop(
            lambda i, total, logits: (i < end) & ~(total > limit), block, (begin, total, logits)
        )
        return done, total, logits.concat()

    def gradient(
        self, images: tf.Tensor, labels: tf.Tensor, log_frame: float, tick: Tick = lambda done: None
    ) -> list[np.ndarray]:
        """The gradient of the mean loss in the frame over a whole set, for each of `weights`.

        Batch norm uses its running statistics. Each block's gradient is float32, the sum over blocks float64.
        Arguments as for `evaluate`.

        Returns: float64 arrays, in the order of `weights`.
        """
        frame, n = tf.constant(log_frame, tf.float64), len(labels)
        totals = [np.zeros(w.shape) for w in self.weights]
        for begin in range(0, n, EVAL_BATCH):
            tick(begin)
            block = slice(begin, min(begin + EVAL_BATCH, n))
            for total, part in zip(totals, self._gradient(images[block], labels[block], frame), strict=True):
                total += part.numpy()
        return [total / n for total in totals]

    @compiled(reduce_retracing=True)
    def _gradient(self, images: tf.Tensor, labels: tf.Tensor, log_frame: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            total, _ = self._loss_sum_and_logits(images, labels, log_frame, training=False)
        return list(tape.gradient(total, self.weights))


def _turns(n: int, flops: float) -> list[tuple[int, int]]:
    """0..n in slices [begin, end) of about TURN_FLOPS, each of the n costing `flops`."""
    size = max(1, int(TURN_FLOPS // flops)) if flops else n
    return [(begin, min(begin + size, n)) for begin in range(0, n, size)]


def _through(pipeline: list[Any], x: tf.Tensor, training: bool = False) -> tf.Tensor:
    for stage in pipeline:
        x = stage(x, training) if isinstance(stage, Weighted) else stage(x)
    return x


def _normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """(factor, shift). Raises: ValueError when there is neither one number nor one a channel."""
    means = np.ravel(0.0 if mean is None else mean)
    stds = np.ravel(1.0 if std is None else std)
    for name, values in (("input_mean", means), ("input_std", stds)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers for images of {channels} channels")
    return (1 / stds).astype(np.float32), (-means / stds).astype(np.float32)
