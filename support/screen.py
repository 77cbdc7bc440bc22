"""The log, on stdout and in a file, and progress."""

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from support.errors import reason
from support.files import open_for_writing

log = logging.getLogger("margin")

# The one progress callback: called about once per second with the completed fraction, 0 to 1. It may raise `Stopped`.
Update = Callable[[float], None]


def ignore(fraction: float) -> None:
    """Do nothing: an `Update`."""


def within(update: Update, low: float, high: float) -> Update:
    """Return the callback of a stage that makes up the fractions from `low` to `high` of the whole."""
    return lambda fraction: update(low + (high - low) * fraction)


def shown_path(path: Path) -> str:
    """Return a path as the user would type it in the current directory."""
    path = path.resolve()
    with contextlib.suppress(OSError, ValueError):  # the current directory is deleted, or is another one
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def one_line(message: object) -> str:
    """Return a message on one line, whatever characters its values contain."""
    text = str(message).encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "\\n").replace("\r", "\\r")


def give_streams() -> None:
    """Replace a closed stdout or stderr by the null device; escape what their encoding lacks.

    Ctrl-C, which entry points leave to the system while they import, raises KeyboardInterrupt from here on.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open for the rest of the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_error(message: object) -> None:
    """Print one line on stderr; do nothing where that fails. Signal handlers call it.

    It fails when nobody reads stderr any more, or when a handler interrupts another write to it.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(one_line(message), file=sys.stderr, flush=True)


def silence_stdout() -> None:
    """Send stdout to the null device, once it is closed or full. Otherwise Python reports an error at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def with_bar(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Iterate, on a terminal with a progress bar; without tqdm, without one."""
    try:
        from tqdm import tqdm
    except ImportError:  # figures need no more than NumPy and matplotlib
        return items
    return tqdm(items, desc=what, leave=False, disable=None)


class Screen(logging.Handler):
    """Write log lines to stdout without tearing a progress bar on the terminal.

    On a terminal, a record with an attribute `short` is that text, or nothing if it is empty. When stdout cannot be
    written, warn once and keep running: the file `stdout` in the directory is complete.
    """

    def emit(self, record):
        from tqdm import tqdm

        try:
            short = getattr(record, "short", None) if sys.stdout.isatty() else None
            if short != "":
                tqdm.write(self.format(record) if short is None else short, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            silence_stdout()
            print_error(f"warning: stdout: {reason(error)}; the run continues, and its file stdout is complete")


class _File(logging.StreamHandler):
    def handleError(self, record):
        raise


class logging_to:
    """Context manager: copy log lines into a file, also where nothing has set the log's level."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        appended = open_for_writing(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.handler = _File(open(appended, "a", encoding="utf-8", errors="backslashreplace"))
        log.addHandler(self.handler)
        self.level = log.level
        log.setLevel(min(log.getEffectiveLevel(), logging.INFO))

    def __exit__(self, *exception):
        log.setLevel(self.level)
        log.removeHandler(self.handler)
        self.handler.stream.close()


class Throttle:
    """A callable that returns True at most once per interval, in seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        due = now - self.last >= self.seconds
        if due:
            self.last = now
        return due


class Progress:
    """Count the completed work of a task.

    Args:
      update: called at every check; what it raises propagates.
      total: how much work there is; None: unknown. `update` then gets the fraction of the current unit.
    """

    def __init__(self, update: Update = ignore, total: float | None = None):
        self.update, self.total, self.done = update, total, 0.0
        self._lock = threading.Lock()

    def check(self, fraction: float = 0.0) -> None:
        """Report progress; `fraction` is that of the current unit. Raises: what `update` raises."""
        self.update(min(self.done / self.total, 1.0) if self.total else fraction)

    def advance(self, n: float) -> None:
        """Advance by `n`. Never raises."""
        with self._lock:
            self.done += n


class Bar(Progress):
    """Show progress: a bar on a terminal, and one log line per minute everywhere. Use it in `with`.

    Args:
      total: how much work there is. unit: of what. update: as for `Progress`.
      found: how much of it was done earlier.
    """

    def __init__(self, total: float, unit: str, update: Update = ignore, found: float = 0.0):
        from tqdm import tqdm

        super().__init__(update, total)
        self.unit, self.due, self.began = unit, Throttle(60), time.monotonic()
        self.done = self.found = found
        self.bar = tqdm(
            total=total, initial=found, unit=unit, disable=None, dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def advance(self, n: float) -> None:
        super().advance(n)
        with self._lock:
            self.bar.update(n)
            done_here = self.done - self.found
            if self.due() and done_here > 0:
                left = (time.monotonic() - self.began) * (self.bar.total - self.done) / done_here
                log.info("%.0f of %d %ss, about %.0f min left", self.done, self.bar.total, self.unit, left / 60)
