"""The parts of the report's tables: plain values that `page.html` shows."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reporting import style
from reporting.runs import Run, plain


@dataclass(frozen=True)
class Number:
    """A number as displayed, and with all its digits."""

    text: str
    value: str


@dataclass(frozen=True)
class Code:
    """Text as typed."""

    text: str


@dataclass(frozen=True)
class Soft:
    """Secondary text."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
      rows: of cells. A cell is None, text, a Number, Code or Soft, an Entry (shown as a link to it), or a list of
        these.
      entries: the runs whose commands are listed below.
    """

    caption: str
    head: list[Any]
    rows: list[list[Any]]
    entries: Sequence["Entry"] = ()


@dataclass(frozen=True)
class Entry:
    """A run in the report, with its number."""

    n: int
    run: Run

    @property
    def title(self) -> str:
        """Its number and its experiment."""
        return f"{self.n}: {self.run.about.get('experiment', 'unnamed')}"

    @property
    def command(self) -> str:
        """The command that made it, with the interpreter that a script needs."""
        command = str(self.run.about.get("command", "not recorded"))
        try:
            is_script = shlex.split(command)[0].endswith(".py")
        except (ValueError, IndexError):  # a quotation without an end; no word at all
            is_script = False
        return f"python {command}" if is_script else command

    @property
    def flags(self) -> dict[str, str]:
        """{name: value as it is typed}."""
        return {name: plain(value) for name, value in self.run.flags.items()}


def compared(caption: str, head: list[Any], rows: list[list[Any]], entries: Sequence[Entry] = ()) -> Table:
    """Return a table with one row per run; of a single run, with one row per number."""
    if len(rows) > 1:
        return Table(caption, head, rows, entries)
    return Table(
        caption, ["number", rows[0][0]], [list(pair) for pair in zip(head[1:], rows[0][1:], strict=True)], entries
    )


def number(value: float | None, shown: str = ".5g") -> Number | None:
    """Return a number in a format; None for none."""
    if value is None:
        return None
    if isinstance(value, int):
        return Number(str(value), str(value))
    return Number(format(value, shown), repr(float(value)))


def percent(part: float | None) -> Number | None:
    """Return a fraction in percent."""
    return None if part is None else Number(f"{part:.2%}", repr(float(part)))


def plus_minus(mean: float, sd: float) -> list:
    """Return 'mean ± standard deviation'."""
    return [number(mean, ".4f"), " ± ", number(sd, ".4f")]


def power(value: float, log_unit: float) -> str:
    """Return value * exp(log_unit) in scientific notation, even far below the smallest float: '1.234e-803'."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    log10 = math.log10(abs(value)) + log_unit / style.LN10
    exponent = math.floor(log10)
    mantissa = round(10 ** (log10 - exponent), 3)
    if mantissa == 10:
        mantissa, exponent = 1.0, exponent + 1
    return f"{'-' if value < 0 else ''}{mantissa:.3f}e{exponent:+03d}"
