"""Parsing of command lines."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

from catalogue.tasks import MEASUREMENTS
from flags.table import ALIASES, BY_NAME, PATHS, SECTIONS, complete, flatten
from flags.values import boolean, from_text, shown
from support.errors import UserError, nearest, reason
from support.screen import give_streams, print_error, silence_stdout


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError."""

    def error(self, message):
        raise UserError(message)


def command_line(argv: list[str], script: dict, about: str = "", prog: str = "") -> dict[str, Any]:
    """Return the flags that were typed, flat: {name: value}.

    Args:
      argv: the words after the script's name: --flag value, --flag=value, or --flag alone for true. Before them, an
        attack and a measurement take the working directory that they look at.
      script: the script's dict. about: its docstring, for --help. prog: how --help calls the script.

    Raises: UserError.
    """
    looks_at_a_run = script.get("task") in ("attack", *MEASUREMENTS)
    if looks_at_a_run and argv and not argv[0].startswith("-"):
        argv = [f"--load_dir={argv[0]}", *argv[1:]]
    given, unknown = _parser(complete(script), about, prog).parse_known_args(_with_negative_numbers(argv))
    if unknown:
        word = unknown[0].split("=")[0]
        if word.startswith("-"):
            raise UserError(f"no flag is named {word}{nearest(word, [f'--{name}' for name in BY_NAME])}")
        raise UserError(f"unexpected word {unknown[0]!r}; flags are given as --flag value")
    for name, word in vars(given).items():
        if not isinstance(word, str):  # --flag=-- : argparse consumes the dashes
            raise UserError(f"--{name}: expected one value")
    typed = {name: value_of(name, word) for name, word in vars(given).items()}
    if looks_at_a_run and typed.get("resume") and typed.get("load_dir"):
        raise UserError(f"unexpected word {typed['load_dir']!r}: --resume already says what to resume")
    return typed


def value_of(name: str, word: str) -> Any:
    """Return the value of a flag's word. A path stays as typed, even one like a number; `none` unsets it."""
    return word if name in PATHS and word != "none" else from_text(word)


def _parser(script: dict, about: str, prog: str) -> Parser:
    """Return a parser of all flags. Its help shows the script's values."""
    parser = Parser(
        prog=prog, description=about, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--help", "-h", action="help", help="show this and exit")
    values = flatten(script)
    for section in (section for section in SECTIONS if section.public):
        group = parser.add_argument_group(section.title)
        for flag in section.flags:
            help_text = f"{flag.help} [{shown(values[flag.name])}]".replace("%", "%%")
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if flag.check is boolean else {}
            names = [flag.name, *(old for old, new in ALIASES.items() if new == flag.name)]
            group.add_argument(
                *(f"--{name}" for name in names), dest=flag.name, metavar="VALUE", help=help_text, **bare
            )
    return parser


def _with_negative_numbers(argv: list[str]) -> list[str]:
    """Join ['--flag', '-1e2'] to ['--flag=-1e2']: argparse takes the word for a flag."""
    joined: list[str] = []
    for word in argv:
        if re.match(r"-[.\d]", word) and joined and re.fullmatch(r"--[\w.]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def on_directories(
    argv: list[str],
    program: str,
    about: str,
    out: tuple[str, str],
    do: Callable[..., None],
    switches: dict[str, str] | None = None,
) -> int:
    """Run a program that reads working directories: its command line has their paths, and --out.

    Args:
      argv: the words after the program's name.
      out: metavar and default of --out.
      do: called with the directories and --out.
      switches: {name: meaning} of options without a value; `do` gets each as a boolean keyword argument.

    Returns: the exit status: 0; 2 for a user's mistake, 130 for Ctrl-C, each reported in one line.
    """
    parser = Parser(prog=f"python {program}", description=about, allow_abbrev=False)
    parser.add_argument("directories", nargs="+", metavar="DIRECTORY", help="a working directory")
    parser.add_argument("--out", metavar=out[0], help=f"where to [{out[1]}]")
    for name, meaning in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)

    def answer() -> None:
        options = parser.parse_args(argv)
        refuse_empty(*options.directories, options.out)
        do(options.directories, options.out, **{name: getattr(options, name) for name in switches or {}})

    return exit_status(answer, "files that were written are complete")


def refuse_empty(*paths: str | None) -> None:
    """Raises: UserError for an empty path."""
    if "" in paths:
        raise UserError("an empty word where a path is expected (a shell variable that is not set?)")


def exit_status(answer: Callable[[], None], when_the_disk_fails: str) -> int:
    """Call `answer`, and report whatever ends it early in one line.

    Args:
      when_the_disk_fails: the state of the output after an OSError, in words.

    Returns: 0; 1 for an OSError, 2 for a UserError, 130 for Ctrl-C.
    """
    give_streams()
    try:
        answer()
        sys.stdout.flush()
    except UserError as error:
        print_error(f"error: {error}")
        return 2
    except OSError as error:
        silence_stdout()
        print_error(f"error: {reason(error)}; {when_the_disk_fails}")
        return 1
    except KeyboardInterrupt:
        print_error("interrupted; nothing is half-written")
        return 130
    return 0
