"""From the words of a command line to flags. No TensorFlow here."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

from attacks import registry
from errors import UserError, nearest
from flags import table
from flags.table import ALIASES, BY_NAME, FLAGS, complete, flatten, nest
from flags.values import boolean, from_text, shown
from screen import give_streams, one_line, silence_stdout

PATHS = ("dataset", "data_dir", "logs_dir", "resume", "load_dir", "random_labels", "measured_experiment")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are users' mistakes like all others."""

    def error(self, message):
        raise UserError(message)


def command_line(argv: list[str], flags: dict, about: str = "", prog: str = "") -> dict:
    """A script's flags with those of the command line over them, complete.

    Args:
      argv: the words after the script's name. An attack and a measurement take a directory as first word.
      flags: the script's dict; its `task` says how the words are read.
      about: the script's docstring, for --help. prog: how --help calls the script.

    Raises: UserError.
    """
    task = flags.get("task", "train")
    if task == "attack":
        return _of_an_attack(argv, flags, about, prog)
    if task in table.MEASUREMENTS:
        return _of_a_measurement(argv, flags, about, prog)
    return _read(argv, flags, about, prog)


def _typed(argv: list[str]) -> list[str]:
    """The names of the flags among the words of a command line."""
    names = (word.split("=")[0].removeprefix("--") for word in argv if word.startswith("--"))
    return [name for name in (ALIASES.get(name, name) for name in names) if name in BY_NAME]


def _parser(script: dict, about: str, prog: str) -> Parser:
    """A parser of all flags. Its help shows the script's values."""
    parser = Parser(
        prog=prog, description=about, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--help", "-h", action="help", help="show this and exit")
    values = flatten(script)
    for section in table.SECTIONS:
        group = parser.add_argument_group(section.title)
        for flag in section.flags:
            help_text = f"{flag.help} [{shown(values[flag.name])}]".replace("%", "%%")
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if flag.check is boolean else {}
            names = [flag.name, *(old for old, new in ALIASES.items() if new == flag.name)]
            group.add_argument(
                *(f"--{name}" for name in names), dest=flag.name, metavar="VALUE", help=help_text, **bare
            )
    return parser


def _read(argv: list[str], flags: dict, about: str, prog: str) -> dict:
    """Words of the form --flag value, --flag=value, or --flag alone for true.

    With --resume the flags are those of that run, and only FREE_ON_RESUME may be given anew.
    """
    script = complete(flags)
    given, unknown = _parser(script, about, prog).parse_known_args(_with_negative_numbers(argv))
    if unknown:
        word = unknown[0].split("=")[0]
        if word.startswith("-"):
            raise UserError(f"no flag is named {word}{nearest(word, [f'--{name}' for name in BY_NAME])}")
        raise UserError(f"unexpected word {unknown[0]!r}; flags are given as --flag value")
    for name, word in vars(given).items():
        if not isinstance(word, str):  # --flag=-- : argparse takes the dashes for its own
            raise UserError(f"--{name}: expected one value")
    # A path stays what was typed, even one that reads like a number.
    changes = {name: word if name in PATHS else from_text(word) for name, word in vars(given).items()}
    if "resume" not in changes:
        full = complete(with_the_peeked_run(flatten(script) | changes, changes))
        _refuse_unread(full["task"], changes)
        return full
    before = flatten(table.stored(changes["resume"]))
    full = complete(before | changes)
    _refuse_unread(full["task"], changes)
    after = flatten(full)
    for flag in FLAGS:
        old, new = before[flag.name], after[flag.name]
        if flag.name not in table.FREE_ON_RESUME and old != new:
            raise UserError(
                f"--{flag.name} {shown(new)}: the run to resume has {shown(old)}; "
                f"of a resumed run only {', '.join(table.FREE_ON_RESUME)} may change"
            )
    return full


def _with_negative_numbers(argv: list[str]) -> list[str]:
    """['--flag', '-1e2'] as ['--flag=-1e2']: argparse takes the word for a flag."""
    joined: list[str] = []
    for word in argv:
        if re.match(r"-[.\d]", word) and joined and re.fullmatch(r"--[\w.]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _refuse_unread(task: str, typed: dict) -> None:
    """Raises: UserError for a flag that the task does not read."""
    for name in typed:
        tasks = table.TASKS_OF[name]
        if task not in tasks:
            raise UserError(f"--{name}: the task {task} does not read it (only {', '.join(tasks)})")


def with_the_peeked_run(flat: dict, typed: dict) -> dict:
    """Of the task train_peek: the flags with the run's network and data in the place of the script's.

    Raises: UserError for a typed flag that contradicts the run.
    """
    if flat.get("task") != "train_peek" or flat.get("load_dir") is None:
        return flat
    run = flatten(table.of_trained(flat["load_dir"]))
    checked = flatten(complete({name: value for name, value in flat.items() if name in BY_NAME}))
    for name in (name for name in run if name.split(".")[0] in table.OF_THE_PEEKED_RUN):
        if name in typed and checked[name] != run[name]:
            raise UserError(
                f"--{name} {shown(checked[name])}: the run {flat['load_dir']} has {shown(run[name])}; leave it out"
            )
        flat[name] = run[name]
    if flat.get("data_dir") is None:
        flat["data_dir"] = run["data_dir"]
    return flat


def _of_a_measurement(argv: list[str], flags: dict, about: str, prog: str) -> dict:
    """As `_read`. The first word may be the working directory to measure.

    Raises: UserError, also for a flag that comes from the run which is measured.
    """
    if argv and not argv[0].startswith("-"):
        argv = ["--load_dir", *argv]
    for name in _typed(argv):
        if name.split(".")[0] in table.OF_THE_RUN and name != "dataset":  # --dataset chooses the run
            raise UserError(f"--{name}: comes from the run that is measured; it cannot be changed")
    return _read(argv, flags, about, prog)


def _of_an_attack(argv: list[str], flags: dict, about: str, prog: str) -> dict:
    """The run's flags, and over them the script's and the command line's OF_AN_ATTACK.

    The first word is the working directory to attack. With --resume, which names the directory of the attack
    to go on with, there is no such word.
    """
    directory = None
    if argv and not argv[0].startswith("-"):
        directory, *argv = argv
    typed = _typed(argv)
    for name in typed:
        if name not in table.OF_AN_ATTACK:
            raise UserError(f"--{name}: comes from the working directory; of an attack it cannot be changed")
    run = {"dataset": "that of the run"}
    if directory is not None:
        stored = flatten(table.of_trained(directory))
        run = {name: value for name, value in stored.items() if name not in table.OF_AN_ATTACK}
        run |= {"data_dir": stored["data_dir"], "load_dir": directory}
    full = _read(argv, nest(run | flatten(flags)), about, prog)
    for name in typed:
        if registry.refuses(full["attack_method"], name):
            raise UserError(f"--{name}: {full['attack_method']} has no such setting; see --help")
    if full["resume"] is None and directory is None:
        raise UserError("which run? give its working directory, logs/<experiment>/<time>, as the first word")
    if full["resume"] is not None and directory is not None:
        raise UserError(f"unexpected word {directory!r}: --resume says already what to go on with")
    return full


def on_directories(
    argv: list[str],
    program: str,
    about: str,
    out: tuple[str, str],
    do: Callable[..., None],
    switches: dict[str, str] | None = None,
) -> int:
    """The command line of a program that looks at working directories: their paths, and --out.

    Args:
      argv: the words after the program's name.
      out: what --out takes, and what stands for it when it is not given.
      do: what to do with the directories and --out.
      switches: {name: meaning} of options without a value; `do` is given each as a keyword, true or false.

    Returns: the exit status: 0; 2 for a user's mistake, 130 for Ctrl-C, each said in one line.
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

    return exit_status(answer, "what is drawn is whole")


def refuse_empty(*paths: str | None) -> None:
    """Raises: UserError for a path that is an empty word."""
    if "" in paths:
        raise UserError("an empty word where a path is expected (a shell variable that is not set?)")


def exit_status(answer: Callable[[], None], when_the_disk_fails: str) -> int:
    """Do what a command line asks for, with one line for whatever ends it early.

    Args:
      when_the_disk_fails: what holds then of what was written.

    Returns: 0; 1 for an OSError, 2 for a UserError, 130 for Ctrl-C.
    """
    give_streams()
    try:
        answer()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        silence_stdout()
        print(f"error: {one_line(error.strerror or error)}; {when_the_disk_fails}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        return 130
    return 0
