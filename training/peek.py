"""Looking at stored epochs of a run: their stats and margins, how training would go on, more measures afterwards."""

import math
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

import forms
import results
from context import Context
from errors import UserError
from execution import Tick, Unit, weights_of
from flags.table import stored as stored_flags
from flatness.networks import checked_networks, record_of
from flatness.run import measure
from screen import log
from training import measures
from training.attempt import attempt, stats
from training.run import stats_line


def train_peek(context: Context) -> Path:
    """From each stored epoch `eid` of load_dir, train E more epochs at fixed lr and log_frame0.

    Leaves, in <load_dir>/train_peek/<time>, `res` = {'flags': flags, 'raw': {eid: {'stats': stats of
    the epoch itself, 'q': its margins q_i, float64 [N], 'epochs': [info, ...]}}}; each info has
    also its own q. lr is in the frame exp(log_frame0). The stored epochs and every `measure_every`-th one
    after them also have what `measure` names.

    Raises: UserError; Stopped; OSError when the disk fails.
    """
    f = context.f
    if f.load_dir is None:
        raise UserError("--task train_peek needs --load_dir, the working directory to peek into")
    if not isinstance(f.lr, float):
        raise UserError(f"--task train_peek needs a fixed --lr, a number; it is {f.lr}")
    source = results.check_run(f.load_dir)
    weights = {eid: context.stored_weights(source, eid) for eid in results.choose_eids(source, f.eid)}
    work_dir = results.WorkDir(results.create(source, "train_peek", context.first_files()))
    raw = {}
    with context.writing(work_dir.path):
        try:
            for eid in tqdm(weights, unit="epoch", disable=None):
                raw[eid] = _peek(context, eid, weights[eid])
        finally:
            work_dir.write_res({"flags": context.flags, "raw": raw})
    return work_dir.path


def _peek(context: Context, eid: int, weights: Any) -> dict[str, Any]:
    f = context.f
    context.model.set_weights(weights)
    peeked: dict[str, Any] = {"stats": stats(context, f.log_frame0), "q": _margins(context), "epochs": []}
    kept: dict[str, Any] = {}
    peeked["stats"] |= measures.record(measures.Epoch(context, f.log_frame0, kept=kept), f.measure or ())
    log.info("epoch #%d: %s", eid, stats_line(peeked["stats"]))
    for more in range(1, f.E + 1):
        began = time.perf_counter()
        outcome = attempt(context, weights, eid + more, 1, f.lr, f.log_frame0, math.inf)
        info, weights = outcome.info, outcome.weights
        info |= {"time": time.perf_counter() - began, "q": _margins(context)}
        peeked["epochs"].append(info)
        if info["stats"] is None:
            log.info("epoch #%d + %d: a batch loss above loss_ub", eid, more)
            break
        times = {"train_time": outcome.train_time, "eval_time": outcome.eval_time}
        info["stats"] |= times | {"attempts": 1}
        if f.measure and f.measure_every != "archived" and (more % f.measure_every == 0 or more == f.E):
            epoch = measures.Epoch(context, f.log_frame0, info=info, kept=kept)
            info["stats"] |= measures.record(epoch, f.measure)
        log.info("epoch #%d + %d: %s", eid, more, stats_line(info["stats"]))
    return peeked


def measure_epochs(context: Context) -> Path:
    """What the flag `measure` names, of each stored epoch `eid` of load_dir. Returns the directory.

    Leaves `res`['raw'] = {eid: the run's info, with the measured numbers in its stats}.

    Raises: UserError; Stopped; OSError when the disk fails.
    """
    run = context.f.load_dir
    if not context.f.measure:
        raise UserError(f"--measure: nothing to measure; give any of {', '.join(measures.ON_REQUEST)}")
    if stored_flags(run)["task"] != "train":
        raise UserError(f"{run}: holds a run for each seed; give one of them, {run}/seed-<n>")
    networks = checked_networks(context)
    missing = [eid for _, eid in networks.values() if eid not in record_of(context, run)]
    if missing:
        raise UserError(f"{run}: its record lacks epoch {missing[0]}, which is stored; give others with --eid")
    units = [Unit(work, (place[1],), {"network": place}) for place in networks.values()]
    for name in context.f.measure:
        if reason := measures.MEASURES[name].lacks(context.model):
            log.info("%s: %s", name, reason)

    def say(unit: Unit, stats: dict[str, Any]) -> dict[str, Any]:
        eid = unit.args["network"][1]
        log.info("epoch #%d: %s", eid, " ".join(f"{key}={value:.4g}" for key, value in stats.items()))
        return {"eid": eid, "stats": stats}

    def finish(found: list[dict[str, Any]]) -> dict[int, Any]:
        raw = record_of(context, run)
        return {
            part["eid"]: raw[part["eid"]] | {"stats": raw[part["eid"]]["stats"] | part["stats"]} for part in found
        }

    return measure(context, networks, units, say, {"eid": forms.number, "stats": {}}, finish)


def work(context: Context, args: dict[str, Any], tick: Tick) -> dict[str, Any]:
    """A unit of work: the measures of the stored epoch `network`."""
    path, eid = args["network"]
    context.model.set_weights(weights_of(context, (path, eid)))
    infos = [info for key, info in sorted(record_of(context, path).items()) if key <= eid]

    def stored() -> tuple[int, list[Any]] | None:
        before = [other for other in results.stored_eids(path) if other < eid]
        return (before[-1], context.stored_weights(path, before[-1])) if before else None

    def stop_if_asked(done: int) -> None:
        context.stop_if_asked()

    now = infos[-1]
    epoch = measures.Epoch(context, now["log_frame"], tick=stop_if_asked, info=now, infos=infos, stored=stored)
    return measures.record(epoch, context.f.measure)


def _margins(context: Context) -> Any:
    """q_i of the network as it is now, over the training set, float64 [N]."""
    return measures.Epoch(context, context.f.log_frame0).q
