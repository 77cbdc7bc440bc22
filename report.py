"""One HTML page about a set of working directories: what ran, its figures, its numbers, its commands.

    python report.py <working directory> [more directories] [--out FILE]

The page is self-contained (figures are SVG inside it) and makes no network requests.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, Ctrl-C prints no traceback
sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

from flags.command_line import on_directories
from reporting.page import page, write

__all__ = ["main", "page", "write"]


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status."""

    def show(directories: list[str], out: str | None) -> None:
        path = write(directories, out)
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")

    about = "A page about stored results."
    return on_directories(argv, "report.py", about, ("FILE", "report.html in the first directory"), show)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
