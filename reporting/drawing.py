"""Draws working directories into figures and files."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reporting import paper, style
from reporting.kinds import KINDS, read
from reporting.runs import Run, groups, label
from support.errors import UserError, reason
from support.files import replace_atomically
from support.screen import with_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_figures(runs: list[Run]) -> dict[str, "Figure"]:
    """Return the figures of runs; runs of one kind share figures.

    Args:
      runs: as `kinds.read` gives them, in the order of their curves; they get their labels here.

    Returns: {name: matplotlib Figure}, each with an Agg canvas and outside pyplot.
    """
    import matplotlib

    with matplotlib.rc_context(fname=style.STYLE):
        made: dict = {}
        for kind, own in groups(runs, lambda run: run.kind).items():
            label(own)
            if kind == "train":  # an imported network has no course of training
                own = [run for run in own if any(run.raw)]
            made |= {} if not own else {name: figure.draw(own) for name, figure in KINDS[kind].figures.items()}
        made = {name: figure for name, figure in made.items() if figure is not None}
        for figure in made.values():
            style.finish(figure)
    return made


def build(directories: Iterable[Path | str]) -> dict[str, "Figure"]:
    """Return the figures of working directories, by name. Raises as `kinds.read`."""
    return make_figures(read(directories))


def draw(
    directories: Iterable[Path | str],
    out: Path | str | None = None,
    formats: tuple[str, ...] = ("png", "pdf"),
    of_paper: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, list[Path]]:
    """Draw working directories into files.

    Args:
      directories: as in `kinds.read`.
      out: a directory, made if it is not there; None: `figures` in the directory, and of several
        directories `figures` in the current one.
      formats: suffixes that matplotlib knows.
      of_paper: draw the paper's figures instead (`reporting.paper`). say: called with each thing that they lack.

    Returns: {name of a figure: its files}. All are rendered before the first is written, and each
      replaces an older one atomically.

    Raises: UserError as `kinds.read`, and when the files cannot be written.
    """
    import matplotlib

    paths = list(dict.fromkeys(Path(d).resolve() for d in directories))
    runs = read(paths)
    out = Path(out) if out is not None else paths[0] / "figures" if len(paths) == 1 else Path("figures")
    with _writing_into(out):  # an unwritable place is reported now, not after seconds of drawing
        there = next(place for place in (out, *out.resolve().parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
    contents = {}
    with matplotlib.rc_context(fname=style.STYLE):
        made = _of_paper(runs, say) if of_paper else make_figures(runs)
        for name, figure in with_bar(made.items(), "figures"):
            for suffix in formats:
                contents[name, suffix] = _rendered(figure, suffix)
    if not contents:
        raise UserError(f"{paths[0]}: an imported network, which has no course of training to draw; see report.py")
    files: dict[str, list[Path]] = {}
    with _writing_into(out):
        out.mkdir(parents=True, exist_ok=True)
        for (name, suffix), content in contents.items():
            files.setdefault(name, []).append(out / f"{name}.{suffix}")
            replace_atomically(files[name][-1], lambda file, content=content: file.write(content))
    return files


def _of_paper(runs: list[Run], say: Callable[[str], None]) -> dict[str, "Figure"]:
    """Return `paper.make_figures`, laid out. Raises: UserError when nothing can be drawn."""
    made, missing = paper.make_figures(runs)
    for line in missing:
        say(line)
    if not made:
        raise UserError(
            "--paper: none of the paper's figures can be drawn from these; give training runs or L2 attacks"
        )
    for figure in made.values():
        style.finish(figure)
    return made


@contextlib.contextmanager
def _writing_into(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write figures into {out}: {reason(error)}; make the place writable or choose another with --out"
        ) from None


def _rendered(figure: "Figure", suffix: str) -> bytes:
    """Return the content of the figure's file; equal figures give equal bytes."""
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    file = io.BytesIO()
    dpi = style.DPI if suffix == "png" else style.RASTER_DPI
    figure.savefig(file, format=suffix, dpi=dpi, metadata=undated.get(suffix))
    return file.getvalue()
