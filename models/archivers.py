"""Archivers: which accepted epochs are stored permanently."""

import math
from typing import Any

from support.forms import whole


class Archiver:
    """`wants(eid, log_loss)` is asked once for each accepted epoch, in order.

    Args of wants: eid, the epoch (1, 2, ...); log_loss, the natural log of its true training loss.
    """

    def wants(self, eid: int, log_loss: float) -> bool:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def set_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Idle(Archiver):
    """Stores none."""

    def wants(self, eid: int, log_loss: float) -> bool:
        return False


class TwoPhaseConstEpoch(Archiver):
    """Every n1-th epoch below epoch n2, then every n2-th."""

    def __init__(self, n1: int, n2: int):
        self.n1, self.n2 = n1, n2

    def wants(self, eid: int, log_loss: float) -> bool:
        return eid % (self.n1 if eid < self.n2 else self.n2) == 0


class LogLoss(Archiver):
    """Whenever log_base of the true loss has passed one more integer on its way down.

    Counting begins at the loss of a uniform guess among ten classes. An epoch that passes several integers is
    kept once. An integer that is passed again, after the loss rose, does not count again.
    """

    def __init__(self, base: float):
        self.log_base = math.log(base)
        self.level = math.floor(math.log(math.log(10)) / self.log_base)

    def wants(self, eid: int, log_loss: float) -> bool:
        if not math.isfinite(log_loss):
            return False
        level = math.floor(log_loss / self.log_base)
        if level >= self.level:
            return False
        self.level = level
        return True


def build(archive: Any) -> Archiver:
    """Return the archiver that the `archive` flag names ('idle', an int, or a tuple).

    Raises: ValueError when it names none.
    """
    if archive == "idle":
        return Idle()
    if whole(archive):
        return TwoPhaseConstEpoch(archive, archive)
    if isinstance(archive, list | tuple) and archive:
        name, *args = archive
        if name == "two-phase-const-epoch" and len(args) == 2 and all(map(whole, args)):
            return TwoPhaseConstEpoch(*args)
        if name == "logloss" and len(args) == 1 and isinstance(args[0], int | float) and 1 < args[0] < 1e300:
            return LogLoss(args[0])
    raise ValueError(
        f"{archive!r} is none of 'idle', a number of epochs, ('two-phase-const-epoch', n1, n2), ('logloss', base > 1)"
    )
