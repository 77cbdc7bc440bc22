"""Runs units of work: one after the other, a few at once in threads of this process, or on a cluster (`cluster`).

A unit is plain data that can be pickled: a top-level function, a key, arguments. Weights are named in it, by
(path, epoch) or by a name under which they were published; the function gets them from its Context. So a unit
can be worked on anywhere where the flags, the data and the files are. Only the driver, the process that calls
`run`, writes files; but a whole run that is a unit (a seed) writes its own working directory.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from context import Context
from screen import Uncounted

Tick = Callable[[float], None]  # is told which fraction of a unit is done, 0 to 1; raises Stopped to end it


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
      work: a top-level function (context, args, tick) -> plain data: Python types and arrays.
      key: unique, and ordered as the units are.
      args: plain data.
      size: how much of the progress bar it is.
    """

    work: Callable[[Context, dict[str, Any], Tick], Any]
    key: tuple[int, ...]
    args: dict[str, Any] = field(default_factory=dict)
    size: float = 1.0


class Serial:
    """Works on units in this process.

    Args:
      context: what the units' functions are given.
      at_once: how many units at once, each in a thread; 1: in the calling thread.
    """

    def __init__(self, context: Context, at_once: int = 1):
        self.context, self.at_once = context, at_once

    def publish(self, name: str, weights: Any) -> None:
        """Make weights known to units by a name."""
        self.context.published[name] = weights

    def run(self, units: Iterable[Unit], done: Callable[[Unit, Any], bool | None], ticker: Uncounted) -> None:
        """Work on units, in order.

        Args:
          units: taken lazily: at most 2 * at_once of them are not done.
          done: called in this thread with each unit and its result, in the order of the units. When it
            returns True, the rest is left.
          ticker: shows progress; what it raises ends the work.
        """
        finished: Iterator[tuple[Unit, Any]]
        if self.at_once == 1:
            finished = ((unit, self._work(unit, ticker)) for unit in units)
        else:
            finished = self._in_threads(units, ticker)
        for unit, result in finished:
            if done(unit, result):
                break
            ticker.stop_if_asked()

    def _work(self, unit: Unit, ticker: Uncounted) -> Any:
        told = 0.0

        def tick(fraction: float) -> None:
            nonlocal told
            ticker((fraction - told) * unit.size)
            told = fraction

        result = unit.work(self.context, unit.args, tick)
        ticker.advance((1.0 - told) * unit.size)  # never stops: a result is not thrown away
        return result

    def _in_threads(self, units: Iterable[Unit], ticker: Uncounted) -> Iterator[tuple[Unit, Any]]:
        waiting: deque[tuple[Unit, Any]] = deque()
        units = iter(units)
        with ThreadPoolExecutor(self.at_once) as pool:
            submit = partial(self._submit, pool, units, ticker)
            try:
                for _ in range(2 * self.at_once):
                    waiting += submit()
                while waiting:
                    unit, future = waiting.popleft()
                    yield unit, future.result()
                    waiting += submit()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _submit(self, pool: ThreadPoolExecutor, units: Iterator[Unit], ticker: Uncounted) -> list[tuple[Unit, Any]]:
        """Start the next unit, if there is one."""
        return [(unit, pool.submit(self._work, unit, ticker)) for unit in [next(units, None)] if unit is not None]


@contextlib.contextmanager
def executor(context: Context, at_once: int = 1, priority: int = 0) -> Iterator[Any]:
    """The executor that the flag `cluster` means: a Serial, or a `cluster.Remote` while its cluster lasts.

    Args:
      at_once: of a Serial. priority: of units on a cluster; higher ones go first.
    """
    if context.f.cluster is None:
        yield Serial(context, at_once)
        return
    from cluster import Cluster

    with Cluster(context.f.cluster, context.threads, context.f.gpu) as cluster:
        yield cluster.executor(context, priority)


def weights_of(context: Context, network: Any) -> Any:
    """The weights that a unit's args name: published under a name, or stored at (path, epoch).

    The weights of one network are kept for the next unit.
    """
    if isinstance(network, str):
        return context.published[network]
    return context.kept("weights", network, lambda: context.stored_weights(*network))
