"""Several networks of one experiment, one per seed (arXiv 1801.02254, section IV).

The working directory contains one of its own for each seed, seed-<n>.
"""

from pathlib import Path
from typing import Any

from engine.cluster import executor
from engine.context import Context, command_of, directory, first_files, logs_dir, resumed
from engine.units import Unit, Worker
from storage import read, workdir
from storage.run_flags import check_same
from support.errors import UserError
from support.screen import Progress, Update, log, shown_path
from training.run import check_training, train_in


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
    check_training(context)
    context.train_set, context.test_set  # noqa: B018
    children = {seed: _child(context, seed) for seed in f.seeds}
    if f.resume:
        for seed, child in children.items():
            if (path := resumed(context) / f"seed-{seed}" / "flags.json").exists():
                check_same(path.parent, child.flags)
                child.check_data(path.parent)
    trained: list[str] = []

    def report(unit: Unit, path: str) -> None:
        trained.append(path)
        log.info("trained: %s", path)

    def after() -> str:
        return f"{len(trained)} of {len(children)} networks"

    with executor(context) as workers:
        run = directory(context, logs_dir(context))
        with workdir.locked(run), workdir.resumable(command_of(context.name), run, after):
            workdir.WorkDir(run).write_json("flags.json", context.flags | {"resume": None})
            for seed, child in children.items():
                if not (run / f"seed-{seed}" / "flags.json").exists():
                    workdir.fill(run / f"seed-{seed}", first_files(child, cluster=f.cluster))
            units = [Unit(work, (k,), {"seed": seed, "run": str(run)}) for k, seed in enumerate(f.seeds)]
            workers.run(units, report, Progress(context.update))
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
    """Train the network of `seed`, in its own directory in `run`: a unit of work. Returns that directory."""
    run = Path(args["run"])
    context = _child(worker.context, args["seed"])
    context.update = update
    return str(train_in(context, run / f"seed-{args['seed']}", run))
