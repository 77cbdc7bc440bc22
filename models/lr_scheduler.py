"""Learning-rate schedulers: they also decide whether an epoch is accepted.

After every attempt at an epoch the training loop calls `get(info)`: `('go', lr)` accepts it and gives the next
epoch's lr; `('back', lr)` rejects it: the weights are restored and the epoch is tried again with that lr.

All losses that a scheduler sees are relative to the frame (`models.losses`): the true loss is
`loss * exp(log_frame)`, and a frame learning rate `lr` is the true one times `exp(log_frame)`.
Since the frame is the loss of the last accepted epoch, "the loss did not grow" reads `loss <= 1`.
Without a frame (train_mode NORMAL) losses are true and are compared with the last accepted one.

Everything a scheduler remembers is in plain attributes, so that `vars(scheduler)` is its state and a
resumed run makes the same decisions.
"""

import math
from typing import Any

from support.errors import TrainingDiverged

USE_FRAME, NORMAL = "USE_FRAME", "NORMAL"
TEN_CLASSES = math.log(10)  # the loss of a uniform guess among ten classes
LOG_FRAME0 = math.log(TEN_CLASSES)


class LRScheduler:
    """Base: train_mode, the frame that the run starts in, and whether lr is the length of a step in any frame."""

    length = False

    def __init__(self, lr: float, train_mode: str = USE_FRAME, log_frame0: float = LOG_FRAME0, length: bool = False):
        self.lr = lr
        self.train_mode = train_mode
        self.log_frame0 = log_frame0
        if length:  # else it is not part of the state, as in checkpoints of earlier versions
            self.length = True

    def get(self, info: dict[str, Any] | None = None) -> tuple[str, float]:
        """Judge an attempt.

        Args:
          info: the attempt's `info` (`training.attempt`); `info['stats']` is None when the attempt failed
            or was proved worse. None at the start of a run.

        Returns: `('go' | 'back', lr)`, the lr of the next attempt; `('go', first lr)` for no info.
        Raises: TrainingDiverged when there is no other lr to try.
        """
        raise NotImplementedError

    def loss_limit(self) -> float:
        """Return the largest mean training loss (frame units) that `get` would still accept.

        An attempt's evaluation stops when the partial sum of its losses is past this.
        """
        return math.inf

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the scheduler, as JSON can hold it."""
        return dict(vars(self))

    def set_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class ConstLR(LRScheduler):
    """A constant true learning rate; never rejects.

    A failed attempt (a batch loss above loss_ub) is tried again with another permutation; when that
    fails MAX_FAILURES times in a row the learning rate is simply too large for this loss.
    """

    MAX_FAILURES = 10

    def __init__(self, lr: float, **frame: Any):
        super().__init__(lr, **frame)
        self.frame_lr = self._in_frame(self.log_frame0)
        self.failures = 0

    def _in_frame(self, log_frame: float) -> float:
        return self.lr * math.exp(log_frame) if self.train_mode == USE_FRAME and not self.length else self.lr

    def get(self, info: dict[str, Any] | None = None) -> tuple[str, float]:
        if info is None:
            return "go", self.frame_lr
        if info["stats"] is None:
            self.failures += 1
            if self.failures >= self.MAX_FAILURES:
                raise TrainingDiverged(
                    f"epoch {info['eid']} failed {self.failures} times at the constant lr {self.lr:g} "
                    "(a batch loss above loss_ub, or not finite): lower --lr or raise --loss_ub"
                )
            return "back", self.frame_lr
        self.failures = 0
        if self.train_mode == USE_FRAME and not self.length:
            self.frame_lr = self.lr * math.exp(info["log_frame"]) * info["stats"]["loss"]
        return "go", self.frame_lr


class DecayingLR(ConstLR):
    """lr / t^power at epoch t, for the true learning rate or the length of a step; never rejects."""

    def __init__(self, lr: float, power: float = 0.5, **frame: Any):
        super().__init__(lr, **frame)
        if not power <= 10:
            raise ValueError(f"power must be at most 10, not {power!r}")
        self.power = power

    def get(self, info: dict[str, Any] | None = None) -> tuple[str, float]:
        epoch = 1 if info is None else info["eid"] + (info["stats"] is not None)
        command, lr = super().get(info)
        return command, lr / epoch**self.power


class _LossComparing(LRScheduler):
    """Base of the schedulers that accept an epoch only when its loss did not grow.

    In NORMAL mode the first epoch is compared with loss0, as it is (through log_frame0) in a frame; None: with
    exp(log_frame0).
    """

    def __init__(self, lr: float, eps: float = 0.0, loss0: float | None = None, **frame: Any):
        super().__init__(lr, **frame)
        self.eps = eps
        if loss0 is None:  # the exponential of the logarithm is not always the number itself
            loss0 = TEN_CLASSES if self.log_frame0 == LOG_FRAME0 else math.exp(self.log_frame0)
        self.loss0 = loss0
        self.last_loss = 1.0 if self.train_mode == USE_FRAME else loss0

    def _accept(self, info: dict[str, Any]) -> bool:
        """Return whether this attempt is accepted. In NORMAL mode the next loss is compared with an accepted one."""
        if info["stats"] is None:
            return False
        loss = info["stats"]["loss"]
        # Written so that NaN is never accepted, nor a comparison with a loss that underflowed to 0.
        if self.last_loss == 0 or not loss / self.last_loss <= 1 + self.eps:
            return False
        if self.train_mode == NORMAL:
            self.last_loss = loss
        return True

    def loss_limit(self) -> float:
        # One part in 1e12 above the threshold: rounding in the quotient above cannot tell them apart.
        return (1 + self.eps) * self.last_loss * (1 + 1e-12)


class LossBasedLRv1(_LossComparing):
    """The loss-based scheduler of arXiv 1906.05890: lr follows 1 / (true loss).

    Accept: lr * alpha1. Reject: lr / alpha2. With a frame the real learning rate is
    lr * exp(-log_frame) by itself; without one it is returned as lr * loss0 / last_loss.
    """

    def __init__(
        self,
        lr: float = 0.1,
        alpha1: float = 2 ** (1 / 5),
        alpha2: float = 2 ** (1 / 10),
        eps: float = 0.0,
        loss0: float | None = None,
        **frame: Any,
    ):
        super().__init__(lr, eps=eps, loss0=loss0, **frame)
        self.alpha1, self.alpha2 = alpha1, _must_lower(alpha2)

    def get(self, info: dict[str, Any] | None = None) -> tuple[str, float]:
        command = "go"
        if info is not None and self._accept(info):
            self.lr *= self.alpha1
        elif info is not None:
            command = "back"
            self.lr /= self.alpha2
        if self.train_mode == USE_FRAME or self.length:
            return command, self.lr
        return command, self.lr * self.loss0 / self.last_loss if self.last_loss else 0.0


def _must_lower(alpha2: float) -> float:
    """Return alpha2. Raises: ValueError where dividing by it would not lower the lr: rejections would never end."""
    if not alpha2 > 1:
        raise ValueError(f"alpha2 must be above 1, not {alpha2!r}")
    return alpha2


def _whole(cd: int) -> int:
    if cd != int(cd) or cd < 1:
        raise ValueError(f"cd must be a whole number of epochs, at least 1, not {cd!r}")
    return int(cd)


class AggressiveLR(_LossComparing):
    """Halve at every worse or failed attempt; double after each `cd` accepted epochs."""

    def __init__(self, lr: float, cd: int = 5, **frame: Any):
        super().__init__(lr, **frame)
        self.cd = _whole(cd)
        self.countdown = self.cd

    def get(self, info: dict[str, Any] | None = None) -> tuple[str, float]:
        if info is None:
            return "go", self.lr
        if not self._accept(info):
            self.lr /= 2
            self.countdown = self.cd
            return "back", self.lr
        self.countdown -= 1
        if self.countdown == 0:
            self.lr *= 2
            self.countdown = self.cd
        return "go", self.lr


class AggressiveLRv3(_LossComparing):
    """Reject: lr / alpha2. Accept: lr * alpha1."""

    def __init__(self, lr: float, alpha1: float = 2 ** (1 / 5), alpha2: float = 2 ** (1 / 5), **frame: Any):
        super().__init__(lr, **frame)
        self.alpha1, self.alpha2 = alpha1, _must_lower(alpha2)

    def get(self, info: dict[str, Any] | None = None) -> tuple[str, float]:
        if info is None:
            return "go", self.lr
        if self._accept(info):
            self.lr *= self.alpha1
            return "go", self.lr
        self.lr /= self.alpha2
        return "back", self.lr


class AggressiveLRv2(AggressiveLRv3):
    """Halve at every worse attempt; otherwise grow by 2**(1/cd) an epoch."""

    def __init__(self, lr: float, cd: int = 5, **frame: Any):
        super().__init__(lr, alpha1=2 ** (1 / _whole(cd)), alpha2=2.0, **frame)


class ConstLRAndLossBasedLR(LRScheduler):
    """Constant true lr until every training example is classified correctly, loss-based from then on.

    Raises: ValueError without a frame.
    """

    def __init__(
        self, lr: float, alpha1: float = 2 ** (1 / 5), alpha2: float = 2 ** (1 / 5), eps: float = 0.0, **frame: Any
    ):
        super().__init__(lr, **frame)
        if self.train_mode != USE_FRAME:
            raise ValueError("const-lr-and-loss-based-lr needs train_mode USE_FRAME")
        self._const = ConstLR(lr, **frame)
        self._loss_based = LossBasedLRv1(lr, alpha1, alpha2, eps, **frame)
        self.fitted = False

    def get(self, info: dict[str, Any] | None = None) -> tuple[str, float]:
        if self.fitted:
            return self._loss_based.get(info)
        command, lr = self._const.get(info)
        if info is not None and info["stats"] is not None and info["stats"]["acc"] == 1.0:
            self.fitted = True
            self._loss_based.lr = lr
        return command, lr

    def loss_limit(self) -> float:
        return self._loss_based.loss_limit() if self.fitted else math.inf

    def state(self) -> dict[str, Any]:
        return {"fitted": self.fitted, "const": self._const.state(), "loss_based": self._loss_based.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.fitted = state["fitted"]
        self._const.set_state(state["const"])
        self._loss_based.set_state(state["loss_based"])


SCHEDULERS = {
    "decay": DecayingLR,
    "loss-based-v1": LossBasedLRv1,
    "aggressive": AggressiveLR,
    "aggressive-v2": AggressiveLRv2,
    "aggressive-v3": AggressiveLRv3,
    "const-lr-and-loss-based-lr": ConstLRAndLossBasedLR,
}


def build(
    lr: float | str | tuple[Any, ...],
    train_mode: str = USE_FRAME,
    log_frame0: float = LOG_FRAME0,
    length: bool = False,
) -> LRScheduler:
    """Return the scheduler that the `lr` flag names: a float, a name, or `(name, argument, ...)`.

    Args:
      length: whether lr is the length of a step whatever the gradient (`models.optimizers`), not a factor of it.

    Raises: ValueError (unknown name, numbers that are not positive), TypeError (wrong arguments).
    """
    frame = {"train_mode": train_mode, "log_frame0": log_frame0, "length": length}
    if isinstance(lr, str):
        lr = (lr,)
    if not isinstance(lr, list | tuple):
        lr = (None, lr)
    name, *args = lr
    if name is not None and name not in SCHEDULERS:
        raise ValueError(f"no scheduler is named {name!r}; there are {', '.join(SCHEDULERS)}")
    for arg in args:
        if isinstance(arg, bool) or not isinstance(arg, int | float) or not 0 <= arg < 1e300:
            raise ValueError(f"{arg!r:.40} is not a number from 0 to 1e300")
    if args and args[0] <= 0:
        raise ValueError(f"a learning rate must be positive, not {args[0]!r}")
    return (ConstLR if name is None else SCHEDULERS[name])(*args, **frame)


def steps_of(n: int, B: int, drop_last: bool) -> int:
    """Return the number of gradient steps per epoch.

    Args:
      n: training examples. B: batch size. drop_last: whether a smaller last batch is dropped.
    """
    return n // B if drop_last else math.ceil(n / B)
