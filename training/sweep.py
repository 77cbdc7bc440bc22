"""A grid of whole runs of one experiment: every combination of the values of some flags.

The sweep's working directory contains one of its own for each run, named after its point: `seed=0,lr=0.01`.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

import flags as flag_table
from engine.cluster import executor
from engine.context import Context, directory, first_files, logs_dir, resumed, writing
from engine.units import Unit, Worker
from flags.command_line import value_of
from flags.table import BY_NAME, DATA, FREE_ON_RESUME, NETWORK, TRAINING_FLAGS, flatten, renamed
from flags.values import Bad, shown
from storage import read, workdir
from storage.run_flags import check_same
from support.errors import TrainingDiverged, UserError
from support.screen import Bar, Update, log, shown_path
from training.run import check_training, train_in

MOST_RUNS = 10_000
COLUMNS = {"log_loss": "log10 loss", "acc": "train acc", "test_acc": "test acc", "q_bar_min": "q_bar_min"}
RECORDED = ("q_bar_linf", "q_bar_spectral")  # columns where --measure norm_margins recorded them


# What a training computes. Flags that only say how it runs have no place in a table of results.
_TRAINED = tuple(name for name in TRAINING_FLAGS if name == "E" or name not in FREE_ON_RESUME)
WITH_COMMAS = ("classes", "lr", "opt", "archive", "model.description", "model.act_type")
AXES = ("seed", "tf32", "deterministic", *DATA, *NETWORK, *_TRAINED)


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
        if name not in AXES or name == "data_dir":
            raise UserError(f"--grid {text}: --{name} does not change what a training computes; set it for all runs")
        low, colon, high = listed.partition(":")
        if colon and low.isdecimal() and high.isdecimal():
            axes[name] = [str(k) for k in range(int(low), min(int(high), int(low) + MOST_RUNS + 1))]
        else:
            axes[name] = listed.split("|" if "|" in listed else ",")
        values = [str(_checked(name, word)) for word in axes[name]]
        if len(values) != len(set(values)) or not values:
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
    # The sweep's own flags may be impossible without those of a point: it takes data and network of the first one.
    first = Context(next(iter(places.values())) | {"resume": f.resume}, context.name, context.update)
    _ = first.model  # made now, and its threads are those that a resumed sweep began with
    context = first.changed(**context.flags)
    new = _new_runs(context, places, experiment)
    done: list[str] = []

    def report(unit: Unit, found: dict[str, Any]) -> None:
        done.append(Path(found["path"]).name)
        log.info("%s: %s", done[-1], found["error"] or "done")

    def after() -> str:
        return f"{len(done)} of {len(places)} runs"

    with executor(context) as workers:
        path = directory(context, logs_dir(context))
        with writing(context, path, after):
            for name, files in new.items():
                workdir.fill(path / name, files)
            done += [name for name, flags in places.items() if _finished(path / name, flags)]
            units = [
                Unit(work, (k,), {"flags": flags, "sweep": str(path), "name": name, "point": _values(grid[k], flags)})
                for k, (name, flags) in enumerate(places.items())
                if name not in done
            ]
            with Bar(len(places), "run", context.update, len(done)) as bar:
                workers.run(units, report, bar)
            raw = {}
            for (name, flags), point in zip(places.items(), grid, strict=True):
                raw[name] = {"point": _values(point, flags), "info": _last(path / name)}
            workdir.WorkDir(path).write_res({"flags": context.flags, "raw": raw})
            for line in table(list(raw.values())):
                log.info("%s", line)
            log.info("done: %d runs in %s", len(raw), shown_path(path))
    return path


def _checked(name: str, word: str) -> Any:
    """Return a flag's value in its one form. Raises: UserError for one that the flag does not take."""
    try:
        return BY_NAME[name].check(value_of(name, word))
    except Bad as error:
        hint = " (a value that has commas: separate values with |)" if name in WITH_COMMAS else ""
        raise UserError(f"--{name} {word}: expected {error}{hint}") from None


def _values(point: dict[str, str], flags: dict[str, Any]) -> dict[str, Any]:
    return {name: flatten(flags)[name] for name in point}


def _flags_at(context: Context, point: dict[str, str]) -> dict[str, Any]:
    """Return the complete flags of the run at a point. Raises: UserError for invalid values."""
    alone = {"task": "train", "seeds": None, "axes": None, "cluster": None, "speculate": False, "resume": None}
    given = {name: value_of(name, word) for name, word in point.items()}
    return flag_table.complete(flatten(context.flags) | alone | given)


def _new_runs(context: Context, places: dict[str, dict[str, Any]], experiment: str) -> dict[str, dict[str, Any]]:
    """Return {name: first files} of the runs that the sweep's directory lacks.

    Raises: UserError for a run that is impossible, or that is there with other flags or on other data.
    """
    new: dict[str, dict[str, Any]] = {}
    fingerprints: dict[str, int] = {}
    path, threads = resumed(context) if context.f.resume else None, context.compute.threads
    for name, flags in places.items():
        child = Context(flags | {"threads": threads}, experiment)  # of a worker
        if path is None or not (path / name / "flags.json").exists():
            check_training(child)
            new[name] = first_files(child, cluster=context.f.cluster) | {"flags.json": flags}
            continue
        check_same(path / name, flags)
        key = str([flatten(flags)[flag] for flag in DATA])
        child.fingerprint = fingerprints[key] = fingerprints.get(key) or child.fingerprint
        child.check_data(path / name)
    return new


def _last(path: Path) -> dict[str, Any] | None:
    journal = read.read_journal(path)
    return journal[max(journal)] if journal else None


def _finished(path: Path, flags: dict[str, Any]) -> bool:
    last = _last(path)
    return last is not None and last["eid"] >= flags["E"] and (path / "res").exists()


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Train a whole run, in its own directory: a unit of work. Returns: path; error, where it diverged."""
    context, whole = worker.context, Path(args["sweep"])
    path, here = whole / args["name"], {"threads": context.compute.threads, "gpu": context.f.gpu}
    try:
        run = Context(args["flags"] | here, context.name.removeprefix("sweep-"), update)
        train_in(run, path, whole, args["point"])
    except TrainingDiverged as error:
        return {"path": str(path), "error": str(error)}
    return {"path": str(path), "error": None}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line per run, and one with mean and standard deviation for runs that differ only in their seeds.

    Args:
      rows: values of a sweep's `raw`.
    """
    names = list(rows[0]["point"])
    recorded = [name for name in RECORDED if any(name in row["info"]["stats"] for row in rows if row["info"])]
    columns = COLUMNS | {name: name for name in recorded}
    lines = [" ".join(f"{name:>14}" for name in (*names, "epochs", *columns.values()))]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = {name: shown(value) for name, value in row["point"].items()}
        info = row["info"] or {"eid": 0, "stats": {}}
        cells = [_cell(name, info["stats"].get(name)) for name in columns]
        lines.append(" ".join(f"{text:>14.14}" for text in (*key.values(), str(info["eid"]), *cells)))
        groups.setdefault(str(key | {"seed": None}), []).append(row)
    for group in groups.values():
        infos = [row["info"] for row in group if row["info"]]
        if "seed" in names and len(infos) > 1:
            where = [shown(v) if name != "seed" else "all" for name, v in group[0]["point"].items()]
            cells = []
            if len({info["eid"] for info in infos}) > 1:
                lines.append(" ".join(f"{text:>14}" for text in (*where, f"{len(infos)} runs", "epochs differ")))
                continue
            for name in columns:
                values = np.array([info["stats"].get(name, np.nan) for info in infos])
                cells.append(f"{_cell(name, values.mean())}±{_cell(name, values.std(ddof=1))}")
            lines.append(" ".join(f"{text:>14}" for text in (*where, f"{len(infos)} runs", *cells)))
    return lines


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / np.log(10):.4f}" if name == "log_loss" else f"{value:.4g}"
