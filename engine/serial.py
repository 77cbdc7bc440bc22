"""Execution of units in this process: one after the other, or a few at once in threads."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from engine.context import Context
from engine.units import Done, Unit, Worker
from support.errors import Stopped
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
        """Keep weights under a name (`Executor.publish`)."""
        self.worker.published[name] = weights

    def run(self, units: Iterable[Unit], done: Done, progress: Progress) -> None:
        """Execute units, at most 2 * at_once unfinished ones at any time (`Executor.run`)."""
        finished: Generator[tuple[Unit, Any], None, None]
        if self.at_once == 1:
            finished = ((unit, self._work(unit, progress)) for unit in units)
        else:
            finished = self._in_threads(units, progress)
        with contextlib.closing(finished):
            for unit, result in finished:
                if done(unit, result):
                    break
                progress.check()

    def _work(self, unit: Unit, progress: Progress, over: threading.Event | None = None) -> Any:
        counted = 0.0

        def update(fraction: float) -> None:
            nonlocal counted
            if over is not None and over.is_set():
                raise Stopped(signal.SIGTERM)
            progress.advance((fraction - counted) * unit.size)
            counted = fraction
            progress.check(fraction)

        result = unit.work(self.worker, unit.args, update)
        progress.advance((1.0 - counted) * unit.size)  # never raises: a result is not thrown away
        return result

    def _in_threads(self, units: Iterable[Unit], progress: Progress) -> Generator[tuple[Unit, Any], None, None]:
        waiting: deque[tuple[Unit, Future[Any]]] = deque()
        pool, over = ThreadPoolExecutor(self.at_once), threading.Event()

        def first() -> tuple[Unit, Any]:
            unit, future = waiting[0]
            while not wait([future], LOOK).done:
                progress.check()
            waiting.popleft()
            return unit, future.result()

        try:
            for unit in units:
                waiting.append((unit, pool.submit(self._work, unit, progress, over)))
                if len(waiting) == 2 * self.at_once:
                    yield first()
            while waiting:
                yield first()
        finally:  # without waiting: a thread ends at its next call of `update`
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
