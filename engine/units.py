"""Units of work, and what their functions are given.

A unit is plain data that can be pickled: a top-level function, a key, arguments. Weights are named in it, by
(path, epoch) or by a name under which they were published; its function gets them from its `Worker`. So a unit can be
executed wherever the flags, the data and the files are. Only the driver, the process that calls `Executor.run`,
writes files; but a unit that is a whole run (a seed) writes its own working directory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.context import Context
from support.screen import Progress, Update


class Worker:
    """Where units are executed.

    Attributes:
      context: flags, data and network.
      published: {name, or (path, epoch): weights} that units refer to.
    """

    def __init__(self, context: Context, published: dict[Any, Any] | None = None):
        self.context = context
        self.published: dict[Any, Any] = {} if published is None else published

    def weights(self, network: Any) -> Any:
        """Return the weights that a unit names: published under a name, or stored at (path, epoch).

        The weights of one stored network are kept for the next unit.
        """
        if isinstance(network, str):
            return self.published[network]
        return self.context.kept("weights", network, lambda: self.context.stored_weights(*network))


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
      work: a top-level function (worker, args, update) -> plain data: Python types and arrays.
      key: unique, and ordered as the units are.
      args: plain data.
      size: its share of the progress bar.
    """

    work: Callable[[Worker, dict[str, Any], Update], Any]
    key: tuple[int, ...]
    args: dict[str, Any] = field(default_factory=dict)
    size: float = 1.0


Done = Callable[[Unit, Any], bool | None]


class Executor(Protocol):
    """Executes units: in this process (`serial.Serial`) or on a cluster (`cluster.Remote`), with equal results."""

    def publish(self, name: str | tuple[str, int], weights: Any) -> None:
        """Make weights known to units: under a name, or as those of an epoch that may not stay stored."""

    def run(self, units: Iterable[Unit], done: Done, progress: Progress) -> None:
        """Execute units.

        Args:
          units: consumed lazily.
          done: called in this thread with each unit and its result, in the order of the units. When it returns
            True, the remaining units are skipped.
          progress: advanced by each unit; what its callback raises ends the work.
        """
