"""A run's log, on stdout and in a file, and its progress."""

import contextlib
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("margin")


def shown_path(path: Path) -> str:
    """A path as the user would type it in the current directory."""
    path, here = path.resolve(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def one_line(message: object) -> str:
    """A message on one line, whatever a value in it holds."""
    text = str(message).encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "\\n").replace("\r", "\\r")


def give_streams() -> None:
    """Where stdout or stderr was closed, write to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the rest of the process)


def silence_stdout() -> None:
    """Write to nowhere from now on: stdout is closed, or full. Else Python complains at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Screen(logging.Handler):
    """Writes log lines to stdout without tearing a progress bar on the terminal.

    A stdout that cannot be written ends no run: that is said once, and the directory's file stdout is complete.
    """

    def emit(self, record):
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            silence_stdout()
            print(
                f"warning: stdout: {error.strerror}; the run goes on, and its file stdout is complete",
                file=sys.stderr,
            )


class _File(logging.FileHandler):
    def handleError(self, record):
        raise


class logging_to:
    """While this lasts, log lines also go into a file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        self.handler = _File(self.path, encoding="utf-8")
        log.addHandler(self.handler)

    def __exit__(self, *exception):
        log.removeHandler(self.handler)
        self.handler.close()


class Throttle:
    """True at most once in so many seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        due = now - self.last >= self.seconds
        if due:
            self.last = now
        return due


class Uncounted:
    """Counts nothing, and answers signals.

    Args:
      stop_if_asked: called at every call; what it raises goes up.
    """

    def __init__(self, stop_if_asked: Callable[[], None]):
        self.stop_if_asked = stop_if_asked

    def __call__(self, n: float) -> None:
        """So many more are done. Raises what `stop_if_asked` raises."""
        self.advance(n)
        self.stop_if_asked()

    def advance(self, n: float) -> None:
        """So many more are done."""


class Ticker(Uncounted):
    """Shows how much is done: a bar on a terminal, and a log line a minute everywhere.

    Args:
      total: how much there is. unit: of what.
      stop_if_asked: called at every call; what it raises goes up.
    """

    def __init__(self, total: float, unit: str, stop_if_asked: Callable[[], None]):
        super().__init__(stop_if_asked)
        self.total, self.unit = total, unit
        self.due, self.began = Throttle(60), time.monotonic()
        self.done = self.done_here = 0.0  # the bar counts on a terminal only
        self.lock = threading.Lock()
        self.bar = tqdm(
            total=total, unit=unit, disable=None, dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def found(self, n: float) -> None:
        """So many were done before this began."""
        self.done += n
        self.bar.update(n)

    def advance(self, n: float) -> None:
        """So many more are done."""
        with self.lock:
            self.done, self.done_here = self.done + n, self.done_here + n
            self.bar.update(n)
            if self.due() and self.done_here > 0:
                left = (time.monotonic() - self.began) * (self.total - self.done) / self.done_here
                log.info("%.0f of %d %ss, about %.0f min left", self.done, self.total, self.unit, left / 60)
