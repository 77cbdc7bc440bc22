"""Carlini-Wagner L2 (Carlini and Wagner, S&P 2017, arXiv 1608.04644, section VI.A)."""

import math

import numpy as np
import tensorflow as tf

from attacks.base import Attack, Logits, is_adversarial, per_image
from attacks.measurement import padded
from support.device import compiled
from support.screen import ignore

PIECE = 250  # iterations per call of the graph, at most: between two calls, the attack can be stopped
# {rule: (into how many windows the iterations are cut, which part of the loss has to be left after one)}
STALLED = {"image": (20, 0.996), "batch": (10, 0.9999), "none": (1, np.inf)}
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.999, 1e-8


class CarliniWagnerL2(Attack):
    """minimize ||x' - x||^2 + c f(x') with x' = (tanh(w) + 1) / 2, f(x') = max(z_y - max_{j != y} z_j, -k).

    Adam searches w; the smallest c that has an adversarial example is searched by bisection. Each
    image proceeds at its own pace: it begins the next c when Adam stalls on this one, and leaves the
    batch when its search is done.

    Args:
      binary_search_steps: how many c are tried.
      iterations: of Adam, for one c.
      learning_rate: Adam's. initial_const: the first c.
      confidence: k; an example counts when it is wrong by more than this many logits.
      abort_early: 'image': an image continues with its next c when its mean loss over a twentieth of the
        iterations (the last may be shorter) is not below 0.996 of that over the twentieth before;
        'batch': the published rule, the whole batch together, when the sum of its losses at the end of
        a tenth is not below 0.9999 of that at the end of the tenth before; 'none'.
    """

    def __init__(
        self,
        logits: Logits,
        shape: tuple[int, int, int],
        binary_search_steps: int = 9,
        iterations: int = 10000,
        learning_rate: float = 0.01,
        initial_const: float = 1e-3,
        confidence: float = 0.0,
        abort_early: str = "batch",
        targeted: bool = False,
    ):
        super().__init__(logits, shape, targeted)
        self.binary_search_steps, self.iterations = binary_search_steps, iterations
        self.learning_rate, self.initial_const = learning_rate, initial_const
        self.confidence, self.abort_early = confidence, abort_early
        x, v = self.images_spec, self._vector(tf.float32)
        self._adam = compiled(
            self._adam,
            input_signature=[
                tf.TensorSpec([], tf.int32),  # how many iterations
                *(x, x, self._vector(tf.int32), v),  # x, w_x, y, c
                *(x, x, x, v),  # w, m, v, t
                *(x, v, self._vector(tf.bool)),  # best, best_l2, found
            ],
        )

    def __call__(self, images, labels, indices=None, update=ignore):
        n, shape = len(images), images.shape
        windows, _ = STALLED[self.abort_early]
        window = math.ceil(self.iterations / windows)
        start = np.arctanh((2 * images - 1) * np.float32(0.999999))
        best, best_l2 = images.copy(), np.full(n, np.inf, np.float32)
        c = np.full(n, self.initial_const, np.float32)
        lower, upper = np.zeros(n, np.float32), np.full(n, np.inf, np.float32)
        searched = np.zeros(n, int)  # how many c each image has finished
        # The state of Adam's run at the present c:
        w, m, v = start.copy(), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        t, found, last_loss = np.zeros(n, np.float32), np.zeros(n, bool), np.full(n, np.inf)
        active = np.arange(n)
        while len(active):
            a = active
            todo, losses = int(min(window, self.iterations - t[a].max())), []
            while todo:
                piece = min(todo, PIECE)
                given = (images, start, labels, c, w, m, v, t, best, best_l2, found)
                rows = padded(a)
                results = self._adam(piece, *(array[rows] for array in given))
                *state, mean_loss, loss = (result.numpy()[: len(a)] for result in results)
                w[a], m[a], v[a], best[a], best_l2[a], found[a] = state
                losses.append(mean_loss.astype(np.float64) * piece)
                t[a] += piece
                todo -= piece
                update(float((searched + t / self.iterations).sum()) / (n * self.binary_search_steps))
            done = self._stalled(sum(losses), loss.astype(np.float64), last_loss, a)
            done = a[done | (t[a] >= self.iterations)]
            # Bisection, or a factor of ten until something is found (section VI.A).
            upper[done] = np.where(found[done], np.minimum(upper[done], c[done]), upper[done])
            lower[done] = np.where(found[done], lower[done], np.maximum(lower[done], c[done]))
            bounded = np.isfinite(upper[done])
            c[done] = np.where(bounded, (lower[done] + np.where(bounded, upper[done], 0)) / 2, c[done] * 10)
            searched[done] += 1
            if self.binary_search_steps >= 10:  # the published code's last step tries the upper end once
                last = done[searched[done] == self.binary_search_steps - 1]
                c[last] = np.minimum(upper[last], 1e10)
            w[done], m[done], v[done], t[done], found[done] = start[done], 0, 0, 0, False
            last_loss[done] = np.inf
            active = active[searched[active] < self.binary_search_steps]
        return best

    def _stalled(self, mean_loss, loss, last_loss, a):
        """Return which of the images a must stop, bool [len(a)]; stores their losses in last_loss."""
        new = np.full(len(a), loss.sum()) if self.abort_early == "batch" else mean_loss
        _, left = STALLED[self.abort_early]
        stalled = ~(new <= left * last_loss[a])
        last_loss[a] = new
        return stalled

    def _adam(self, n, x, w_x, y, c, w, m, v, t, best, best_l2, found):
        """Take n iterations; return w, m, v, best, best_l2, found, the mean loss over them and the last, [B]."""
        x_back = (tf.tanh(w_x) + 1) / 2  # what x is in the tanh space

        def iteration(k, w, m, v, best, best_l2, found, sum_loss, _):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(w)
                image = (tf.tanh(w) + 1) / 2
                z = self.logits(image)
                gap = self.gap(z, y) - self.confidence
                distance = tf.reduce_sum(tf.square(image - x_back), axis=[1, 2, 3])
                loss = distance + c * tf.nn.relu(-gap)
            gradient = tape.gradient(loss, w)
            adversarial = is_adversarial(gap, z)
            true_l2 = tf.reduce_sum(tf.square(image - x), axis=[1, 2, 3])
            better = adversarial & (true_l2 < best_l2)
            best = tf.where(per_image(better), image, best)
            best_l2 = tf.where(better, true_l2, best_l2)
            m = ADAM_BETA1 * m + (1 - ADAM_BETA1) * gradient
            v = ADAM_BETA2 * v + (1 - ADAM_BETA2) * tf.square(gradient)
            time = t + tf.cast(k + 1, tf.float32)
            m_part = per_image(self.learning_rate / (1 - ADAM_BETA1**time))
            v_part = per_image(1 / (1 - ADAM_BETA2**time))
            w -= m_part * m / (tf.sqrt(v_part * v) + ADAM_EPSILON)
            return k + 1, w, m, v, best, best_l2, found | adversarial, sum_loss + loss, loss

        zero = tf.zeros_like(c)
        _, w, m, v, best, best_l2, found, sum_loss, loss = tf.while_loop(
            lambda k, *_: k < n, iteration, (0, w, m, v, best, best_l2, found, zero, zero)
        )
        return w, m, v, best, best_l2, found, sum_loss / tf.cast(n, tf.float32), loss
