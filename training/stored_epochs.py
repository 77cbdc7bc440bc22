"""Measures of stored epochs, afterwards."""

import math
from pathlib import Path
from typing import Any

from catalogue.measures import ALWAYS, OF_A_NETWORK
from engine.context import Context
from engine.measurement import checked_networks, measure, record_of
from engine.units import Unit, Worker
from storage import read
from storage.run_flags import stored
from support import forms
from support.errors import UserError
from support.screen import Update, log
from training import measures
from training.attempt import first_frame
from training.measures import Evaluation, History


def measure_epochs(context: Context) -> Path:
    """Measure what the flag `measure` names at each stored epoch `eid` of load_dir. Returns the directory.

    Writes `res`['raw'] = {eid: the run's info, with the measured numbers in its stats}.

    Raises: UserError; Stopped; OSError when the disk fails.
    """
    run = context.f.load_dir
    if not context.f.measure:
        raise UserError(f"--measure: nothing to measure; give any of {', '.join(OF_A_NETWORK)}")
    if stored(run)["task"] != "train":
        raise UserError(f"{run}: has one run per seed; give one of them, {run}/seed-<n>")
    networks = checked_networks(context)
    missing = [eid for _, eid in networks.values() if eid and eid not in record_of(context, run)]
    if missing:
        raise UserError(f"{run}: its record lacks epoch {missing[0]}, which is stored; give others with --eid")
    units = [Unit(work, (place[1],), {"network": place}) for place in networks.values()]
    for line in measures.lacking(context.model, context.f.measure):
        log.info("%s", line)

    def entry(unit: Unit, stats: dict[str, Any]) -> dict[str, Any]:
        eid = unit.args["network"][1]
        log.info("epoch #%d: %s", eid, " ".join(f"{key}={value:.4g}" for key, value in stats.items()))
        return {"eid": eid, "stats": stats}

    def finish(found: list[dict[str, Any]]) -> dict[int, Any]:
        start = {
            "eid": 0,
            "lr": 0.0,
            "log_frame": first_frame(context),
            "rt_loss": math.nan,
            "time": 0.0,
            "stats": {},
        }
        raw = {0: start} | record_of(context, run)  # the initial weights have no record of their own
        return {
            part["eid"]: raw[part["eid"]] | {"stats": raw[part["eid"]]["stats"] | part["stats"]} for part in found
        }

    return measure(context, networks, units, entry, {"eid": forms.number, "stats": {}}, finish)


def work(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, Any]:
    """Compute the measures of the stored epoch `network`: a unit of work."""
    context, (path, eid) = worker.context, args["network"]
    context.model.set_weights(worker.weights((path, eid)))
    infos = [info for key, info in sorted(record_of(context, path).items()) if key <= eid]

    def before() -> tuple[int, list[Any]] | None:
        earlier = [other for other in read.stored_eids(path) if other < eid]
        return (earlier[-1], context.stored_weights(path, earlier[-1])) if earlier else None

    last = infos[-1] if infos else None
    now = Evaluation(context, last["log_frame"] if last else first_frame(context), update=context.update)
    # The initial weights have no record of their own.
    names = context.f.measure if last else dict.fromkeys((*ALWAYS, *context.f.measure))
    return measures.record(now, History(last, infos, before), names)
