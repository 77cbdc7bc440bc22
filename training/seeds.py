"""Several networks of one experiment, one per seed (arXiv 1801.02254, section IV).

The working directory contains one of its own for each seed, seed-<n>.
"""

from pathlib import Path
from typing import Any

from engine.cluster import executor
from engine.context import Context, first_files, logs_dir, resumed
from engine.units import Unit, Worker
from storage import read, workdir
from support.errors import UserError
from support.screen import Progress, Update, log, shown_path
from training.run import train_in


def train_seeds(context: Context) -> Path:
    """Train one network for each of `seeds`. Returns the working directory.

    Writes in it seed-<n>, each the working directory of a `train`, and, when all are trained, `res` =
    {'flags': flags, 'raw': {seed: info of the last epoch}}.

    Raises: as `training.run.train`.
    """
    f = context.f
    if f.seeds is None:
        raise UserError("--task train_seeds needs --seeds, such as 0,1,2")
    if f.speculate:
        raise UserError("--speculate: with several seeds, each worker trains one of them; leave it out")
    # Made now: errors are reported before anything is written. All seeds share them.
    context.model, context.train_set, context.test_set  # noqa: B018
    if f.resume:
        run = resumed(context)
    else:
        run = workdir.create(logs_dir(context), context.name, {"about.json": first_files(context)["about.json"]})
    with workdir.locked(run):
        workdir.WorkDir(run).write_json("flags.json", context.flags | {"resume": None})
        for seed in f.seeds:
            path = run / f"seed-{seed}"
            if not (path / "flags.json").exists():
                workdir.fill(path, first_files(_child(context, seed), cluster=f.cluster))
        units = [Unit(work, (k,), {"seed": seed, "run": str(run)}) for k, seed in enumerate(f.seeds)]
        with executor(context) as workers:
            workers.run(units, lambda unit, path: log.info("trained: %s", path), Progress(context.update))
        raw = {}
        for seed in f.seeds:
            path = run / f"seed-{seed}"
            raw[seed] = read.read_journal(path)[read.stored_eids(path)[-1]]
        workdir.WorkDir(run).write_res({"flags": context.flags, "raw": raw})
        log.info("all seeds are trained: %s", shown_path(run))
    return run


def _child(context: Context, seed: int) -> Context:
    return context.changed(task="train", seed=seed, seeds=None, resume=None, cluster=None)


def work(worker: Worker, args: dict[str, Any], update: Update) -> str:
    """A unit of work: train the network of `seed`, in its own directory in `run`. Returns that directory."""
    run = Path(args["run"])
    return str(train_in(_child(worker.context, args["seed"]), run / f"seed-{args['seed']}", run))
