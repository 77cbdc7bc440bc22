"""Which networks a measurement measures. No TensorFlow here."""

from pathlib import Path

import results
from context import Context
from errors import UserError
from flags.table import OF_THE_RUN, of_trained, stored
from results import ROOT

Place = tuple[str, int]  # where a network is stored: (working directory, epoch)


def with_flags_of_the_run(flags: dict) -> dict:
    """A measurement's flags, with those of the measured run over them, and load_dir as it was found.

    Raises: UserError where there is no such run, or not all of its networks.
    """
    if flags["resume"] is not None:  # the flag load_dir may name `latest`, or a place that has moved
        path = results.check_run(results.check_run(flags["resume"]).resolve().parent.parent)
    elif flags["load_dir"] is not None:
        path = results.check_run(flags["load_dir"])
    else:
        path = _latest_run(flags)
    of_the_run = of_trained(path)
    if flags["dataset"] not in (None, of_the_run["dataset"]):
        raise UserError(f"--dataset {flags['dataset']}: the run {path} is on {of_the_run['dataset']}")
    taken = {name: of_the_run[name] for name in OF_THE_RUN} | {"load_dir": str(path.resolve())}
    if flags["data_dir"] is None:
        taken["data_dir"] = of_the_run["data_dir"]
    flags = flags | taken
    networks(flags)
    return flags


def _latest_run(flags: dict) -> Path:
    if flags["measured_experiment"] is None:
        raise UserError("give the working directory of a run, logs/<experiment>/<time>")
    experiment = flags["measured_experiment"] + ("_random" if flags["on_random_labels"] else "")
    logs = Path(flags["logs_dir"]) if flags["logs_dir"] else ROOT / "logs"
    found = sorted((logs / experiment).glob("*"))
    found = [path for path in found if path.name != "latest" and (path / "flags.json").is_file()]
    wanted = flags["dataset"]
    if wanted is not None:
        found = [path for path in found if results.read_flags(path).get("dataset") == wanted]
    if not found:
        of = f" on {wanted}" if wanted else ""
        raise UserError(f"no run of {experiment}{of} in {logs}; train first: ./run.sh {experiment}")
    return found[-1]


def networks(flags: dict) -> dict[str, Place]:
    """{name: place} of the networks of load_dir: one for each seed, or for each `eid`.

    Raises: UserError when not every seed is trained to the end.
    """
    run = Path(flags["load_dir"])
    of_the_run = stored(run)
    if of_the_run["task"] == "train":
        return {f"epoch {eid}": (str(run), eid) for eid in results.choose_eids(run, flags["eid"])}
    found = {}
    for seed in of_the_run["seeds"]:
        path = run / f"seed-{seed}"
        eids = results.stored_eids(path) if (path / "flags.json").is_file() else []
        has, due = eids[-1] if eids else 0, of_the_run["E"]
        if has == 0 or (flags["eid"] == "last" and has != due):
            experiment = results.read_about(run)["experiment"]
            about = f"has {has} of its {due} epochs" if has < due else f"has {has} epochs, not {due}"
            mend = f"finish it with ./run.sh {experiment} --resume {run}"
            raise UserError(
                f"{run}: seed {seed} {about}, and all {len(of_the_run['seeds'])} networks are needed; "
                + (mend if has < due else f"{mend} --E {has}, or choose a common epoch with --eid")
            )
        for eid in results.choose_eids(path, flags["eid"]):
            several = "" if flags["eid"] == "last" else f" epoch {eid}"
            found[f"seed {seed}{several}"] = (str(path), eid)
    return found


def record_of(context: Context, path: str) -> dict:
    """{epoch: info} of a run that is measured; read once."""
    return context.kept("record", path, lambda: results.load(path)["raw"])


def checked_networks(context: Context) -> dict[str, Place]:
    """The same, after a look at each: its data must be those loaded now, its weights those of this network."""
    found = networks(context.flags)
    for path, eid in found.values():
        context.check_data(Path(path))
        context.stored_weights(path, eid)
    return found
