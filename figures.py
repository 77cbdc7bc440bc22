"""Figures of stored results.

    python figures.py <working directory> [more directories] [--out DIR] [--paper]

The flags of a directory define its kind (a training run, an attack, a radius, ...) and so its figures. Directories of
one kind share figures; curves are named after the flags in which they differ. With --paper it draws the figures of
arXiv 1906.05890, and lists what is missing.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, Ctrl-C prints no traceback
sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

from flags.command_line import on_directories
from reporting.drawing import build, draw
from reporting.flatness import plot_surface, view_of
from reporting.kinds import read

__all__ = ["build", "draw", "main", "plot_surface", "read", "view_of"]


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status."""

    def show(directories: list[str], out: str | None, paper: bool) -> None:
        for files in draw(directories, out, of_paper=paper, say=print).values():
            print(*files)

    about = "Draw stored results."
    place = ("DIR", "figures in the directory; of several, ./figures")
    switches = {"paper": "the figures 1, 3 and 5 to 8 of arXiv 1906.05890, as far as the runs allow"}
    return on_directories(argv, "figures.py", about, place, show, switches)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
