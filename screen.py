"""What a run says, on the screen and in its file: the log, and results on one line each."""

import logging
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("margin")


def shown_path(path: Path) -> str:
    """A path as the user would type it from where he stands."""
    path, here = path.resolve(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def stats_line(stats: dict) -> str:
    if "acc" not in stats:  # an epoch between two evaluations (stats_every)
        return f"log10_loss={stats['log_loss'] / math.log(10):.4f}"
    return (
        f"log10_loss={stats['log_loss'] / math.log(10):.4f} acc={stats['acc']:.2%} "
        f"test_loss={stats['test_loss']:.4g} test_acc={stats['test_acc']:.2%} "
        f"q_bar_min={stats['q_bar_min']:.4e} q_bar2_min={stats['q_bar2_min']:.4e}"
    )


def epoch_line(info: dict) -> str:
    """One accepted epoch on one line."""
    return (
        f"epoch #{info['eid']} (lr={info['lr']:.1e} log_frame={info['log_frame']:.2f}): "
        f"rt_loss={info['rt_loss']:.4f} {stats_line(info['stats'])} "
        f"[time={info['time']:.2f}s, attempts={info['stats']['attempts']}]"
    )


def summary_line(summary: dict, linf: bool) -> str:
    """One attacked epoch on one line."""
    robust = " ".join(f"{eps}:{part:.2%}" for eps, part in summary["robust_acc"].items())
    distance = "eps" if linf else "L2"
    bracket = "" if linf else f" certified_median={summary['certified_median']:.4g}"
    return (
        f"success={summary['success']:.2%} clean_acc={summary['clean_acc']:.2%} "
        f"median_{distance}={summary['median']:.4f} mean_{distance}={summary['mean']:.4f}{bracket} "
        f"robust_acc {robust}"
    )


def summary_table(summaries: dict[int, dict], linf: bool) -> list[str]:
    """Epochs, normalized margins, and medians of certified bound and distance, a line each."""
    lines = [f"{'epoch':>8} {'log10_loss':>12} {'q_bar_min':>12} {'certified':>10} {'median':>8} {'mean':>8}"]
    for eid, s in summaries.items():
        log10_loss = "-" if s["log_loss"] is None else f"{s['log_loss'] / math.log(10):.4f}"
        q_bar_min = "-" if s["q_bar_min"] is None else f"{s['q_bar_min']:.4e}"
        certified = "-" if linf else f"{s['certified_median']:.4g}"
        lines.append(
            f"{eid:8d} {log10_loss:>12} {q_bar_min:>12} {certified:>10} {s['median']:8.4f} {s['mean']:8.4f}"
        )
    return lines


class Screen(logging.Handler):
    """Log lines on stdout, without tearing a progress bar that stands on the terminal."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()

    def handleError(self, record):
        raise  # a full disk behind stdout must be seen, not printed over


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


class Ticker:
    """Shows how much is done: on a terminal a bar, and everywhere a line a minute.

    Args:
      total: how much there is. unit: of what. look_up: called at every tick; what it raises goes up.
    """

    def __init__(self, total: int, unit: str, look_up: Callable[[], None]):
        self.look_up, self.unit = look_up, unit
        self.due, self.began = Throttle(60), time.monotonic()
        self.done = self.done_here = 0.0  # off a terminal the bar does not count
        self.bar = tqdm(
            total=total, unit=unit, disable=None, dynamic_ncols=True,
            bar_format="{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def found(self, n: int) -> None:
        """So many were done already when this began."""
        self.done += n
        self.bar.update(n)

    def __call__(self, n: float) -> None:
        """So many more are done, in parts of one."""
        self.done, self.done_here = self.done + n, self.done_here + n
        self.bar.update(n)
        if self.due() and self.done_here > 0:
            left = (time.monotonic() - self.began) * (self.bar.total - self.done) / self.done_here
            log.info("%.0f of %d %ss, about %.0f min left", self.done, self.bar.total, self.unit, left / 60)
        self.look_up()
