"""A working directory's results as one structured array: one row per epoch, image or direction."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from catalogue.attacks import METHODS
from catalogue.tasks import SEVERAL
from flags.command_line import Parser, exit_status
from storage import read
from storage.run_flags import stored
from support.errors import UserError, reason
from support.files import replace_atomically

FIRST = ("eid", "lr", "log_frame", "rt_loss", "time")  # of a training run, before its stats


def table(directory: Path | str) -> np.ndarray:
    """Return the results in a working directory, such that `pandas.DataFrame(table(d))` accepts them.

    Returns: structured, [rows]. Training: one row per epoch, with eid, lr, log_frame, rt_loss, time, and every key of
      stats (NaN where an epoch lacks it). Attack: one row per image, with eid, index, label, distance (of the example
      found; NaN without one), success, clean_correct, certified. Radius: one row per direction, with network, eid,
      direction, radius, loss_there, loss. Whole numbers are int64, success and clean_correct bool, network text, all
      others float64.

    Raises: UserError for a directory that is not a run, is of another kind, or has no results.
    """
    path = read.check_run(directory)
    task = stored(path)["task"]
    if task in SEVERAL:
        raise UserError(f"{path}: has several runs; give the directory of one of them")
    if task not in TABLES:
        raise UserError(f"{path}: there is no table for the task {task}, only for {', '.join(TABLES)}")
    if task != "train" and not (path / "res").exists():
        raise UserError(f"{path}: it is not finished (resume it with --resume)")
    try:
        columns = TABLES[task](path, read.load(path))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path / 'res'}: not a result of the task {task} ({type(error).__name__}: {error})"
        ) from None
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{path}: has no results yet")
    arrays = {name: _array(values) for name, values in columns.items()}
    rows = np.empty(len(next(iter(arrays.values()))), [(name, array.dtype) for name, array in arrays.items()])
    for name, array in arrays.items():
        rows[name] = array
    return rows


def _array(values: Any) -> np.ndarray:
    """Return a column: int64 or bool where all values are, text where they are, else float64 with NaN for None."""
    if isinstance(values, np.ndarray):
        return values.astype(np.int64) if values.dtype.kind in "iu" else values
    kinds = {type(value) for value in values}
    if kinds in ({int}, {str}, {bool}):
        return np.array(values)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _epochs(path: Path, res: dict) -> dict[str, Any]:
    infos = [res["raw"][eid] for eid in sorted(res["raw"])]
    keys = dict.fromkeys(key for info in infos for key in info["stats"])
    found = {name: [info.get(name) for info in infos] for name in FIRST}
    return found | {key: [info["stats"].get(key) for info in infos] for key in keys if key not in FIRST}


def _images(path: Path, res: dict) -> dict[str, Any]:
    flags = stored(path)
    method, target = METHODS[flags["attack_method"]], flags["attack_target"]
    parts: dict[str, list] = {}
    for eid in sorted(res):
        found = res[eid]
        n = len(found["errors"])
        distance = method.distances(found["errors"], np.asarray(found["clean_correct"], bool), target)
        columns = {
            "eid": np.full(n, eid),
            "index": np.asarray(found["indices"]),
            "label": np.asarray(found["labels"]),
            "distance": np.where(found["success"], distance, np.nan),
            "success": np.asarray(found["success"], bool),
            "clean_correct": np.asarray(found["clean_correct"], bool),
            "certified": np.asarray(found["certified"], np.float64),
        }
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _directions(path: Path, res: dict) -> dict[str, Any]:
    rows = [
        (name, int(found["eid"]), k, float(radius), float(found["profiles"][k][-1]), float(found["I"]))
        for name, found in res["raw"]["networks"].items()
        for k, radius in enumerate(found["radii"])
    ]
    names = ("network", "eid", "direction", "radius", "loss_there", "loss")
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


TABLES: dict[str, Callable[[Path, Any], dict[str, Any]]] = {
    "train": _epochs,
    "measure_epochs": _epochs,
    "attack": _images,
    "measure_radius": _directions,
}


def write_csv(rows: np.ndarray, file: TextIO) -> None:
    """Write rows as CSV, with all digits of each number."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows.dtype.names or ())
    for row in rows:
        writer.writerow([repr(float(v)) if isinstance(v, np.floating) else v for v in row])


def main(argv: list[str]) -> int:
    """Run the command line of `python results.py`; returns the exit status, as `exit_status`."""
    parser = Parser(prog="python results.py", description="A run's record as a table.", allow_abbrev=False)
    parser.add_argument("directory", metavar="DIRECTORY", help="a working directory")
    parser.add_argument("--csv", metavar="FILE", help="write it there, not to the screen")

    def answer() -> None:
        options = parser.parse_args(argv)
        if options.csv is not None and not Path(options.csv).name:
            raise UserError(f"--csv '{options.csv}': expected the name of a file")
        rows = table(options.directory)
        if options.csv is None:
            write_csv(rows, sys.stdout)
        else:
            _to_file(rows, Path(options.csv))

    return exit_status(answer, "the output is incomplete")


def _to_file(rows: np.ndarray, path: Path) -> None:
    text = io.StringIO()
    write_csv(rows, text)
    try:
        replace_atomically(path, lambda file: file.write(text.getvalue().encode()))
    except OSError as error:
        raise UserError(f"--csv {path}: cannot be written: {reason(error)}") from None
    print(f"{path}: {len(rows)} rows, {len(rows.dtype.names or ())} columns")
