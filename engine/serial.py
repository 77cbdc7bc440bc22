"""Execution of units in this process: one after the other, or a few at once in threads."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from engine.context import Context
from engine.units import Done, Unit, Worker
from support.screen import Progress


class Serial:
    """An `Executor` in this process.

    Args:
      context: of its worker.
      at_once: how many units at once, each in a thread; 1: in the calling thread.
    """

    def __init__(self, context: Context, at_once: int = 1):
        self.worker, self.at_once = Worker(context), at_once

    def publish(self, name: str, weights: Any) -> None:
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
        units = iter(units)
        with ThreadPoolExecutor(self.at_once) as pool:
            submit = partial(self._submit, pool, units, progress)
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

    def _submit(
        self, pool: ThreadPoolExecutor, units: Iterator[Unit], progress: Progress
    ) -> list[tuple[Unit, Future[Any]]]:
        """Start the next unit, if there is one."""
        return [(unit, pool.submit(self._work, unit, progress)) for unit in [next(units, None)] if unit is not None]
