"""The commands ./run.sh and ./eval.sh: they find a script and run it; signals and exit statuses.

A script's last line calls `main`. The exit status is 0 on success, 1 when the run or the disk failed, 2 for a
user's mistake, 130 or 143 when stopped by Ctrl-C or SIGTERM.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, Ctrl-C prints no traceback

import ast
import contextlib
import logging
import os
import runpy
import sys
import threading
from pathlib import Path

sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

import core
from reporting import drawing, kinds
from storage.run_flags import of_command_line, stored
from support.errors import Stopped, TrainingDiverged, UserError, nearest, reason
from support.files import ROOT
from support.screen import Screen, give_streams, log, logging_to, print_error, shown_path, silence_stdout

PATTERNS = {"run": ("exper-*.py", "make_*.py", "train_*.py", "measure_*.py"), "eval": ("eval-*.py",)}
KINDS = {"run": "experiment", "eval": "attack"}
GROUPS = (  # of the listing: (heading, beginnings of names)
    ("Minutes, on bundled data", ("exper-quick-",)),
    ("Margins (arXiv 1906.05890), MNIST", ("exper-final-mnist-",)),
    ("Margins (arXiv 1906.05890), CIFAR-10", ("exper-final-cifar-",)),
    (
        "Flatness (arXiv 1801.02254): train, measure, draw",
        ("train_", "make_random_labels", "make_points_", "measure_radius_"),
    ),
    ("Any trained or imported network", ("measure_", "make_surface")),
    (
        "Attacks on training images",
        ("eval-final-mnist-l", "eval-final-mnist-inf", "eval-final-mnist-apgd", "eval-final-cifar-l2"),
    ),
    ("Attacks on test images", ("eval-final-mnist-test-", "eval-final-cifar-test-")),
    ("Others", ("",)),
)


# The end of a script


def main(
    script: str, flags: dict, about: str | None = None, words: list[str] | None = None, prog: str | None = None
) -> None:
    """Parse the command line, run the task, draw its figures, exit.

    Args:
      script: the script's __file__; its name is the experiment's.
      flags: the script's flags.
      about: its docstring.
      words: of the command line; None: those after the program's name. prog: starts the usage line of --help.
    """
    name = Path(script).stem
    give_streams()
    if not log.handlers:
        log.addHandler(Screen())
        log.propagate = False
    log.setLevel(logging.INFO)
    attacks = flags.get("task") == "attack"
    usual = f"./eval.sh {name} <working directory>" if attacks else f"./run.sh {name}"
    try:
        full = of_command_line(sys.argv[1:] if words is None else words, flags, about or "", prog or usual)
        with Signals() as signals:
            path = core.Core(full, name, signals.update).run()
        if full["figures"]:
            draw_figures(path)
        status = 0
    except UserError as error:
        status = _complain(f"error: {error}", 2)
    except TrainingDiverged as error:
        status = _complain(f"error: {error}; everything up to the last accepted epoch is saved", 1)
    except Stopped as error:
        status = 128 + error.number
        # A thread of a unit may compute for a minute before it ends, and Python would wait for it. It writes nothing.
        if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
            with contextlib.suppress(OSError, ValueError):
                logging.shutdown()
                sys.stdout.flush()
            os._exit(status)
    except KeyboardInterrupt:
        status = _complain("interrupted before the work began", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _complain(f"error: {where}{reason(error)}; what was saved before is untouched", 1)
    sys.exit(status)


class Signals:
    """Context manager: Ctrl-C, SIGTERM and SIGHUP end the task between two pieces of work; a second one acts now.

    Until the task first calls `update`, just before it creates its directory, a signal acts immediately.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.watched = False

    def update(self, fraction: float) -> None:
        """Raises: Stopped after a signal."""
        self.watched = True
        if self.number is not None:
            raise Stopped(self.number)

    def _note(self, number, frame):
        if self.number is not None or not self.watched:
            if number == signal.SIGINT and self.number is None:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.number = number
        print_error("stopping within seconds; press Ctrl-C again to force quit")

    def __enter__(self):
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
            numbers.pop()
        self.before = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def draw_figures(path: Path) -> None:
    """Draw a finished run's figures into its directory. An error here does not affect the results.

    Raises: Stopped for Ctrl-C.
    """
    try:
        if not path.is_dir() or stored(path)["task"] not in kinds.TASKS_WITH_FIGURES:
            return
        with logging_to(path / "stdout"):
            drawing.draw([path])
            log.info("figures in %s", shown_path(path / "figures"))
    except KeyboardInterrupt:
        _complain("stopped while drawing; the results are saved", 130)
        raise Stopped(signal.SIGINT) from None
    except Exception as error:
        _complain(
            f"warning: no figures ({type(error).__name__}: {error}); the results are saved; "
            f"draw them with: python figures.py {shown_path(path)}",
            0,
        )


def _complain(message: str, status: int) -> int:
    print_error(message)
    return status


# From a name to a script


def scripts(command: str) -> dict[str, Path]:
    """Return {name: path} of the scripts that a command runs."""
    paths = (path for pattern in PATTERNS[command] for path in ROOT.glob(pattern))
    return {path.stem: path for path in sorted(paths)}


def listing(command: str) -> str:
    """Return one line per script, with the first line of its docstring."""
    kind, known = KINDS[command], scripts(command)
    words = "[--flag value ...]" if command == "run" else "<working directory> [--flag value ...]"
    lines = [f"usage: ./{command}.sh <{kind}> {words}"]
    lines += [f"       ./{command}.sh <{kind}> --help lists the flags"]
    width, left = max(map(len, known), default=0), dict(known)
    for heading, beginnings in GROUPS:
        own = [name for name in left if name.startswith(beginnings)]
        lines += ["", heading, *(f"  {name:{width}}  {_about(left.pop(name))}" for name in own)] if own else []
    return "\n".join(lines)


def _about(script: Path) -> str:
    """Return the first line of a script's docstring, or why there is none."""
    try:
        return (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n")[0]
    except (OSError, SyntaxError, ValueError) as error:
        return f"(cannot be read: {type(error).__name__}: {reason(error)})"


def start(command: str, *words: str) -> None:
    """Run the script that the first word names with the other words; without words, list the scripts."""
    if not words or words[0] in ("-h", "--help"):
        try:
            print(listing(command), flush=True)
        except OSError:  # | head -1
            silence_stdout()
        return
    name, *rest = words
    known = scripts(command)
    script = known.get(name.removesuffix(".py"))
    if script is None:
        hint = f"{nearest(name, known)} (./{command}.sh alone lists them)"
        sys.exit(_complain(f"error: no {KINDS[command]} is named {name}{hint}", 2))
    sys.argv = [str(script), *rest]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    start(*sys.argv[1:])
