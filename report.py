"""One HTML page about a set of working directories: what ran, its figures, its numbers, its commands.

    python report.py <working directory> [more directories] [--out FILE]

The page holds all that it shows (figures are inlined as SVG) and asks no network for anything. Neither
TensorFlow nor Core here: every number comes out of the working directories.
"""

import base64
import html
import io
import math
import re
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import figures
import flags as flag_table
import results
from results import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LN10 = math.log(10)

# HTML


class Html(str):
    """Text that is HTML already; everything else is escaped when it comes into an element."""


def el(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Its children, and whatever iterables of children hold, are escaped unless they are Html.

    Args:
      children: None stands for nothing.
      attributes: without a trailing _ ('class_'), and with - for _ ('aria_label').
    """
    words = [f'{key.rstrip("_").replace("_", "-")}="{html.escape(str(v))}"' for key, v in attributes.items()]
    start = Html(f"<{' '.join([name, *words])}>")
    return start if name in ("meta", "img") else Html(f"{start}{_inside(children)}</{name}>")


def _inside(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return "".join(map(_inside, child))
    return html.escape(str(child))


def table(caption: str, head: list, rows: Iterable[list], entries: Iterable["Entry"] = ()) -> Html:
    """A table whose first column names its rows, in a box of its own that scrolls where it is too wide.

    Args:
      entries: whose commands made the numbers: they stand below.
    """
    body = [
        el("tr", el("th", first, scope="row"), [el("td", "–" if cell is None else cell) for cell in rest])
        for first, *rest in rows
    ]
    made = [
        el(
            "tr",
            el("th", entry.link(), scope="row"),
            el("td", "made by ", entry.command, colspan=len(head) - 1),
        )
        for entry in entries
    ]
    whole = el(
        "table",
        el("caption", el("span", caption)),
        el("thead", el("tr", [el("th", cell, scope="col") for cell in head])),
        el("tbody", body),
        el("tfoot", made) if made else None,
    )
    return el("section", whole, class_="box", tabindex=0, aria_label=caption)


def number(value: float | None, shown: str = ".5g") -> Html | None:
    """A number as it is read, with all its digits in the element's value."""
    if value is None:
        return None
    text = str(value) if isinstance(value, int) else format(value, shown)
    return el("data", text, value=repr(float(value)) if not isinstance(value, int) else value)


def percent(part: float | None) -> Html | None:
    """A part of one in percent, with all its digits in the element's value."""
    return None if part is None else el("data", f"{part:.2%}", value=repr(float(part)))


def plus_minus(mean: float, sd: float) -> list:
    """'mean ± standard deviation', as children of an element."""
    return [number(mean, ".4f"), " ± ", number(sd, ".4f")]


def power(value: float, log_unit: float) -> str:
    """value * exp(log_unit) in scientific notation, also far below the smallest float: '1.234e-803'."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    log10 = math.log10(abs(value)) + log_unit / LN10
    exponent = math.floor(log10)
    mantissa = round(10 ** (log10 - exponent), 3)
    if mantissa == 10:
        mantissa, exponent = 1.0, exponent + 1
    return f"{'-' if value < 0 else ''}{mantissa:.3f}e{exponent:+03d}"


# What there is to tell


class Entry:
    """A run in the report: its number, what it recorded of itself, and links to it.

    Raises: UserError when about.json is missing or damaged.
    """

    def __init__(self, n: int, run: figures.Run):
        self.n, self.run = n, run
        self.about = results.read_about(run.path)

    @property
    def title(self) -> str:
        """Its number and its experiment."""
        return f"{self.n}: {self.about.get('experiment', 'unnamed')}"

    def link(self) -> Html:
        """Its title, which leads to its article, and its label."""
        label = el("span", self.run.label, class_="label") if self.run.label else None
        return Html(el("a", self.title, href=f"#run-{self.n}") + (label or ""))

    @property
    def command(self) -> Html:
        """The command that made it, with the interpreter that a script needs."""
        command = str(self.about.get("command", "not recorded"))
        try:
            is_script = shlex.split(command)[0].endswith(".py")
        except (ValueError, IndexError):  # a quotation without an end; nothing
            is_script = False
        return el("code", f"python {command}" if is_script else command)

    def flags(self) -> dict:
        """{name: value as it is typed}."""
        return {name: figures.plain(value) for name, value in self.run.flags.items()}


def word(text: str) -> str:
    """As it is typed in a shell: quoted where it has to be."""
    quoted = shlex.quote(text)
    return quoted if quoted == text or set(text) & set('"$`\\!') else f'"{text}"'


def runs_section(entries: list[Entry]) -> Html:
    """What is known of each run."""
    return el("section", el("h2", "Runs", id="runs"), [run_article(entry) for entry in entries])


DEFAULTS = {name: figures.plain(value) for name, value in figures.DEFAULTS.items()}


def run_article(entry: Entry) -> Html:
    """Who, where, when and with which flags."""
    about, flags = entry.about, entry.flags()
    data = about.get("data") or {}
    versions = about.get("versions") or {}
    changed = {name: value for name, value in flags.items() if value != DEFAULTS.get(name)}
    facts = {
        "command": entry.command,
        "directory": el("code", entry.run.path.resolve()),
        "begun": about.get("began"),
        "flags": [[el("code", f"--{name} {word(value)}"), " "] for name, value in changed.items()],
        "seed": flags["seed"],
        "git revision": el("code", about["git"]) if about.get("git") else "not under git",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": about.get("machine"),
        "device": about.get("device"),
        "data": f"{flags['dataset']}: " + ", ".join(f"{name} {value}" for name, value in data.items()),
    }
    rows = [
        [el("code", "--", name), el("code", value), el("code", DEFAULTS.get(name, ""))]
        for name, value in flags.items()
    ]
    return el(
        "article",
        el("h3", entry.title),
        el("p", entry.run.label, class_="label") if entry.run.label else None,
        el(
            "dl",
            [
                el("div", el("dt", name), el("dd", "–" if fact is None else fact))
                for name, fact in facts.items()
            ],
        ),
        el(
            "details",
            el("summary", f"All {len(flags)} flags; those above are not the default"),
            table(f"Flags of run {entry.n}", ["flag", "value", "default"], rows),
        ),
        id=f"run-{entry.n}",
    )


# The numbers

STATS = {
    "loss": "training loss, in the frame",
    "log_loss": "natural log of the training loss",
    "log_frame": "natural log of the frame",
    "acc": "training accuracy",
    "test_loss": "test loss",
    "test_acc": "test accuracy",
    "rho": "L2 norm of all weights",
    "norm_prod": "product of the layers' norms",
    "rhoL": "rho to the power of the number of layers",
    "q_min": "smallest margin",
    "q_max": "largest margin",
    "q_bar_min": "normalized margin, q_min/rhoL",
    "q_bar2_min": "normalized margin, q_min/norm_prod",
    "train_time": "seconds in gradient steps",
    "eval_time": "seconds evaluating",
    "attempts": "tries this epoch took",
}


def meaning(key: str) -> str:
    """What a key of the stats stands for."""
    if match := re.fullmatch(r"rho_(\d+)", key):
        return f"norm of layer {int(match[1]) + 1}"
    if match := re.fullmatch(r"n_supp_(\d+)", key):
        return f"margins within log(10^{match[1]}) of the smallest"
    return STATS.get(key, "")


def training_table(entries: list[Entry]) -> Html:
    """The stats of each run's last epoch that has all of them."""
    raws = [entry.run.raw for entry in entries]
    last = [max((eid for eid in raw if "acc" in raw[eid]["stats"]), default=max(raw)) for raw in raws]
    infos = [raw[eid] for raw, eid in zip(raws, last, strict=True)]
    keys = list(dict.fromkeys(key for info in infos for key in info["stats"]))

    def row(name, about, values):
        return [[el("code", name), " ", el("span", about, class_="label")], *values]

    def shown(key, value):
        return percent(value) if key in ("acc", "test_acc") else number(value)

    epochs = [f"{eid} of {entry.run.flags['E']}" for eid, entry in zip(last, entries, strict=True)]
    log10 = [number(info["stats"]["log_loss"] / LN10, ".6g") for info in infos]
    tries = [number(sum(info["stats"].get("attempts", 0) for info in raw.values())) for raw in raws]
    seconds = [number(sum(info["time"] for info in raw.values()), ".1f") for raw in raws]
    rows = [
        row("eid", "epoch, of so many", epochs),
        row("log10_loss", "log10 of the training loss", log10),
        *(row(key, meaning(key), [shown(key, i["stats"].get(key)) for i in infos]) for key in keys),
        row("lr", "learning rate, in the frame", [number(info["lr"]) for info in infos]),
        row("", "tries of all epochs", tries),
        row("", "seconds of all epochs", seconds),
    ]
    head = ["stat", *(entry.link() for entry in entries)]
    return table("Training: the stats of the last epoch", head, rows, entries)


def attack_table(entries: list[Entry]) -> Html:
    """What summary.json says of each attacked epoch, of attacks in one norm."""
    lines = [
        (entry, eid, found)
        for entry in entries
        for eid, found in results.read_summary(entry.run.path).items()
    ]
    eps = sorted({e for _, _, found in lines for e in found["robust_acc"]}, key=float)
    linf = entries[0].run.kind == "attack_linf"
    distances = {"median": "distance, median", "mean": "distance, mean of those found"}
    if not linf:
        distances = {"certified_median": "certified distance, median"} | distances
    rows = [
        [
            entry.link(),
            eid,
            entry.run.flags["attack_set"],
            number(found["n"]),
            number(None if found["log_loss"] is None else found["log_loss"] / LN10),
            number(found["q_bar_min"]),
            percent(found["clean_acc"]),
            percent(found["success"]),
            *(number(found[key], ".4f") for key in distances),
            *(percent(found["robust_acc"].get(e)) for e in eps),
        ]
        for entry, eid, found in lines
    ]
    head = [
        *("attack", "epoch", "images of", "images", "log10 loss", "q_bar_min", "clean accuracy", "success"),
        *distances.values(),
        *(f"robust accuracy at eps {e}" for e in eps),
    ]
    norm = "L-infinity" if linf else "L2"
    return table(f"Attacks: {norm} distances to the nearest adversarial example found", head, rows, entries)


def radius_tables(entries: list[Entry]) -> list[Html]:
    """Table 1 of arXiv 1801.02254 with the published values beside ours, and the networks behind it."""
    averaged = [entry for entry in entries if not figures.are_epochs(entry.run.raw["networks"])]
    rows, networks = [], []
    for entry in averaged:
        flags, row = entry.run.flags, entry.run.raw["row"]
        rows.append(
            [
                entry.link(),
                Path(flags["dataset"]).stem,
                figures.say("random_labels", flags["random_labels"]),
                figures.say("params", flags["params"]),
                number(len(entry.run.raw["networks"])),
                plus_minus(row["mean"], row["sd"]),
                plus_minus(*row["published"]) if row.get("published") else None,
                number(row.get("standard_errors"), ".1f"),
                plus_minus(row["by_norm_mean"], row["by_norm_sd"]),
            ]
        )
    for entry in entries:
        for name, found in entry.run.raw["networks"].items():
            few = [number(found["I"]), number(found["mean"], ".4f"), number(found["norm"], ".4f")]
            by_norm = number(found["mean_by_norm"], ".4f")
            networks.append([entry.link(), name, *few, by_norm, len(found["radii"])])
    head = ["measurement", "data", "labels", "perturbed", "networks", "radius", "published"]
    head += ["standard errors apart", "radius / norm"]
    about = "mean ± standard deviation over networks; published: arXiv 1801.02254, table 1"
    few = ["measurement", "network", "loss I(w)", "radius, mean", "norm", "radius / norm", "directions"]
    first = [table(f"Flatness radius: {about}", head, rows, averaged)] if averaged else []
    return [*first, table("Flatness radius of each network", few, networks, entries)]


def surface_table(entries: list[Entry]) -> Html:
    """Of each surface its networks, its grid and the range of its losses."""
    rows = []
    for entry in entries:
        flags, Z = entry.run.flags, entry.run.raw["Z"]
        labels = figures.say("random_labels", flags["random_labels"])
        names = ", ".join(entry.run.raw["networks"])
        low, high = number(float(Z.min())), number(float(Z.max()))
        grid = " × ".join(map(str, Z.shape))
        rows.append([entry.link(), Path(flags["dataset"]).stem, labels, names, grid, low, high])
    head = ["surface", "data", "labels", "through", "grid", "lowest loss", "highest loss"]
    return table("Loss in the plane of three networks", head, rows, entries)


def curvature_table(entries: list[Entry]) -> Html:
    """The largest eigenvalues and the trace at each network, in the true loss's units."""
    rows = []
    for entry in entries:
        for name, found in entry.run.raw.items():
            frame = found["log_frame"]
            trace = f"{power(found['trace'], frame)} ± {power(found['trace_error'], frame)}"
            values = ", ".join(power(value, frame) for value in found["eigenvalues"])
            log10_loss = number(found["log_loss"] / LN10)
            rows.append([entry.link(), name, log10_loss, values, trace, number(found["parameters"])])
    head = ["measurement", "network", "log10 loss", "largest eigenvalues", "trace", "parameters"]
    return table("The training loss's Hessian", head, rows, entries)


# The figures

TOLD_CURVES = 6  # of one panel, in an alternative text


def figure_element(name: str, figure: "Figure", entries: list[Entry]) -> Html:
    """A figure as SVG, told in words too, with its caption and the runs that it was made from."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    source = "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode()
    image = el("img", src=source, alt=seen(figure), width=width, height=height)
    caption = figures.FIGURES[entries[0].run.kind][name].__doc__.split("\n")[0]
    of = [
        [", " if k else "", el("a", f"{entry.n}", href=f"#run-{entry.n}")] for k, entry in enumerate(entries)
    ]
    larger = el("a", "larger", href=f"#figure-{name}", class_="screen")
    told = [caption, " Made from ", "run " if len(of) == 1 else "runs ", of, ". ", larger]
    return el("figure", el("div", image, class_="sheet"), el("figcaption", told), id=f"figure-{name}")


def svg(figure: "Figure") -> bytes:
    """The figure as SVG without what names other places; the same figure gives the same bytes."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(figures.STYLE | {"svg.hashsalt": "report"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=figures.DPI, metadata=nothing)
    return file.getvalue()


def seen(figure: "Figure") -> str:
    """What a figure shows, in words: for each panel its axes, and for each curve where it begins and ends."""
    panels = [panel(axes) for axes in figure.axes if axes.get_label() != "<colorbar>"]
    return ". ".join(panels) + "."


def panel(axes: "Axes") -> str:
    """One panel of `seen`."""
    x, y = axes.get_xlabel(), axes.get_ylabel()
    words = [spoken(axes.get_title())] if axes.get_title() else []
    if hasattr(axes, "get_zlim"):
        return ", ".join([*words, "a surface, seen from the side"])
    ticks = [] if x else [tick.get_text() for tick in axes.get_xticklabels()]
    against = f" against {spoken(x)}" if x else f" of {', '.join(map(spoken, ticks))}" if any(ticks) else ""
    words.append(f"{spoken(y)}{against}")
    lines = [line for line in axes.lines if len(line.get_xdata()) > 1 and _of_data(line)]
    named = [line for line in lines if not str(line.get_label()).startswith("_")] or lines[: len(lines) == 1]
    told = [course(line) for line in named[:TOLD_CURVES]]
    if len(named) > TOLD_CURVES:
        told.append(f"and {len(named) - TOLD_CURVES} more curves")
    if not named:
        (x0, y0), (x1, y1) = axes.dataLim.get_points()
        told = [f"{len(lines)} curves" if lines else "values"]
        told[0] += f" between {y0:.4g} and {y1:.4g}" + (f", for {x0:.4g} to {x1:.4g}" if x else "")
    return f"{', '.join(words)}: {'; '.join(told)}"


def _of_data(line: "Line2D") -> bool:
    """Whether both of a line's coordinates are data: not so of lines that only mark a height."""
    return all(line.get_transform().contains_branch_seperately(line.axes.transData))


def course(line: "Line2D") -> str:
    """Where a curve begins and where it ends."""
    points = [point for point in zip(*line.get_data(), strict=True) if np.isfinite(point).all()]
    name = "the curve" if str(line.get_label()).startswith("_") else spoken(line.get_label())
    if not points:
        return f"{name} has no finite point"
    (x0, y0), (x1, y1) = points[0], points[-1]
    return f"{name} goes from {y0:.4g} at {x0:.4g} to {y1:.4g} at {x1:.4g}"


def spoken(text: str) -> str:
    """Text of a figure on one line, as it can be read aloud."""
    return " ".join(text.replace("log₁₀", "log10").split())


# The page

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --shade: #f3f5f7;
  --line: #d0d7de; --link: #0a58a5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa5b1; --paper: #14171a; --shade: #1f2429; --line: #3a424a;
    --link: #7ab8f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.6rem, 3vw, 2rem) 3rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 0.75rem; padding-top: 0.5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); }
code { font: 0.875em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; padding: 0; margin: 0.75rem 0;
  list-style: none; }
.label { color: var(--soft); font-weight: normal; }
article { border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.75rem 1rem; margin: 0 0 1rem; }
article:target, figure:target { outline: 2px solid var(--link); }
article > p { margin: 0; }
dl { margin: 0.5rem 0; }
dl > div { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: 0 1rem; padding: 0.1rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--link); }
.box { overflow-x: auto; margin: 1rem 0 1.5rem; border: 1px solid var(--line); border-radius: 0.4rem; }
.box:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; font-weight: 600; padding: 0.6rem 0.75rem; }
caption span { display: inline-block; position: sticky; left: 0.75rem; max-width: min(84vw, 72rem); }
th, td { padding: 0.3rem 0.75rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
td { white-space: nowrap; }
tfoot td { white-space: normal; color: var(--soft); }
tfoot td code { color: var(--ink); }
details td { white-space: normal; }
dd code { display: inline-block; max-width: 100%; margin-right: 0.6rem; }
thead th { background: var(--shade); min-width: 5.5rem; vertical-align: bottom; }
th .label { display: block; font-size: 0.85em; }
tbody th, tfoot th { font-weight: 600; min-width: 8rem; position: sticky; left: 0; background: var(--paper); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr));
  gap: 1.25rem;
  align-items: start; }
figure { margin: 0; min-width: 0; }
figure:target { grid-column: 1 / -1; }
.sheet { overflow-x: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 0.4rem;
  padding: 0.25rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure:target img { width: max(48rem, 100%); max-width: none; }
figcaption { margin-top: 0.4rem; color: var(--soft); }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.9rem; }
@media (max-width: 36rem) {
  dl > div { grid-template-columns: 5rem minmax(0, 1fr); gap: 0 0.5rem; }
  tbody th, tfoot th { max-width: 45vw; overflow-wrap: anywhere; }
}
@page { size: A4 landscape; margin: 12mm; }
@media print {
  :root { --ink: #000000; --soft: #333333; --paper: #ffffff; --shade: #eeeeee; --line: #999999;
    --link: #000000; }
  body { padding: 0; max-width: none; font-size: 9pt; }
  nav, .screen, details { display: none; }
  article, figure, tr { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  .box, .sheet { overflow: visible; border: 0; }
  table { font-size: 7pt; }
  th, td { padding: 1pt 3pt; overflow-wrap: normal; }
  thead th, tbody th, tfoot th { min-width: 0; position: static; }
  tfoot { display: table-row-group; }
  .figures { grid-template-columns: 1fr 1fr; }
}
"""

SECTIONS = {  # kind of run: heading, and what makes its tables
    "train": ("Training", lambda entries: [training_table(entries)]),
    "attack_l2": ("Attacks, L2", lambda entries: [attack_table(entries)]),
    "attack_linf": ("Attacks, L-infinity", lambda entries: [attack_table(entries)]),
    "measure_radius": ("Flatness radius", radius_tables),
    "make_points": ("Loss surfaces", lambda entries: [surface_table(entries)]),
    "measure_curvature": ("Curvature", lambda entries: [curvature_table(entries)]),
}


MOST_RUNS_FIRST = 4  # of more runs the figures and tables come first, and what is known of each run last


def page(directories: Iterable[Path | str]) -> str:
    """The report on working directories, an HTML document.

    Raises: UserError for a directory that is no run, damaged, of a kind without figures, or has no
      results yet.
    """
    paths = list(dict.fromkeys(str(Path(d).resolve()) for d in directories))
    entries = [Entry(n, run) for n, run in enumerate(figures.read(paths), 1)]
    sections = []
    for kind in tqdm(list(SECTIONS), desc="report", leave=False, disable=None):
        own = [entry for entry in entries if entry.run.kind == kind]
        if own:
            sections.append((kind, section(kind, own)))
    others = len(entries) - 1
    title = f"Report: {entries[0].about.get('experiment', 'unnamed')}"
    title += f" and {others} more run{'s' if others > 1 else ''}" if others else ""
    parts = [("runs", "Runs", runs_section(entries))]
    parts += [(kind, SECTIONS[kind][0], section) for kind, section in sections]
    if len(entries) > MOST_RUNS_FIRST:
        parts = parts[1:] + parts[:1]
    command = shlex.join(["python", "report.py", *paths])
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Html(STYLE)),
    )
    body = el(
        "body",
        el(
            "header",
            el("h1", title),
            el(
                "nav",
                el("ul", [el("li", el("a", heading, href=f"#{name}")) for name, heading, _ in parts]),
                aria_label="Contents",
            ),
        ),
        el("main", [part for *_, part in parts]),
        el("footer", el("p", f"Made {time.strftime('%Y-%m-%d %H:%M:%S %z')} with ", el("code", command))),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def section(kind: str, entries: list[Entry]) -> Html:
    """Figures and tables of the runs of one kind. Raises: UserError when their files are not such runs'."""
    heading, tables = SECTIONS[kind]
    runs = [entry.run for entry in entries]
    drawn = figures.drawn(runs)  # with it they have their labels
    try:
        parts = tables(entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{', '.join(str(run.path) for run in runs)}: no results of the task {runs[0].flags['task']} "
            f"({type(error).__name__}: {error}); it is damaged or of another program: run it again"
        ) from error
    shown = el("div", [figure_element(*drawing, entries) for drawing in drawn.items()], class_="figures")
    return el("section", el("h2", heading, id=kind), shown, parts)


def write(directories: Iterable[Path | str], out: Path | str | None = None) -> Path:
    """Write the report on working directories.

    Args:
      out: the file; None: report.html in the first of directories.

    Returns: the file. An older one is replaced at once.

    Raises: UserError as in `page`, and when the file cannot be written.
    """
    directories = list(directories)
    path = Path(directories[0]) / "report.html" if out is None else Path(out)
    text = page(directories)
    try:
        results.replace_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(
            f"cannot write the report {path}: {error.strerror}; make the place writable or give another --out"
        ) from None
    return path


def main(argv: list[str]) -> int:
    """The command line; returns the exit status."""

    def show(directories, out):
        path = write(directories, out)
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")

    about = "A page about what runs have left."
    return flag_table.on_directories(
        argv, "report.py", about, ("FILE", "report.html in the first directory"), show
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
