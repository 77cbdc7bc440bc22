"""A measurement of stored networks: which networks, and its units of work with their record on the disk.

A measurement's working directory lies in that of the run that it measures. Each unit (a direction, a row, a network)
is in the journal as soon as it is done.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.cluster import executor
from engine.context import Context, directory, writing
from engine.units import Unit
from storage import read, workdir
from storage.run_flags import Place, networks
from support import forms
from support.errors import UserError
from support.screen import Bar, log, shown_path


def record_of(context: Context, path: str) -> dict:
    """Return {epoch: info} of a run that is measured; read once."""
    return context.kept("record", path, lambda: read.load(path)["raw"])


def checked_networks(context: Context) -> dict[str, Place]:
    """Return `storage.run_flags.networks`, having checked that data and weights are those of this Context.

    What only the checkpoint has is held from now on: the run may still train.
    """
    found = networks(context.flags)
    for path, eid in found.values():
        context.check_data(Path(path))
        weights = context.stored_weights(path, eid)
        if not read.archive_path(path, eid).exists():
            context.held[path, eid] = weights
    return found


def measure(
    context: Context,
    places: dict[str, Place],
    units: list[Unit],
    entry: Callable[[Unit, Any], dict],
    form: forms.Form,
    finish: Callable[[list[dict]], dict],
) -> Path:
    """Execute the units that are not in the journal yet, then write `res`. Returns the directory.

    Args:
      places: the networks that are measured.
      entry: logs a unit's result, and returns its journal entry.
      form: of such an entry.
      finish: all journal entries, in the order of the units -> `raw` of `res`; also logs.

    Raises: UserError; Stopped; OSError when the disk fails.
    """
    measured = {name: eid for name, (_, eid) in places.items()}
    number = {unit.key: k for k, unit in enumerate(units)}
    done: dict[int, dict] = {}
    with executor(context) as workers:
        path = directory(context, Path(context.f.load_dir), measured=measured)
        before = read.read_about(path).get("measured", measured)
        if before != measured:
            raise UserError(
                f"--resume {path}: {context.f.load_dir} was trained further since this measurement began: then "
                f"{_listed(before)}, now {_listed(measured)}; measure it again"
            )
        work_dir = workdir.WorkDir(path)
        for place, weights in context.held.items():
            workers.publish(place, weights)

        def store(unit: Unit, result: Any) -> None:
            k = number[unit.key]
            done[k] = {"part": k} | entry(unit, result)
            work_dir.append(done[k])

        with writing(context, path, lambda: f"{len(done)} of {len(units)} units"):
            done |= work_dir.rewind(key="part")
            for k, found in done.items():
                if k not in range(len(units)) or forms.wrong(found, form):
                    journal = path / "journal.jsonl"
                    raise UserError(
                        f"{journal}: damaged: unit {k} has no such result; delete {path}, and measure again"
                    )
            log.info("measures: %s", shown_path(Path(context.f.load_dir)))
            with Bar(len(units), "unit", context.update, len(done)) as bar:
                workers.run([u for u in units if number[u.key] not in done], store, bar)
            work_dir.write_res({"flags": context.flags, "raw": finish([done[k] for k in sorted(done)])})
            log.info("results in %s", shown_path(path))
    return path


def _listed(measured: dict[str, int]) -> str:
    """Join the names of networks and their epochs; a name that already contains its epoch stands alone."""
    named = {name: f"epoch {eid}" for name, eid in measured.items()}
    return ", ".join(epoch if name.endswith(epoch) else f"{name} {epoch}" for name, epoch in named.items())
