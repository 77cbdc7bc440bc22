"""The report: an HTML page, from `page.html` and `page.css`."""

import base64
import io
import shlex
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from flags.table import DEFAULTS
from reporting import style
from reporting.drawing import make_figures
from reporting.kinds import KINDS, read
from reporting.runs import plain
from reporting.tables import Code, Entry, Number, Soft, Table
from storage.read import read_about
from support.errors import UserError, reason
from support.files import replace_atomically
from support.screen import with_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

TEXT_CURVES = 6  # of one panel, in a figure's alternative text


def write(directories: Iterable[Path | str], out: Path | str | None = None) -> Path:
    """Write the report on working directories.

    Args:
      out: the file; None: report.html in the first of directories.

    Returns: the file. An older one is replaced atomically.

    Raises: UserError as `page`, and when the file cannot be written.
    """
    directories = list(directories)
    path = Path(directories[0]) / "report.html" if out is None else Path(out)
    text = page(directories)
    try:
        replace_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
    except OSError as error:
        raise UserError(
            f"cannot write the report {path}: {reason(error)}; make the place writable or give another --out"
        ) from None
    return path


def page(directories: Iterable[Path | str]) -> str:
    """Return the report on working directories, an HTML document.

    Raises: UserError for a directory that is not a run, is damaged, is of a kind without figures, or has no results
      yet.
    """
    paths = list(dict.fromkeys(str(Path(d).resolve()) for d in directories))
    entries = [Entry(n, run) for n, run in enumerate(read(paths), 1)]
    for entry in entries:
        read_about(entry.run.path)  # without it the report could not say what ran
    sections = []
    for kind in with_bar(list(KINDS), "report"):
        own = [entry for entry in entries if entry.run.kind == kind]
        if own:
            sections.append(_section(kind, own))
    others = len(entries) - 1
    title = f"Report: {entries[0].run.about.get('experiment', 'unnamed')}"
    title += f" and {others} more run{'s' if others > 1 else ''}" if others else ""
    return _template().render(
        title=title,
        style=(Path(__file__).parent / "page.css").read_text(),
        sections=sections,
        articles=[_article(entry) for entry in entries],
        made=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        command=shlex.join(["python", "report.py", *paths]),
    )


@cache
def _template() -> jinja2.Template:
    """Return the template page.html. Its values are escaped, except style."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests |= {
        name: lambda cell, kind=kind: isinstance(cell, kind)
        for name, kind in {"a_number": Number, "code": Code, "soft": Soft, "entry": Entry}.items()
    } | {"a_list": lambda cell: isinstance(cell, list)}
    return environment.get_template("page.html")


def _section(kind: str, entries: list[Entry]) -> dict[str, Any]:
    """Return figures and tables of the runs of one kind, the most important first; `more`: whether some are left
    for the details. Drawing gives the runs their labels."""
    figures = [_figure(kind, *drawing) for drawing in make_figures([entry.run for entry in entries]).items()]
    tables = KINDS[kind].tables(entries)
    return {
        "id": kind,
        "heading": KINDS[kind].heading,
        "entries": entries,
        "figures": figures,
        "tables": tables,
        "more": len(figures) > 2 or len(tables) > 1,
    }


def word(text: str) -> str:
    """Return the text as a shell takes it, quoted where necessary."""
    quoted = shlex.quote(text)
    return quoted if quoted == text or set(text) & set('"$`\\!') else f'"{text}"'


def workers(about: dict[str, Any]) -> str:
    """Return the number and kind of workers that computed a result, in words."""
    cluster, threads = about.get("cluster"), (about.get("threads") or {}).get("threads")
    each = f", {threads} thread{'s' * (threads > 1)} each" if threads else ""
    if cluster is None:
        return f"one process{each.removesuffix(' each')}"
    return (f"{cluster} workers of one machine" if isinstance(cluster, int) else f"the workers of {cluster}") + each


def _article(entry: Entry) -> dict[str, Any]:
    """Return the metadata and flags of a run."""
    about, flags = entry.run.about, entry.flags
    defaults = {name: plain(value) for name, value in DEFAULTS.items()}
    data, versions = about.get("data") or {}, about.get("versions") or {}
    changed = {name: value for name, value in flags.items() if value != defaults.get(name)}
    facts = {
        "command": Code(entry.command),
        "directory": Code(str(entry.run.path.resolve())),
        "begun": about.get("began"),
        "flags": [part for name, value in changed.items() for part in (Code(f"--{name} {word(value)}"), " ")],
        "seed": flags["seed"],
        "git revision": Code(about["git"]) if about.get("git") else "not under git",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": about.get("machine"),
        "device": about.get("device"),
        "computed by": workers(about),
        "data": f"{flags['dataset']}: " + ", ".join(f"{name} {value}" for name, value in data.items()),
    }
    rows = [[Code(f"--{name}"), Code(value), Code(defaults.get(name, ""))] for name, value in flags.items()]
    table = Table(f"All flags of run {entry.n}", ["flag", "value", "default"], rows)
    return {"entry": entry, "facts": facts, "flags": table}


# Figures, as pictures and in words


def _figure(kind: str, name: str, figure: "Figure") -> dict[str, Any]:
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return {
        "name": name,
        "source": "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode(),
        "alternative": alternative_text(figure),
        "width": width,
        "height": height,
        "caption": KINDS[kind].figures[name].caption,
    }


def svg(figure: "Figure") -> bytes:
    """Return the figure as SVG, without references to other places; equal figures give equal bytes."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}, style.STYLE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=style.DPI, metadata=nothing)
    return file.getvalue()


def alternative_text(figure: "Figure") -> str:
    """Return the alternative text of a figure: the axes of each panel, and the ends of each curve."""
    panels = [panel(axes) for axes in figure.axes if axes.get_label() != "<colorbar>"]
    return ". ".join(panels) + "."


def panel(axes: "Axes") -> str:
    """Return the text of one panel."""
    x, y = axes.get_xlabel(), axes.get_ylabel()
    words = [spoken(axes.get_title())] if axes.get_title() else []
    if hasattr(axes, "get_zlim"):
        return ", ".join([*words, "a surface, seen from the side"])
    ticks = [] if x else [tick.get_text() for tick in axes.get_xticklabels()]
    against = f" against {spoken(x)}" if x else f" of {', '.join(map(spoken, ticks))}" if any(ticks) else ""
    words.append(f"{spoken(y)}{against}")
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1 and _of_data(line)]
    named = [line for line in lines if not str(line.get_label()).startswith("_")] or lines[: len(lines) == 1]
    texts = [course(line) for line in named[:TEXT_CURVES]]
    if len(named) > TEXT_CURVES:
        texts.append(f"and {len(named) - TEXT_CURVES} more curves")
    if not named:
        (x0, y0), (x1, y1) = axes.dataLim.get_points()
        texts = [f"{len(lines)} curves" if lines else "values"]
        texts[0] += f" between {y0:.4g} and {y1:.4g}" + (f", for {x0:.4g} to {x1:.4g}" if x else "")
    return f"{', '.join(words)}: {'; '.join(texts)}"


def _of_data(line: "Line2D") -> bool:
    """Return whether both coordinates of a line are data; those of a line that marks a level are not."""
    return all(line.get_transform().contains_branch_seperately(line.axes.transData))


def course(line: "Line2D") -> str:
    """Return the first and the last point of a curve, in words."""
    points = [point for point in zip(*line.get_data(), strict=True) if np.isfinite(point).all()]
    name = "the curve" if str(line.get_label()).startswith("_") else spoken(line.get_label())
    if not points:
        return f"{name} has no finite point"
    (x0, y0), (x1, y1) = points[0], points[-1]
    return f"{name} goes from {y0:.4g} at {x0:.4g} to {y1:.4g} at {x1:.4g}"


def spoken(text: str) -> str:
    """Return text of a figure on one line, for a screen reader."""
    return " ".join(style.FORMULAS.get(text, text).replace("log₁₀", "log10").split())
