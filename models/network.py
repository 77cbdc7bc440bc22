"""A network with its passes over a dataset: an epoch of gradient steps, an evaluation, a gradient.

Losses are in a frame (`models.losses`).
"""

from typing import Any

import numpy as np
import tensorflow as tf

from models import optimizers
from models.augmentation import crop_and_flip
from models.layers import FullyConnected, slices
from models.losses import hp_sparse_softmax_cross_entropy_with_logits_v2
from models.sequential import Sequential, Weights
from support.device import compiled
from support.screen import Update, ignore

EVAL_BATCH = 500
TURN_FLOPS = 2e11  # about a second of two cores: the work of one call of a graph. Between two calls a pass can stop.
WIDE = 2**22  # bytes of weights above which adding up one gradient per slice takes longer than joining the slices


def on_device(images: np.ndarray, labels: np.ndarray) -> tuple[tf.Variable, tf.Tensor]:
    """Put a data set where a GPU can gather batches from it without the host.

    TensorFlow's GPU kernels gather bytes from a variable only, and it keeps int32 tensors on the host
    (`bench/gpu_placement.py`).

    Args:
      images: integer pixels [N, h, w, c]. labels: integers [N].

    Returns: images, as they are; labels, int64.
    """
    return tf.Variable(images, trainable=False, name="images"), tf.constant(labels, tf.int64)


class Network(Sequential):
    """A `Sequential` network that can be trained and evaluated.

    Args:
      parts: into how many slices of examples every batch is cut. Slices are independent, so TensorFlow computes them
        concurrently: one on each core wastes less time than all cores sharing every small op
        (`engine.compute.parts_that_pay`). Slices join before fully connected layers that are WIDE, which are cut only
        where no work is added (`models.layers.FullyConnected`). Must be 1 with batch norm, which needs whole batches.
      xla: compile a turn of an epoch, including its loop, into one program.
      optimizer: name and arguments (`models.optimizers`).
      The others: as for `Sequential`.
    """

    def __init__(
        self,
        *args: Any,
        parts: int = 1,
        xla: bool = False,
        optimizer: tuple[str, dict[str, Any]] = ("gd", {}),
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.optimizer = optimizers.build(*optimizer, [tuple(v.shape) for v in self.weights])
        self.parts = parts
        connected = [layer for layer in self.layers if isinstance(layer, FullyConnected)]
        self._joins = parts > 1 and sum(4 * layer.weight.shape.num_elements() for layer in connected) > WIDE
        for layer in connected:
            layer.parts = parts if self._joins else 1
        self._train_turn = compiled(self._steps, jit_compile=xla or None)

    # The state of training: the weights, then what the optimizer accumulates

    def snapshot(self) -> Weights:
        """Return the state of training: `Sequential.snapshot`, then the optimizer's slots."""
        return [*super().snapshot(), *(slot.read_value() for slot in self.optimizer.slots)]

    def set_weights(self, values: Weights) -> None:
        """Put in what `snapshot` returned, or weights alone: the optimizer then starts again."""
        n, slots = len(self.tensors), self.optimizer.slots
        super().set_weights(values[:n])
        for slot, value in zip(slots, values[n:] or [np.zeros(slot.shape) for slot in slots], strict=True):
            slot.assign(value)

    def _loss_sum_and_logits(
        self, pixels: tf.Tensor, labels: tf.Tensor, log_frame: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the sum of the losses in the frame, float64, and logits [B, C], of integer pixels [B, h, w, c]."""
        n = labels.shape[0] or tf.shape(labels)[0]
        parts = min(self.parts, labels.shape[0] or self.parts)  # none is empty
        cut = slices(n, parts)
        sliced = self.features if self._joins else self.logits
        z = [sliced(self.pixels(pixels[part]), training) for part in cut]
        if self._joins:
            cut, z = [slice(n)], [self.from_features(tf.concat(z, axis=0), training)]
        losses = [
            hp_sparse_softmax_cross_entropy_with_logits_v2(labels[part], own, log_frame)
            for part, own in zip(cut, z, strict=True)
        ]
        return tf.add_n([tf.reduce_sum(loss) for loss in losses]), tf.concat(z, axis=0)

    def step(self, images: tf.Tensor, labels: tf.Tensor, lr: tf.Tensor, log_frame: tf.Tensor) -> tf.Tensor:
        """Take one step of the optimizer on integer pixels.

        Returns: the batch loss before it, float64.
        """
        with tf.GradientTape() as tape:
            total, _ = self._loss_sum_and_logits(images, labels, log_frame, training=True)
            loss = total / tf.cast(tf.shape(labels)[0], tf.float64)
            scaled = self.optimizer.loss_factor(lr) * loss
        self.optimizer.apply(self.weights, tape.gradient(scaled, self.weights), lr)
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
        update: Update = ignore,
    ) -> tuple[bool, np.ndarray]:
        """Train an epoch: one step per batch, stopping after the first bad batch.

        Args:
          images: integer pixels [N, h, w, c]; labels: integers [N]. Both as `on_device` makes them, or tensors.
          batches: int32 [n, B], indices into both.
          lr, loss_ub: in frame units. log_frame: natural log of the frame.
          augment_seed: int32 [2], of random crops and flips; None for the images as they are.
          update: called about once per second with the completed fraction; may raise to end the epoch.

        Returns: (ok, losses): whether every batch loss was finite and <= loss_ub, and the float64
          losses of the batches done, in order (a bad one is the last).
        """
        self.optimizer.carry(tf.constant(log_frame, tf.float64))
        # Tensors, because a tf.function is traced again for every new Python number.
        scalars = [tf.constant(value, tf.float64) for value in (lr, log_frame, loss_ub)]
        if augment_seed is not None:
            augment_seed = tf.constant(augment_seed, tf.int32)
        n, losses, ok = len(batches), [], True
        batches = tf.constant(batches, tf.int32)
        for begin, end in _turns(n, 3 * self.flops * batches.shape[1]):
            update(begin / n)
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
        """Take the gradient steps of batches[begin:end]; arguments as of `train_epoch`, tensors.

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
        update: Update = ignore,
    ) -> tuple[bool, float, np.ndarray]:
        """Compute mean loss and logits of a data set, in blocks of EVAL_BATCH, in order.

        Losses are >= 0, so a partial sum can already prove that the mean is above loss_limit; the
        pass stops there.

        Args:
          images: integer pixels [N, h, w, c]; labels: integers [N].
          log_frame: natural log of the frame. loss_limit: in frame units, infinite for none.
          update: called about once per second with the completed fraction; may raise to end the pass.

        Returns: (complete, loss, logits): whether all N were evaluated, their mean loss in the frame
          (of a pass that was stopped: a lower bound of it), and float32 logits [N, C], complete or not.
        """
        n = len(labels)
        n_blocks = -(-n // EVAL_BATCH)
        log_frame, limit = (tf.constant(value, tf.float64) for value in (log_frame, loss_limit * n))
        total, logits, done = tf.constant(0.0, tf.float64), [], 0
        for begin, end in _turns(n_blocks, self.flops * EVAL_BATCH):
            update(begin / n_blocks)
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
        """Evaluate blocks begin to end, unless the sum of losses, counted on from total, passes the limit before."""
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
        self, images: tf.Tensor, labels: tf.Tensor, log_frame: float, update: Update = ignore
    ) -> list[np.ndarray]:
        """Return the gradient of the mean loss in the frame over a whole set, for each of `weights`.

        Batch norm uses its running statistics. Each block's gradient is float32, the sum over blocks float64.
        Arguments as for `evaluate`.

        Returns: float64 arrays, in the order of `weights`.
        """
        frame, n = tf.constant(log_frame, tf.float64), len(labels)
        totals = [np.zeros(w.shape) for w in self.weights]
        for begin in range(0, n, EVAL_BATCH):
            update(begin / n)
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
    """Cut 0..n into slices [begin, end) of about TURN_FLOPS, each of the n costing `flops`."""
    size = max(1, int(TURN_FLOPS // flops)) if flops else n
    return [(begin, min(begin + size, n)) for begin in range(0, n, size)]
