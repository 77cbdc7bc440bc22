"""A trainable classifier: the high-precision losses, the training epoch and the evaluation pass.

The true training loss falls below 1e-800, so it is kept relative to a frame: `loss` in the code is
the true loss times exp(-log_frame), with log_frame near the log of the current true loss. A frame
learning rate is the true one times exp(log_frame), and the step they make together is the true one.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from models.augmentation import crop_and_flip

EVAL_BATCH = 500
TURN_FLOPS = 2e11  # about a second of two cores: how long a pass over the data runs before it looks up


def hp_sparse_softmax_cross_entropy_with_logits_v1(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy softplus(logsumexp_j d_j) of each example, d_j = z_j - z_y for j != y.

    Args:
      labels: integers [B].
      logits: float32 or float64 [B, C].

    Returns: float64 [B], with full relative precision as long as float64 can hold the loss.
    """
    return hp_sparse_softmax_cross_entropy_with_logits_v2(labels, logits, 0.0)


def hp_sparse_softmax_cross_entropy_with_logits_v2(
    labels: tf.Tensor, logits: tf.Tensor, log_frame: tf.Tensor | float
) -> tf.Tensor:
    """The same cross-entropy in a frame: softplus(logsumexp_j d_j) * exp(-log_frame).

    Exact for each example by itself, at any size of the loss. With m = max(0, max_j d_j) and
    S = sum_j exp(d_j - m):

        m = 0:  log1p(S)/S * sum_j exp(d_j - log_frame)      no rounding of log_frame-sized numbers
        m > 0:  (m + log(exp(-m) + S)) * exp(-log_frame)
        its gradient by z_j, j != y:  exp(d_j - m - log_frame) / (exp(-m) + S)

    Args:
      labels: integers [B].
      logits: float32 or float64 [B, C].
      log_frame: scalar, float64.

    Returns: float64 [B]; infinite where float64 cannot hold it.
    """
    log_frame = tf.convert_to_tensor(log_frame, tf.float64)

    @tf.custom_gradient
    def loss(logits):
        value, gradient = _loss_and_gradient(labels, logits, log_frame)
        return value, lambda upstream: tf.cast(upstream[:, None] * gradient, logits.dtype)

    return loss(logits)


@tf.function(jit_compile=True)  # many tiny ops: one compiled kernel costs less than dispatching them
def _loss_and_gradient(labels, logits, log_frame):
    """float64 ([B], [B, C]): the loss in the frame and its gradient by the logits."""
    z = tf.cast(logits, tf.float64)  # [B, C]
    is_label = labels[:, None] == tf.range(logits.shape[1], dtype=labels.dtype)
    z_y = tf.reduce_sum(tf.where(is_label, z, 0.0), axis=1, keepdims=True)
    d = tf.where(is_label, tf.constant(-np.inf, tf.float64), z - z_y)
    m = tf.nn.relu(tf.reduce_max(d, axis=1, keepdims=True))  # [B, 1]
    d = d - m
    s = tf.reduce_sum(tf.exp(d), axis=1, keepdims=True)
    in_frame = tf.exp(d - log_frame)  # [B, C], 0 at the label
    sum_in_frame = tf.reduce_sum(in_frame, axis=1, keepdims=True)
    # Below 1e-17, log1p(S)/S is 1 to the last bit, and S itself may have underflowed.
    log1p_over_s = tf.where(s < 1e-17, tf.ones_like(s), tf.math.log1p(s) / tf.maximum(s, 1e-17))
    denominator = tf.exp(-m) + s
    large = (m + tf.math.log(denominator)) * tf.exp(-log_frame)
    value = tf.where(m > 0, large, log1p_over_s * sum_in_frame)[:, 0]
    gradient = tf.where(is_label, -sum_in_frame, in_frame) / denominator
    return value, gradient


class Model(tf.Module):
    """What every network here can do; a subclass says how it maps images to logits.

    `layers` lists the layers with weights, in order. The weights of the last accepted epoch are
    kept in memory by `keep()`, and `restore()` puts them back.

    Attributes:
      parts: into how many slices of examples every batch is cut. They do not need each other, so
        TensorFlow computes them at the same time: one on each core wastes less than all cores sharing
        every small op (`device.parts_that_pay`). Must be 1 with batch norm, which looks at whole batches.
      flops: of one example's forward pass.
    """

    def __init__(self, scale: float, name: str | None = None):
        """scale: the factor that maps integer pixels to [0, 1]."""
        super().__init__(name)
        self.scale = scale
        self.layers = []
        self.parts = 1
        self.flops = 0

    def build_done(self) -> None:
        """To be called once when all layers exist."""
        self._kept = [tf.Variable(v, trainable=False) for v in self.tensors]

    def places(self) -> list[tuple[str, tf.Module, str]]:
        """(name, owner, attribute) of all that a checkpoint holds, in layer order.

        A layer's weight, its bias, and its batch norm's scale, shift, running mean and variance; names
        are 'layer0/weight', 'layer0/bias', 'layer0/bn/scale', ...
        """
        found = []
        for k, layer in enumerate(self.layers):
            found += [(f"layer{k}/{kind}", layer, kind) for kind in ("weight", "bias")]
            if layer.bn is not None:
                found += [
                    (f"layer{k}/bn/{kind}", layer.bn, kind) for kind in ("scale", "shift", "mean", "variance")
                ]
        return [place for place in found if getattr(*place[1:]) is not None]

    @property
    def tensors(self) -> list[tf.Variable]:
        """The variables of `places`."""
        return [getattr(owner, kind) for _, owner, kind in self.places()]

    @property
    def weights(self) -> list[tf.Variable]:
        """All trainable variables in layer order, a layer's weight before its bias."""
        return [v for v in self.tensors if v.trainable]

    def logits(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float32 [B, h, w, c] in [0, 1] -> float32 [B, C]; training: batch norm uses the batch's moments."""
        raise NotImplementedError

    def pixels(self, images: tf.Tensor) -> tf.Tensor:
        """Integer pixels as stored -> float32 in [0, 1]."""
        return tf.cast(images, tf.float32) * self.scale

    # Weights in and out

    def get_weights(self) -> list[tuple[str, np.ndarray]]:
        """[(name, float32 array), ...] of `places`, in their order."""
        return [(name, getattr(owner, kind).numpy()) for name, owner, kind in self.places()]

    def set_weights(self, values: list[np.ndarray]) -> None:
        """Put in arrays in the order of `tensors`. Raises: ValueError for other shapes or another count."""
        shapes = [tuple(v.shape) for v in self.tensors]
        given = [np.shape(value) for value in values]
        if shapes != given:
            raise ValueError(f"this network has tensors of shapes {shapes}; given were {given}")
        for variable, value in zip(self.tensors, values, strict=True):
            variable.assign(value)
        self.keep()

    @tf.function
    def keep(self) -> None:
        """Remember the weights as they are now."""
        for kept, variable in zip(self._kept, self.tensors, strict=True):
            kept.assign(variable)

    @tf.function
    def restore(self) -> None:
        """Put back the weights that `keep` remembered."""
        for kept, variable in zip(self._kept, self.tensors, strict=True):
            variable.assign(kept)

    def _loss_sum_and_logits(self, pixels, labels, log_frame, training):
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

    # Training

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
        between: Callable[[int], None] = lambda done: None,
    ) -> tuple[bool, np.ndarray]:
        """A whole epoch of gradient steps in one graph; stops after the first bad batch.

        Args:
          images: integer pixels [N, h, w, c]; labels: int32 [N].
          batches: int32 [n, B], indices into both.
          lr, loss_ub: in frame units. log_frame: natural log of the frame.
          augment_seed: int32 [2], of random crops and flips; None for the images as they are.
          between: called with the number of batches done, every second or so; may raise.

        Returns: (ok, losses): whether every batch loss was finite and <= loss_ub, and the float64
          losses of the batches done, in order (the bad one is the last).
        """
        # Tensors, because a tf.function is traced anew for every new Python number.
        scalars = [tf.constant(value, tf.float64) for value in (lr, log_frame, loss_ub)]
        if augment_seed is not None:
            augment_seed = tf.constant(augment_seed, tf.int32)
        n, losses = len(batches), []
        batches = tf.constant(batches, tf.int32)
        for begin, end in _turns(n, 3 * self.flops * batches.shape[1]):
            between(begin)
            turn = tf.constant(begin), tf.constant(end)
            ok, part = self._train_turn(images, labels, batches, *turn, *scalars, augment_seed)
            losses.append(part.numpy())
            if not ok:
                break
        return bool(ok), np.concatenate(losses)

    @tf.function
    def _train_turn(self, images, labels, batches, begin, end, lr, log_frame, loss_ub, augment_seed):
        """The gradient steps of batches[begin:end]."""

        def step(i, ok, losses):
            batch = batches[i]
            x, y = tf.gather(images, batch), tf.gather(labels, batch)
            if augment_seed is not None:
                x = crop_and_flip(x, tf.stack([augment_seed[0], augment_seed[1] + i]))
            loss = self.step(x, y, lr, log_frame)
            return i + 1, loss <= loss_ub, losses.write(i - begin, loss)  # NaN is not <= anything

        losses = tf.TensorArray(tf.float64, end - begin, element_shape=[])
        done, ok, losses = tf.while_loop(
            lambda i, ok, losses: ok & (i < end), step, (begin, tf.constant(True), losses)
        )
        return ok, losses.stack()[: done - begin]

    # Evaluation

    def evaluate(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        log_frame: float = 0.0,
        loss_limit: float = np.inf,
        between: Callable[[int], None] = lambda done: None,
    ) -> tuple[bool, float, np.ndarray]:
        """Mean loss and logits of a data set, in blocks of EVAL_BATCH, in order.

        Losses are >= 0, so a partial sum can already prove that the mean is above loss_limit; the
        pass stops there.

        Args:
          images: integer pixels [N, h, w, c]; labels: int32 [N].
          log_frame: natural log of the frame. loss_limit: in frame units, infinite for none.
          between: called with the number of examples done, every second or so; may raise.

        Returns: (complete, loss, logits): whether all N were evaluated, their mean loss in the frame
          (of a pass that was stopped: a lower bound of it), and float32 logits [N, C], complete or not.
        """
        n = len(labels)
        n_blocks = -(-n // EVAL_BATCH)
        log_frame, limit = (tf.constant(value, tf.float64) for value in (log_frame, loss_limit * n))
        total, logits = tf.constant(0.0, tf.float64), []
        for begin, end in _turns(n_blocks, self.flops * EVAL_BATCH):
            between(begin * EVAL_BATCH)
            turn = tf.constant(begin), tf.constant(end)
            done, total, part = self._evaluate_turn(images, labels, *turn, log_frame, limit, total)
            logits.append(part.numpy())
            if total > limit:
                break
        return bool(done == n_blocks), float(total) / n, np.concatenate(logits)

    @tf.function
    def _evaluate_turn(self, images, labels, begin, end, log_frame, limit, total):
        """Blocks begin to end, unless the sum of losses, from total on, passes the limit before."""
        n = tf.shape(images)[0]

        def block(i, total, logits):
            where = slice(i * EVAL_BATCH, tf.minimum((i + 1) * EVAL_BATCH, n))
            loss_sum, z = self._loss_sum_and_logits(images[where], labels[where], log_frame, training=False)
            return i + 1, total + loss_sum, logits.write(i - begin, z)

        logits = tf.TensorArray(tf.float32, end - begin, infer_shape=False, element_shape=[None, None])
        done, total, logits = tf.while_loop(
            lambda i, total, logits: (i < end) & ~(total > limit), block, (begin, total, logits)
        )
        return done, total, logits.concat()


def _turns(n: int, flops: float) -> list[tuple[int, int]]:
    """0..n in slices [begin, end) of about TURN_FLOPS, each of the n costing `flops`."""
    size = max(1, int(TURN_FLOPS // flops)) if flops else n
    return [(begin, min(begin + size, n)) for begin in range(0, n, size)]
