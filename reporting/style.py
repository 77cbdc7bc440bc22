"""The style of all figures: sizes, colours, legends, axes, final layout.

A panel is about as wide as a column of a two-column paper (3.3 inches), its smallest letters have 7 points.
Curves differ in colour and in line style, so that they can be distinguished without colours. matplotlib is imported
when something is drawn.
"""

import itertools
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LN10 = math.log(10)
PANEL = (3.3, 2.3)  # inches
# Okabe and Ito's palette, distinct to the colour-blind; without its yellow, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (3, 1, 1, 1, 1, 1)))
STYLE = Path(__file__).with_name("figures.mplstyle")
DPI = 200  # of a PNG; in a PDF, of the parts that have too many points for vectors: RASTER_DPI
RASTER_DPI = 400
COLUMNS_PER_INCH = 300  # a curve of more points is thinned to what this resolution shows
LETTERS_PER_INCH = 16  # of a legend, about
MOST_NAMED = 8  # curves in a legend, of an ordered series of more


def blank(width: float, height: float, heading: str) -> "Figure":
    """Return an empty figure of this size in inches, with a canvas, outside global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.suptitle(wrapped(heading, width))
    return figure


def panels(n_rows: int, n_columns: int, heading: str, width: float = 1, **options) -> tuple["Figure", Any]:
    figure = blank(width * n_columns * PANEL[0], n_rows * PANEL[1] + 0.25, heading)
    return figure, figure.subplots(n_rows, n_columns, **options)


def cycle(n: int) -> list[dict]:
    """Return n different line styles (up to 35)."""
    pairs = zip(itertools.cycle(COLOURS), itertools.cycle(DASHES), strict=False)
    return [{"color": colour, "linestyle": dash} for colour, dash in itertools.islice(pairs, n)]


def series(labels: list[str], in_order: bool = True) -> list[dict]:
    """Return one style per label; many in an order are shaded from dark to light. At most eight are named."""
    styles = cycle(len(labels))
    if in_order and len(labels) > len(COLOURS):
        from matplotlib import colormaps

        shades = colormaps["cividis"](np.linspace(0, 0.85, len(labels)))
        styles = [{"color": shade, "linestyle": "-"} for shade in shades]
    named = set(np.linspace(0, len(labels) - 1, min(len(labels), MOST_NAMED)).round().astype(int))
    return [style | {"label": labels[k] if k in named else None} for k, style in enumerate(styles)]


def wrapped(text: str, inches: float, beside: int = 6) -> str:
    """Wrap text to this width in inches, with room for a legend's handle, or `beside` letters."""
    return textwrap.fill(text, int(LETTERS_PER_INCH * inches) - beside)


def with_legend(figure: "Figure", axes: "Axes") -> "Figure":
    """Add a legend of `axes` above all panels, where it covers no data; none for a single curve."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        names = [wrapped(label, figure.get_figwidth()) for label in unique]
        heading = figure.get_suptitle()
        figure.suptitle("")  # else the legend would lie on it
        for rows in range(1, len(names) + 1):
            legend = figure.legend(
                unique.values(), names, loc="outside upper center", title=heading,
                ncols=math.ceil(len(names) / rows),
            )  # fmt: skip
            box = legend.get_window_extent()
            if box.width <= 0.97 * figure.bbox.width or rows == len(names):
                break
            legend.remove()
        # The panels keep their height; figures have room for a heading and one row.
        figure.set_figheight(figure.get_figheight() + max(0, box.height / figure.dpi - 0.4))
    return figure


# Labels with formulas, and how a screen reader says them. Other texts are not parsed: a name may contain a $.
MARGIN, MARGIN2 = r"$\bar q_{\min} = q_{\min} / \rho^L$", r"$q_{\min} / (\rho_1 \cdots \rho_L)$"
FORMULAS = {
    f"normalized margin\n{MARGIN}": "normalized margin q_min / rho^L",
    f"normalized margin\n{MARGIN2}": "normalized margin q_min / (rho_1 ... rho_L)",
    r"$1 - \bar q_{\min} / \bar q_{\mathrm{SVM}}$": "1 - the normalized margin / that of the hard-margin SVM",
    r"norm of a layer $\rho_k$": "norm of a layer rho_k",
    r"growth of $\rho_k^2$": "growth of rho_k squared",
}


def finish(figure: "Figure") -> None:
    """Thin the curves, mark single points, format ticks, parse FORMULAS, say which curves coincide, and lay out the
    panels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

    class Scalar(ScalarFormatter):
        def get_offset(self):
            power = super().get_offset().replace("\N{MINUS SIGN}", "-").removeprefix("1e")
            return f"×{power_of_ten(int(power))}" if power.lstrip("-").isdigit() else power

    for axes in figure.axes:
        for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
            low, high = sorted(axis.get_view_interval())
            axis.label.set_parse_math(axis.get_label_text() in FORMULAS)
            if scale == "log":
                plain = low >= 1e-3 and high <= 3e4  # else all of this axis are powers
                axis.set_major_formatter(FuncFormatter(lambda value, _, plain=plain: in_powers(value, plain)))
                axis.set_minor_formatter(NullFormatter())
                if high < 100 * low:
                    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            elif type(axis.get_major_formatter()) is ScalarFormatter:
                axis.set_major_formatter(Scalar())
        for line in axes.lines:
            if line.get_marker() in (None, "None", "") and np.isfinite(line.get_xydata()).all(1).sum() == 1:
                line.set_marker("o")  # else it would not be seen
    thin(figure)
    for axes in figure.axes:
        for names in coinciding(axes):
            which = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
            said = wrapped(f"(the curves of {which} coincide)", PANEL[0])
            axes.set_xlabel("\n".join(filter(None, [axes.get_xlabel(), said])))
    figure.draw_without_rendering()  # once; every format would do it again
    figure.set_layout_engine("none")


def power_of_ten(exponent: int) -> str:
    """Return '10⁻⁶' for -6."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def in_powers(value: float, plain: bool) -> str:
    """Return a tick of a logarithmic axis: '0.01', '20'; where `plain` is false '10⁻⁶', '5×10⁻⁷', also '10⁰'."""
    if plain or not value > 0:
        return f"{value:.10g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = f"{value / 10.0**exponent:.3g}"
    return ("" if mantissa == "1" else f"{mantissa}×") + power_of_ten(exponent)


def coinciding(axes: "Axes") -> list[list[str]]:
    """Return groups of named curves that coincide: nowhere a point (1/72 inch) from the first of them."""
    groups: list[tuple[Any, list[str]]] = []
    for line in axes.lines:
        points = axes.transData.transform(line.get_xydata())
        x, y = points[np.isfinite(points).all(axis=1)].T
        if str(line.get_label()).startswith("_") or len(x) <= 4:
            continue
        for (first_x, first_y), names in groups:
            apart = np.abs(np.interp(x, first_x, first_y) - y).max(), np.abs(x[[0, -1]] - first_x[[0, -1]]).max()
            if max(apart) < axes.figure.dpi / 72:
                names.append(str(line.get_label()))
                break
        else:
            groups.append(((x, y), [str(line.get_label())]))
    return [names for _, names in groups if len(names) > 1]


def legend_below(axes: "Axes", dashes: dict[str, Any] | None = None) -> None:
    """Add a legend below a panel, where it covers no curve: of its curves, or of these dashes, {name: line style}."""
    from matplotlib.lines import Line2D

    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if dashes is not None:
        handles = {name: Line2D([], [], color="0.3", linestyle=dash) for name, dash in dashes.items()}
    if handles:
        axes.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2)


def thin(figure: "Figure") -> None:
    """Remove invisible points of long curves: in each column of 1/300 inch, keep the first, the last, the
    highest and the lowest point."""
    for axes in figure.axes:
        axes.autoscale_view()
        width = axes.get_window_extent().width / figure.dpi * COLUMNS_PER_INCH
        for line in axes.lines:
            xy = np.asarray(line.get_xydata())
            if len(xy) > 4 * width:
                place = axes.transAxes.inverted().transform(axes.transData.transform(xy))
                keep = visible(np.floor(width * place[:, 0]), place[:, 1])
                line.set_data(*xy[keep].T)


def visible(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the indices, ascending, of the first, last, highest and lowest point of each stretch in one column.

    Args:
      columns: of each point, [n]; y: its height, [n].
    """
    starts = np.concatenate([[0], np.flatnonzero(np.diff(columns)) + 1])
    stretch = np.repeat(np.arange(len(starts)), np.diff([*starts, len(y)]))
    by_height = np.lexsort((np.where(np.isfinite(y), y, 0), stretch))
    ends = np.concatenate([starts[1:], [len(y)]]) - 1
    return np.unique(np.concatenate([starts, ends, by_height[starts], by_height[ends]]))


# Axes


def epochs_by_decade(axes: "Axes") -> None:
    axes.set_xscale("log")
    axes.margins(x=0.01)
    axes.set_xlabel("epoch")


def show_the_rise(axes: "Axes") -> None:
    """Start the margin's axis near 0: until all examples are classified correctly the margin is negative, and
    its size would hide the rise."""
    bottom, top = axes.dataLim.intervaly
    axes.axhline(0, color="0.4", linewidth=0.6, zorder=1)
    if not 0 < top < math.inf:
        return
    lowest = max(1.05 * bottom, -0.08 * top) if bottom < 0 else 0
    axes.set_ylim(lowest, 1.05 * top)
    curves = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    hidden = [line.get_label() for line in curves if np.nanmax(line.get_ydata(), initial=-np.inf) < lowest]
    if hidden:
        which = "; ".join(hidden) if len(hidden) <= 2 else f"{len(hidden)} other curves"
        said = wrapped(f"below what is shown: {which}", 0.9 * PANEL[0])
        axes.text(0.02, 0.97, said, transform=axes.transAxes, va="top", fontsize=7)  # where no curve rises


def loss_axis(axes: "Axes") -> None:
    """Format x as log10 of the training loss, decreasing to the right; below -1 on a logarithmic scale."""
    low, high = axes.dataLim.intervalx
    if low < -3:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        steps = (1, 2, 3, 4, 5) if low > -6 else (1, 2, 5) if low > -50 else (1, 3)
        ticks = [k * 10**n for n in range(4) for k in steps]
        ticks = [tick for tick in (*ticks, 0, *(-tick for tick in ticks)) if low <= tick <= high]
        axes.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
        minor = [-k * 10**n for n in range(4) for k in range(2, 10) if -k * 10**n >= low]
        axes.set_xticks([tick for tick in minor if tick not in ticks], minor=True)
    elif high - low < 0.1:  # a single epoch, or one that hardly moved: nothing a tick could tell apart
        axes.set_xlim(low - 0.5, high + 0.5)
    axes.margins(x=0.01)
    axes.xaxis.set_inverted(True)
    axes.set_xlabel("log₁₀ training loss")
