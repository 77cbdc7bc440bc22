"""The nearest of several attacks' examples: a distance that does not depend on what one attack happens to miss."""

import numpy as np
import tensorflow as tf

from attacks import base
from attacks.base import Attack, Logits
from attacks.ddn import DDN
from attacks.fmn import FMN
from support.screen import ignore, within


class CrossEntropyDDN(DDN):
    """DDN along the gradient of the cross-entropy, as its paper has it.

    That gradient is (1 - p_y) times the gradient of log(sum_{j != y} e^z_j) - z_y, whose direction is followed here:
    unlike 1 - p_y, it does not underflow. Unlike the gap's direction, it depends on the scale of the logits.
    """

    def climbed(self, z, y, gap):
        return base.gap(z, y, self.targeted, over=tf.reduce_logsumexp)


class Nearest(Attack):
    """The nearest example, in L2, of DDN along the gap, DDN along the cross-entropy, and FMN.

    Args:
      steps: K of each. init_epsilon: DDN's first norm.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        steps: int = 100,
        init_epsilon: float = 1.0,
        targeted: bool = False,
    ):
        super().__init__(logits, shape, targeted)
        kinds = (DDN, CrossEntropyDDN)
        ddn = [kind(logits, shape, steps, init_epsilon=init_epsilon, targeted=targeted) for kind in kinds]
        self.attacks: list[Attack] = [*ddn, FMN(logits, shape, steps, targeted=targeted)]

    def __call__(self, images, labels, indices=None, update=ignore):
        found, away, n = images, np.full(len(images), np.inf), len(self.attacks)
        for k, attack in enumerate(self.attacks):
            examples = attack(images, labels, indices, within(update, k / n, (k + 1) / n))
            distance = np.linalg.norm((examples - images).reshape(len(images), -1), axis=1)
            nearer = (distance > 0) & (distance < away)  # without an example, an attack returns the image
            away = np.where(nearer, distance, away)
            found = np.where(nearer[:, None, None, None], examples, found)
        return found
