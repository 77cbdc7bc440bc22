"""Looking at stored epochs of a run: their stats and margins, and how training would go on from them."""

import math
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

import results
from context import Context
from errors import UserError
from screen import log
from training import measures
from training.attempt import attempt, stats
from training.run import stats_line


def train_peek(context: Context) -> Path:
    """From each stored epoch `eid` of load_dir, train E more epochs at fixed lr and log_frame0.

    Leaves, in <load_dir>/train_peek/<time>, `res` = {'flags': flags, 'raw': {eid: {'stats': stats of
    the epoch itself, 'q': its margins q_i, float64 [N], 'epochs': [info, ...]}}}; each info has
    also its own q. lr is in the frame exp(log_frame0).

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
        log.info("epoch #%d + %d: %s", eid, more, stats_line(info["stats"]))
    return peeked


def _margins(context: Context) -> Any:
    """q_i of the network as it is now, over the training set, float64 [N]."""
    return measures.Epoch(context, context.f.log_frame0).q
