"""Random crops and flips of training images, in the graph."""

import tensorflow as tf


def crop_and_flip(images: tf.Tensor, seed: tf.Tensor, padding: int = 4) -> tf.Tensor:
    """Shift each image by up to `padding` pixels each way, black where it has none, and mirror half of them.

    The usual augmentation of CIFAR-10: a crop of the original size from the zero-padded image, at a
    uniformly random place, then a horizontal flip with probability 1/2.

    Args:
      images: pixels of any type [B, h, w, c], before normalization: 0 is black.
      seed: int32 [2]; the same seed gives the same crops.

    Returns: like images.
    """
    n, (h, w) = tf.shape(images)[0], images.shape[1:3]
    draws = tf.random.stateless_uniform([3, n], seed, 0, 2 * (2 * padding + 1), tf.int32)
    top, left = draws[0] // 2, draws[1] // 2
    flip = draws[2] % 2 == 1
    rows = top[:, None] + tf.range(h)  # [B, h]
    columns = tf.range(w)
    columns = left[:, None] + tf.where(flip[:, None], columns[::-1], columns)  # [B, w]
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)
