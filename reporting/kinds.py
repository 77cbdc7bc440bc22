"""The kinds of working directories that can be displayed: one registry for figures, report and launch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from catalogue.measures import FIGURES
from catalogue.tasks import SEVERAL
from flags.table import flatten
from reporting import attacks, flatness, landscape, training
from reporting.runs import Run
from reporting.tables import Entry, Table
from storage.read import check_run, load, read_about
from storage.run_flags import stored
from support import forms
from support.errors import UserError
from support.forms import each, matrix, number, number_or_none, numbers, pair_or_none, several, text


@dataclass(frozen=True)
class Drawing:
    """A figure of runs: its caption, and the function that draws it, or returns None without anything to draw."""

    caption: str
    draw: Callable[[list[Run]], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of working directory.

    Attributes:
      task: what left it.
      heading: its section's in a report.
      form: of each part of its results (`forms`).
      parts: `raw` of `res` -> these parts.
      figures: by name.
      tables: a function of the report's entries.
    """

    task: str
    heading: str
    form: dict[str, forms.Form]
    figures: dict[str, Drawing]
    tables: Callable[[list[Entry]], list[Table]]
    parts: Callable[[dict], Iterable[dict]] = lambda raw: raw.values()


def _whole(raw: dict) -> list[dict]:
    return [raw]


ATTACKED = {"errors": numbers, "success": numbers, "clean_correct": numbers}
STATS = {"log_loss": number}
INFO = {"eid": number, "lr": number, "log_frame": number, "time": number, "stats": each(number_or_none)}
NETWORK = {"radii": numbers, "profiles": several(numbers)}
NETWORK |= dict.fromkeys(("I", "mean", "norm", "mean_by_norm"), number)
ROW = dict.fromkeys(("mean", "sd", "by_norm_mean", "by_norm_sd"), number) | {"published": pair_or_none}
CURVATURE = dict.fromkeys(("trace", "trace_error", "log_frame", "log_loss", "parameters"), number)
SHARPNESS = dict.fromkeys(("rho", "worst", "average", "average_error"), numbers)


def _figures(*functions: Callable[[list[Run]], Any], **named: Callable[[list[Run]], Any]) -> dict[str, Drawing]:
    """Return figures by the names of their functions, or by these. A docstring's first line is the caption."""
    found = {function.__name__: function for function in functions} | named
    return {name: Drawing((function.__doc__ or "").split("\n")[0], function) for name, function in found.items()}


def _of_catalogue(*names: str, prefix: str = "") -> dict[str, Drawing]:
    return {prefix + name: Drawing(FIGURES[name].caption, partial(training.of_catalogue, name)) for name in names}


KINDS = {
    "train": Kind(
        "train",
        "Training",
        INFO,
        _figures(training.loss_margin, training.accuracy, training.margins, training.norms)
        | _of_catalogue("direction")
        | _figures(training.steps)
        | _of_catalogue("theory", "kkt", "stability")
        | _figures(training.norm_margins, training.linear, measures=training.asked_for, seeds=training.over_seeds),
        training.table,
    ),
    "measure_epochs": Kind(
        "measure_epochs",
        "Stored epochs, measured",
        INFO,
        _of_catalogue("theory", "kkt", "stability", prefix="stored_") | _figures(stored_measures=training.asked_for),
        training.table,
    ),
    **{
        f"attack_{norm}": Kind(
            "attack",
            f"Attacks, {words}",
            ATTACKED,
            _figures(**{f"attack_{norm}": attacks.distances, f"examples_{norm}": attacks.examples}),
            attacks.table,
        )
        for norm, words in (("l2", "L2"), ("l1", "L1"), ("linf", "L-infinity"))
    },
    "attack_grid": Kind(
        "attack",
        "Attacks, L-infinity, at given eps",
        ATTACKED,
        _figures(attack_grid=attacks.linf_grid),
        attacks.table,
    ),
    "measure_radius": Kind(
        "measure_radius",
        "Flatness radius",
        {"networks": each(NETWORK), "row": ROW},
        _figures(flatness.profiles, flatness.radii, flatness.radius_loss),
        flatness.radius_tables,
        _whole,
    ),
    "make_points": Kind(
        "make_points",
        "Loss surfaces",
        {"X": matrix, "Y": matrix, "Z": matrix, "networks": several(text)},
        _figures(surface=flatness.surfaces),
        flatness.surface_table,
        _whole,
    ),
    "make_surface": Kind(
        "make_surface",
        "Planes through a run",
        {"x": numbers, "y": numbers, "log_loss": matrix, "plane": text, "network": text},
        _figures(landscape.plane),
        landscape.plane_table,
        _whole,
    ),
    "measure_curvature": Kind(
        "measure_curvature",
        "Curvature",
        CURVATURE | {"eigenvalues": numbers},
        _figures(flatness.curvature, landscape.spectrum),
        landscape.curvature_tables,
    ),
    "measure_sharpness": Kind(
        "measure_sharpness",
        "Sharpness",
        {"log_loss": number, "sharpness": each(SHARPNESS)},
        _figures(landscape.sharpness),
        landscape.sharpness_table,
    ),
}
TASKS_WITH_FIGURES = {*SEVERAL, *(kind.task for kind in KINDS.values())}


def read(directories: Iterable[Path | str]) -> list[Run]:
    """Return the runs in working directories, each once. A run of several seeds counts as one run per seed.

    Raises: UserError when one is not a run, is damaged, is of a kind without figures, or has no results yet.
    """
    runs = {}
    for path in dict.fromkeys(check_run(d).resolve() for d in directories):
        task = _flags(path)["task"]
        if task not in TASKS_WITH_FIGURES:
            raise UserError(f"{path}: there are no figures for the task {task}")
        own = [path]
        if task in SEVERAL:
            own = [p.resolve() for p in sorted(path.glob(SEVERAL[task])) if (p / "flags.json").is_file()]
        for part in own:
            if part not in runs:
                runs[part] = _run(part)
        if not any(runs[part].raw for part in own):
            why = "no epoch was accepted"
            if not task.startswith("train"):
                why = "it is not finished (resume it with --resume)"
            raise UserError(f"{path}: has nothing to draw yet: {why}")
    return [run for run in runs.values() if run.raw]


def _flags(path: Path) -> dict:
    """Return a run's flags, flat, under their present names; a flag that is newer than the run has its default."""
    return flatten(stored(path))


def _run(path: Path) -> Run:
    """Return the run of a working directory; raw is {} without results. Raises: UserError when damaged."""
    about = read_about(path) if (path / "about.json").exists() else {}
    run = Run(path, _flags(path), {}, about)
    task = run.flags["task"]
    if task != "train" and not (path / "res").exists():
        return run
    res = load(path)
    raw: Any = res if task == "attack" else res.get("raw") if isinstance(res, dict) else None
    kind = KINDS[run.kind]
    parts = list(kind.parts(raw)) if isinstance(raw, dict) else [None]
    for part in parts:
        bad = forms.wrong(part, kind.form)
        if not bad and part is not None and kind.task == "train":
            bad = forms.wrong(part["stats"], STATS)
        if bad:
            which = f"missing or invalid: {', '.join(bad)}" if bad != [""] else "it has no such numbers"
            raise UserError(f"{path / 'res'}: damaged, or not a result of the task {task} ({which}); run it again")
    run.raw = raw
    return run
