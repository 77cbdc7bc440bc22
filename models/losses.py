"""Cross-entropies and their logs, from 10 down to 1e-3000 and below.

With logits z, label y and gaps d_j = z_j - z_y for j != y, the log-odds of an error are s = logsumexp_j d_j, and
the cross-entropy is softplus(s). The true training loss falls below 1e-800, so it is kept relative to a frame:
`loss` in the code is the true loss times exp(-log_frame), with log_frame near the log of the current true loss. A
frame learning rate is the true one times exp(log_frame), and the step they make together is the true one.

These are TensorFlow's formulas, for what is differentiated; `models.margins` has NumPy's, for what is recorded.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from models.margins import CUTOFF
from support.device import compiled

# The training loss, with a custom gradient


def hp_sparse_softmax_cross_entropy_with_logits_v1(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the cross-entropy softplus(logsumexp_j d_j) of each example (train_mode NORMAL).

    Args:
      labels: integers [B].
      logits: float32 or float64 [B, C].

    Returns: float64 [B], with full relative precision as long as float64 can hold the loss.
    """
    return hp_sparse_softmax_cross_entropy_with_logits_v2(labels, logits, 0.0)


def hp_sparse_softmax_cross_entropy_with_logits_v2(
    labels: tf.Tensor, logits: tf.Tensor, log_frame: tf.Tensor | float
) -> tf.Tensor:
    """Return the same cross-entropy in a frame: softplus(logsumexp_j d_j) * exp(-log_frame).

    Exact for each example by itself, at any size of the loss. With m = max(0, max_j d_j) and
    S = sum_j exp(d_j - m):

        m = 0:  log1p(S)/S * sum_j exp(d_j - log_frame)      no rounding of log_frame-sized numbers
        m > 0:  (m + log(exp(-m) + S)) * exp(-log_frame)
        its gradient by z_j, j != y:  exp(d_j - m - log_frame) / (exp(-m) + S)

    Has a first derivative only; for more see `cross_entropy_in_frame`.

    Args:
      labels: integers [B].
      logits: float32 or float64 [B, C].
      log_frame: scalar, float64.

    Returns: float64 [B]; infinite where float64 cannot hold it.
    """
    log_frame = tf.convert_to_tensor(log_frame, tf.float64)

    @tf.custom_gradient
    def loss(logits: tf.Tensor) -> Any:
        value, gradient = _loss_and_gradient(labels, logits, log_frame)
        return value, lambda upstream: tf.cast(upstream[:, None] * gradient, logits.dtype)

    return loss(logits)


@compiled(jit_compile=True)  # many tiny ops: one compiled kernel costs less than dispatching them
def _loss_and_gradient(labels: tf.Tensor, logits: tf.Tensor, log_frame: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return float64 ([B], [B, C]): the loss in the frame and its gradient by the logits."""
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


# Plain ops, differentiable any number of times


def log_odds(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return s = logsumexp_{j != y} (z_j - z_y), float64 [B].

    The cross-entropy is softplus(s), so both rise in the same direction; but where s is below -100 the
    cross-entropy's gradient underflows, and that of s does not.

    Args:
      labels: integers [B].
      logits: float32 or float64 [B, C].
    """
    z = tf.cast(logits, tf.float64)
    d = z - tf.gather(z, labels, axis=1, batch_dims=1)[:, None]
    is_label = tf.one_hot(labels, logits.shape[-1], True, False, dtype=tf.bool)
    return tf.reduce_logsumexp(tf.where(is_label, tf.constant(-1e300, tf.float64), d), axis=1)


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return softplus(log_odds), the true loss of each example, float64 [B]. Arguments as for `log_odds`."""
    return tf.nn.softplus(log_odds(labels, logits))


def log_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the log of `cross_entropy`, float64 [B]; finite at any size of the loss. Arguments as for `log_odds`."""
    s = log_odds(labels, logits)
    return tf.where(s < CUTOFF, s, tf.math.log(tf.nn.softplus(tf.maximum(s, CUTOFF))))


def cross_entropy_in_frame(labels: tf.Tensor, logits: tf.Tensor, log_frame: tf.Tensor | float) -> tf.Tensor:
    """Return softplus(log_odds) * exp(-log_frame), float64 [B]. Arguments as for the `hp_` losses."""
    log_frame = tf.convert_to_tensor(log_frame, tf.float64)
    s = log_odds(labels, logits)
    small = tf.exp(tf.minimum(s, CUTOFF) - log_frame)
    large = tf.nn.softplus(tf.maximum(s, CUTOFF)) * tf.exp(-log_frame)
    return tf.where(s < CUTOFF, small, large)
