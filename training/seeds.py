"""Several networks of one experiment, one for each seed (arXiv 1801.02254, section IV).

A run of several seeds is a working directory that has one of its own for each seed, seed-<n>.
"""

from pathlib import Path

import results
from context import Context
from errors import UserError
from screen import log, shown_path
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
    # Made now: what does not fit is said before anything is on the disk. All seeds share them.
    context.model, context.train_set, context.test_set  # noqa: B018
    if f.resume:
        run = context.check_resumed()
    else:
        run = results.create(context.logs_dir, context.name, {"about.json": context.about()})
    with results.locked(run):
        results.WorkDir(run).write_json("flags.json", context.flags | {"resume": None})
        raw = {}
        for seed in f.seeds:
            path = run / f"seed-{seed}"
            child = context.changed(task="train", seed=seed, seeds=None, resume=None)
            if not (path / "flags.json").exists():
                results.fill(path, child.first_files())
            train_in(child, path, run)
            raw[seed] = results.read_journal(path)[results.stored_eids(path)[-1]]
        results.WorkDir(run).write_res({"flags": context.flags, "raw": raw})
        log.info("all seeds are trained: %s", shown_path(run))
    return run
