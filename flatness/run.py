"""The tasks of the flatness experiments (arXiv 1801.02254, section IV).

A measurement's working directory lies in the one of the run that it measures. Each unit of it (a direction, a row, a
network) is in the journal as soon as it is done.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import datasets
import forms
import results
from context import Context
from errors import Stopped, UserError
from execution import Unit, executor
from files import replace_atomically
from flags.table import stored
from flatness import curvature, interpolation, radius
from flatness.networks import Place, checked_networks
from flatness.published import published_radius, table_row
from screen import Ticker, log, shown_path

# The forms of what a measurement's journal has of a unit
WALK = {"network": forms.text, "radius": forms.number, "profile": forms.numbers, "end": forms.number}
CURVATURE = {"network": forms.text, "eigenvalues": forms.numbers}


def make_random_labels(context: Context) -> Path:
    """Store random labels for the data set, once. Returns the file's path."""
    path = context.random_labels_path
    if path.exists():
        log.info("%s is there already and stays; delete it to draw anew", shown_path(path))
        return path
    (_, labels), _ = context.natural_dataset
    drawn = datasets.draw_random_labels(labels, context.natural_dataset.n_classes, context.f.seed)
    datasets.save_random_labels(path, drawn, context.f.seed, labels)
    changed = 100 * (drawn != labels).mean()
    log.info("%d labels, %.2f%% of them changed, in %s", len(drawn), changed, shown_path(path))
    return path


def measure_radius(context: Context) -> Path:
    """The flatness radius of each network of load_dir (arXiv 1801.02254, table 1). Returns the directory.

    Leaves `res`['raw'] = {'networks': {name: {...}}, 'row': {...}}. A network has I (its loss),
    radii, profiles (for each direction the losses at 0, s, 2s, ... up to the radius), ends (the loss
    one step on, or a lower bound of it that is beyond the threshold), mean, norm (of the perturbed
    tensors), mean_by_norm. The row: `flatness.published.table_row`.
    """
    f = context.f
    networks = checked_networks(context)

    def say(unit: Unit, walk: dict) -> dict:
        named = {"network": unit.args["label"], "direction": unit.args["direction"]}
        log.info(
            "%s, direction %d: I = %.4g, radius %.4g, loss there %.4g",
            *(*named.values(), walk["profile"][0], walk["radius"], walk["profile"][-1]),
        )
        return named | walk

    def finish(walks: list[dict]) -> dict:
        moved = radius.perturbed(context.model.names, f.params)
        found = {}
        for label, place in networks.items():
            weights = context.stored_weights(*place)
            length = radius.norm([w for w, m in zip(weights, moved, strict=True) if m])
            own = [walk for walk in walks if walk["network"] == label]
            found[label] = {"eid": place[1]} | radius.summary(own, length)
            log.info(
                "%s: I(w) = %.4g, radius %.4f, by norm %.4f (norm %.2f)",
                *(label, *(found[label][key] for key in ("I", "mean", "mean_by_norm", "norm"))),
            )
        published = published_radius(stored(f.load_dir), context.flags)
        row = table_row(found, f.dataset, f.params, f.random_labels is not None, published)
        log.info("%s", row["text"])
        return {"networks": found, "row": row}

    return measure(context, networks, directions(context, networks), say, WALK, finish)


def directions(context: Context, networks: dict[str, Place]) -> list[Unit]:
    """The units of a radius: each direction of each network."""
    return [
        Unit(radius.work, (n, k), {"label": label, "number": n, "network": place, "direction": k})
        for n, (label, place) in enumerate(networks.items())
        for k in range(context.f.directions)
    ]


def make_points(context: Context) -> Path:
    """The loss in the plane of the three networks of load_dir (section IV). Returns the directory.

    Leaves X.npy, Y.npy, Z.npy (the losses), float64 [grid, grid], and the same in `res`['raw'].
    """
    networks = checked_networks(context)
    if len(networks) != 3:
        raise UserError(
            f"{context.f.load_dir}: a surface goes through three networks; here are {len(networks)} "
            f"({', '.join(networks)})"
        )
    X, Y = interpolation.grid(context.f.grid)
    places = list(networks.values())
    units = [Unit(interpolation.work, (row,), {"row": row, "networks": places}) for row in range(len(X))]

    def say(unit: Unit, found: dict) -> dict:
        losses = np.array(found["losses"])
        row = unit.args["row"] + 1
        log.info("row %d of %d: losses from %.4g to %.4g", row, len(X), losses.min(), losses.max())
        return found

    def finish(rows: list[dict]) -> dict:
        return {"X": X, "Y": Y, "Z": np.array([row["losses"] for row in rows]), "networks": list(networks)}

    path = measure(context, networks, units, say, {"losses": forms.numbers}, finish)
    raw = results.load(path)["raw"]
    for name in "XYZ":
        replace_atomically(path / f"{name}.npy", partial(_save, raw[name]))
    return path


def _save(array: np.ndarray, file: BinaryIO) -> None:
    np.save(file, array)


def measure_curvature(context: Context) -> Path:
    """The Hessian's largest eigenvalues and its trace at each network of load_dir. Returns the directory.

    Leaves `res`['raw'] = {name: `flatness.curvature.measure`}.
    """
    networks = checked_networks(context)
    units = [
        Unit(curvature.work, (n,), {"label": label, "number": n, "network": place})
        for n, (label, place) in enumerate(networks.items())
    ]

    def say(unit: Unit, found: dict) -> dict:
        log.info("%s: %s", unit.args["label"], curvature.line(found))
        return {"network": unit.args["label"]} | found

    def finish(found: list[dict]) -> dict:
        return {part["network"]: part for part in found}

    return measure(context, networks, units, say, CURVATURE, finish)


def measure(
    context: Context,
    networks: dict[str, Place],
    units: list[Unit],
    say: Callable[[Unit, Any], dict],
    form: forms.Form,
    finish: Callable[[list[dict]], dict],
) -> Path:
    """Work on the units that are not in the journal yet, then write `res`. Returns the directory.

    Args:
      networks: what is measured.
      say: logs a unit's result, and returns what of it goes into the journal.
      form: of such an entry.
      finish: all journal entries, in the order of the units -> `raw` of `res`; also logs.
    """
    measured = {name: eid for name, (_, eid) in networks.items()}
    if context.f.resume:
        path = context.check_resumed()
        before = results.read_about(path).get("measured", measured)
        if before != measured:
            raise UserError(
                f"--resume {path}: {context.f.load_dir} was trained on since this was begun: then "
                f"{_listed(before)}, now {_listed(measured)}; measure it anew"
            )
    else:
        path = results.create(Path(context.f.load_dir), context.name, context.first_files(measured=measured))
    work_dir = results.WorkDir(path)
    number = {unit.key: k for k, unit in enumerate(units)}
    done: dict[int, dict] = {}

    def store(unit: Unit, result: Any) -> None:
        k = number[unit.key]
        done[k] = {"part": k} | say(unit, result)
        work_dir.append(done[k])

    with context.writing(path):
        done |= work_dir.rewind(key="part")
        for k, entry in done.items():
            if k not in range(len(units)) or forms.wrong(entry, form):
                journal = path / "journal.jsonl"
                raise UserError(f"{journal}: damaged: unit {k} has no such result; delete {path}, and measure anew")
        log.info("measures: %s", shown_path(Path(context.f.load_dir)))
        try:
            with executor(context) as workers, Ticker(len(units), "unit", context.stop_if_asked) as ticker:
                ticker.found(len(done))
                workers.run([u for u in units if number[u.key] not in done], store, ticker)
        except Stopped:
            log.info("stopped after %d of %d units; go on with:", len(done), len(units))
            log.info("  ./run.sh %s --resume %s", context.name, shown_path(path))
            raise
        work_dir.write_res({"flags": context.flags, "raw": finish([done[k] for k in sorted(done)])})
        log.info("results in %s", shown_path(path))
    return path


def _listed(measured: dict[str, int]) -> str:
    """Networks with their epochs; a network that is named after its epoch, once."""
    said = {name: f"epoch {eid}" for name, eid in measured.items()}
    return ", ".join(epoch if name.endswith(epoch) else f"{name} {epoch}" for name, epoch in said.items())
