"""Execution of units in this process: one after the other, or a few at once in threads."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from engine.context import Context
from engine.units import Done, Unit, Worker
from support.screen import Progress

LOOK = 0.2  # seconds between two checks of `progress` while a thread computes


class Serial:
    """An `Executor` in this process.

    Args:
      context: of its worker.
      at_once: how many units at once, each in a thread; 1: in the calling thread.
    """

    def __init__(self, context: Context, at_once: int = 1):
        self.worker, self.at_once = Worker(context), at_once

    def publish(self, name: str | tuple[str, int], weights: Any) -> None:
        """As `Executor.publish`."""
        self.worker.published[name] = weights

    def run(self, units: Iterable[Unit], done: Done, progress: Progress) -> None:
        """As `Executor.run`. At most 2 * at_once units are unfinished at any time."""
        finished: Iterator[tuple[Unit, Any]]
        if self.at_once == 1:
            finished = ((unit, self._work(unit, progress)) for unit in units)
        else:
            finished = self._in_threads(units, progress)
        for unit, result in finished:
            if done(unit, result):
                break
            progress.check()

    def _work(self, unit: Unit, progress: Progress) -> Any:
        part = progress.part(unit.size)
        result = unit.work(self.worker, unit.args, part)
        part.finish()
        return result

    def _in_threads(self, units: Iterable[Unit], progress: Progress) -> Iterator[tuple[Unit, Any]]:
        waiting: deque[tuple[Unit, Future[Any]]] = deque()
        pool = ThreadPoolExecutor(self.at_once)

        def first() -> tuple[Unit, Any]:
            unit, future = waiting[0]
            while not wait([future], LOOK).done:
                progress.check()
            waiting.popleft()
            return unit, future.result()

        try:
            for unit in units:
                waiting.append((unit, pool.submit(self._work, unit, progress)))
                if len(waiting) == 2 * self.at_once:
                    yield first()
            while waiting:
                yield first()
        finally:  # without waiting: a thread ends at its next call of `progress`
            pool.shutdown(wait=False, cancel_futures=True)
