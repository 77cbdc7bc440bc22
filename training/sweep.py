"""A grid of whole runs of one experiment: every combination of the values of some flags.

The sweep's working directory contains one of its own for each run, named after its point: `seed=0,lr=0.01`.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

import flags as flag_table
from engine.cluster import executor
from engine.context import Context, first_files, logs_dir, resumed, writing
from engine.units import Unit, Worker
from flags.table import BY_NAME, flatten, renamed
from flags.values import shown
from storage import read, workdir
from support.errors import TrainingDiverged, UserError
from support.screen import Bar, Update, log, shown_path
from training.run import train_in

MOST_RUNS = 10_000
COLUMNS = {"log_loss": "log10 loss", "acc": "train acc", "test_acc": "test acc", "q_bar_min": "q_bar_min"}


def points(grid: list[str]) -> list[dict[str, str]]:
    """Return the flags of each run of a grid, as typed, in order: the last axis changes first.

    Args:
      grid: axes, 'flag=value,value,...', or 'flag=value|value' where the values have commas, or 'flag=a:b' for the
        whole numbers a, a + 1, ..., b - 1.

    Raises: UserError.
    """
    axes: dict[str, list[str]] = {}
    for text in grid:
        name, equals, listed = text.partition("=")
        name = next(iter(renamed({name: None})))
        if not equals or not listed or name not in BY_NAME or name in axes:
            raise UserError(f"--grid {text}: expected flag=value,value,... with a flag's name, each flag once")
        low, colon, high = listed.partition(":")
        if colon and low.isdecimal() and high.isdecimal():
            axes[name] = [str(k) for k in range(int(low), min(int(high), int(low) + MOST_RUNS + 1))]
        else:
            axes[name] = listed.split("|" if "|" in listed else ",")
        if len(axes[name]) != len(set(axes[name])) or not axes[name]:
            raise UserError(f"--grid {text}: expected values that differ, at least one")
    n = int(np.prod([float(len(values)) for values in axes.values()]))
    if not axes or n > MOST_RUNS:
        raise UserError(f"--grid: {n if axes else 'no'} runs; expected 1 to {MOST_RUNS}, such as --grid seed=0:3")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def name_of(point: dict[str, str]) -> str:
    """Return the name of a point's directory: 'seed=0,lr=0.01'."""
    words = ",".join(f"{name}={value}" for name, value in point.items())
    return "".join(c if c.isalnum() or c in "=,.-+_[]() " else "_" for c in words)[:200]


def sweep(context: Context) -> Path:
    """Train the experiment at every point of `axes`. Returns the sweep's directory.

    A finished run is kept, an interrupted one continues. One that diverges is reported and skipped. Writes `res` =
    {'flags': flags, 'raw': {point: {'point': its flags, 'info': of its last epoch, or None}}}.

    Raises: UserError; Stopped; OSError.
    """
    f = context.f
    experiment = context.name.removeprefix("sweep-")
    grid = points(f.axes or [])
    places = {name_of(point): _flags_at(context, point) for point in grid}
    if len(places) != len(grid):
        raise UserError("--grid: two of its runs would have the same directory; give values that differ more")
    new = (logs_dir(context), context.name, first_files(context))
    path = resumed(context) if f.resume else workdir.create(*new)
    finished = 0

    def report(unit: Unit, found: dict[str, Any]) -> None:
        nonlocal finished
        finished += 1
        log.info("%s: %s", Path(found["path"]).name, found["error"] or "done")

    command = f"python sweep.py {experiment}"
    with writing(context, path), workdir.resumable(command, path, lambda: f"{finished} of {len(places)} runs"):
        units = []
        for k, (name, flags) in enumerate(places.items()):
            if not (path / name / "flags.json").exists():
                workdir.fill(path / name, first_files(Context(flags, experiment), cluster=f.cluster))
            if not _finished(path / name, flags):
                units.append(Unit(work, (k,), {"flags": flags, "path": str(path / name), "experiment": experiment}))
        finished = len(places) - len(units)
        with executor(context) as workers, Bar(len(places), "run", context.update, finished) as bar:
            workers.run(units, report, bar)
        raw = {}
        for (name, flags), point in zip(places.items(), grid, strict=True):
            raw[name] = {"point": {flag: flatten(flags)[flag] for flag in point}, "info": _last(path / name)}
        workdir.WorkDir(path).write_res({"flags": context.flags, "raw": raw})
        for line in table(list(raw.values())):
            log.info("%s", line)
        log.info("done: %d runs in %s", len(raw), shown_path(path))
    return path


def _flags_at(context: Context, point: dict[str, str]) -> dict[str, Any]:
    """Return the complete flags of the run at a point. Raises: UserError for invalid values."""
    alone = {"task": "train", "seeds": None, "axes": None, "cluster": None, "speculate": False, "resume": None}
    given = {name: flag_table.from_text(text) for name, text in point.items()}
    return flag_table.complete(flatten(context.flags) | alone | given)


def _last(path: Path) -> dict[str, Any] | None:
    journal = read.read_journal(path)
    return journal[max(journal)] if journal else None


def _finished(path: Path, flags: dict[str, Any]) -> bool:
    last = _last(path)
    return last is not None and last["eid"] >= flags["E"] and (path / "res").exists()


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """A unit of work: a whole run, in its own directory. Returns: path; error, where it diverged."""
    context, path = worker.context, Path(args["path"])
    here = {"threads": context.compute.threads, "gpu": context.f.gpu}
    try:
        train_in(Context(args["flags"] | here, args["experiment"], context.update), path, path)
    except TrainingDiverged as error:
        return {"path": str(path), "error": str(error)}
    return {"path": str(path), "error": None}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line per run, and one with mean and standard deviation for runs that differ only in their seeds.

    Args:
      rows: values of a sweep's `raw`.
    """
    names = list(rows[0]["point"])
    lines = [" ".join(f"{name:>14}" for name in (*names, "epochs", *COLUMNS.values()))]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = {name: shown(value) for name, value in row["point"].items()}
        info = row["info"] or {"eid": 0, "stats": {}}
        cells = [_cell(name, info["stats"].get(name)) for name in COLUMNS]
        lines.append(" ".join(f"{text:>14.14}" for text in (*key.values(), str(info["eid"]), *cells)))
        groups.setdefault(str(key | {"seed": None}), []).append(row)
    for group in groups.values():
        infos = [row["info"] for row in group if row["info"]]
        if "seed" in names and len(infos) > 1:
            where = [shown(v) if name != "seed" else "all" for name, v in group[0]["point"].items()]
            cells = []
            for name in COLUMNS:
                values = np.array([info["stats"].get(name, np.nan) for info in infos])
                cells.append(f"{_cell(name, values.mean())}±{_cell(name, values.std(ddof=1))}")
            lines.append(" ".join(f"{text:>14}" for text in (*where, f"{len(infos)} runs", *cells)))
    return lines


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / np.log(10):.4f}" if name == "log_loss" else f"{value:.4g}"
