"""How training would continue from stored epochs of a run, at a fixed learning rate."""

import math
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.context import Context, first_files, writing
from storage import read, workdir
from support.errors import UserError
from support.screen import log
from training import measures
from training.attempt import attempt, first_frame, stats_line
from training.measures import Evaluation, History


def train_peek(context: Context) -> Path:
    """Train E more epochs from each stored epoch `eid` of load_dir, at fixed lr and log_frame0.

    Writes, in <load_dir>/train_peek/<time>, `res` = {'flags': flags, 'raw': {eid: {'stats': stats of
    the epoch itself, 'q': its margins q_i, float64 [N], 'epochs': [info, ...]}}}; each info has
    also its own q. lr is in the frame exp(log_frame0). The stats of the stored epochs and of every
    `measure_every`-th one after them include what `measure` names.

    Raises: UserError; Stopped; OSError when the disk fails.
    """
    f = context.f
    if f.load_dir is None:
        raise UserError("--task train_peek needs --load_dir, the working directory to peek into")
    if not isinstance(f.lr, float):
        raise UserError(f"--task train_peek needs a fixed --lr, a number; it is {f.lr}")
    if f.resume is not None:
        raise UserError("--resume: a peek cannot be resumed, since it is short; start it again with --load_dir")
    source = read.check_run(f.load_dir)
    context.check_data(source)
    weights = {eid: context.stored_weights(source, eid) for eid in read.choose_eids(source, f.eid)}
    files = first_files(context)
    context.update(0.0)
    work_dir = workdir.WorkDir(workdir.create(source, "train_peek", files))
    raw = {}
    with writing(context, work_dir.path):
        try:
            for eid in tqdm(weights, unit="epoch", disable=None):
                raw[eid] = _peek(context, eid, weights[eid])
        finally:
            work_dir.write_res({"flags": context.flags, "raw": raw})
    return work_dir.path


def _peek(context: Context, eid: int, weights: Any) -> dict[str, Any]:
    f = context.f
    context.model.set_weights(weights)
    log_frame = first_frame(context)
    now, history = Evaluation(context, log_frame), History()
    peeked: dict[str, Any] = {"stats": measures.record(now), "q": now.q, "epochs": []}
    peeked["stats"] |= measures.record(now, history, f.measure or ())
    log.info("epoch #%d: %s", eid, stats_line(peeked["stats"]))
    for more in range(1, f.E + 1):
        began = time.perf_counter()
        outcome = attempt(context, weights, eid + more, 1, f.lr, log_frame, math.inf, context.update)
        info, weights = outcome.info, outcome.weights
        info["time"] = time.perf_counter() - began
        peeked["epochs"].append(info)
        if info["stats"] is None:
            log.info("epoch #%d + %d: a batch loss above loss_ub, or not finite", eid, more)
            break
        now = Evaluation(context, log_frame)
        info["q"] = now.q
        times = {"train_time": outcome.train_time, "eval_time": outcome.eval_time}
        info["stats"] |= times | {"attempts": 1}
        if f.measure and f.measure_every != "archived" and (more % f.measure_every == 0 or more == f.E):
            info["stats"] |= measures.record(now, History(info, kept=history.kept), f.measure)
        log.info("epoch #%d + %d: %s", eid, more, stats_line(info["stats"]))
    return peeked
