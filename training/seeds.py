"""Several networks of one experiment, one for each seed (arXiv 1801.02254, section IV).

A run of several seeds is a working directory that has one of its own for each seed, seed-<n>.
"""

from pathlib import Path
from typing import Any

import results
from context import Context
from errors import UserError
from execution import Tick, Unit, executor
from screen import Uncounted, log, shown_path
from training.run import train_in


def train_seeds(context: Context) -> Path:
    """Train one network for each of `seeds`. Returns the working directory.

    Leaves in it seed-<n>, each the working directory of a `train`, and, when all are trained, `res` =
    {'flags': flags, 'raw': {seed: info of the last epoch}}.

    Raises: as `training.run.train`.
    """
    f = context.f
    if f.seeds is None:
        raise UserError("--task train_seeds needs --seeds, such as 0,1,2")
    if f.speculate:
        raise UserError("--speculate: of several seeds each is trained by a worker of its own; leave it out")
    # Made now: what does not fit is said before anything is on the disk. All seeds share them.
    context.model, context.train_set, context.test_set  # noqa: B018
    if f.resume:
        run = context.check_resumed()
    else:
        run = results.create(context.logs_dir, context.name, {"about.json": context.about()})
    with results.locked(run):
        results.WorkDir(run).write_json("flags.json", context.flags | {"resume": None})
        for seed in f.seeds:
            path = run / f"seed-{seed}"
            if not (path / "flags.json").exists():
                results.fill(path, _child(context, seed).first_files(cluster=f.cluster))
        units = [Unit(work, (k,), {"seed": seed, "run": str(run)}) for k, seed in enumerate(f.seeds)]
        with executor(context) as workers:
            workers.run(units, lambda unit, path: log.info("trained: %s", path), Uncounted(context.stop_if_asked))
        raw = {}
        for seed in f.seeds:
            path = run / f"seed-{seed}"
            raw[seed] = results.read_journal(path)[results.stored_eids(path)[-1]]
        results.WorkDir(run).write_res({"flags": context.flags, "raw": raw})
        log.info("all seeds are trained: %s", shown_path(run))
    return run


def _child(context: Context, seed: int) -> Context:
    return context.changed(task="train", seed=seed, seeds=None, resume=None, cluster=None)


def work(context: Context, args: dict[str, Any], tick: Tick) -> str:
    """A unit of work: train the network of `seed`, in its own directory in `run`. Returns that directory."""
    run = Path(args["run"])
    return str(train_in(_child(context, args["seed"]), run / f"seed-{args['seed']}", run))
