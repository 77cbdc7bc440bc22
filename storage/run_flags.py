"""The flags of stored runs: what a task inherits from the run that it resumes or looks at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogue.attacks import refuses
from catalogue.tasks import MEASUREMENTS, SEVERAL
from flags.command_line import command_line
from flags.table import DATA, FLAGS, FREE_ON_RESUME, NETWORK, TASKS_OF, TRAINING_FLAGS, complete, flatten, renamed
from flags.values import shown
from storage import read
from storage.workdir import logs_dir
from support.errors import UserError

Place = tuple[str, int]  # where a network is stored: (working directory, epoch)


def stored(directory: Path | str) -> dict:
    """Return the flags of a working directory, complete. Raises: UserError where they are missing or damaged."""
    flags = read.read_flags(directory)
    try:
        return complete(flags)
    except UserError as error:
        raise UserError(f"{Path(directory) / 'flags.json'}: {error}") from None


def of_trained(directory: Path | str) -> dict:
    """Return the flags of a training run. Raises: UserError also for a directory of another kind."""
    flags = stored(directory)
    if flags["task"] not in ("train", "train_seeds"):
        raise UserError(
            f"{directory}: left by the task {flags['task']}, without networks; give a training run's directory"
        )
    return flags


def check_same(directory: Path, flags: dict) -> None:
    """Raises: UserError where a stored run has other flags than these, except for FREE_ON_RESUME."""
    before, now = flatten(stored(directory)), flatten(flags)
    for name, value in before.items():
        if name not in FREE_ON_RESUME and value != now[name] and not _has_moved(name, value, now[name]):
            raise UserError(
                f"{directory}: has --{name} {shown(value)}, not {shown(now[name])}; it was moved or edited: "
                "put the right run there, or delete it"
            )


@dataclass(frozen=True)
class Inherited:
    """What a task inherits from the run `load_dir`.

    Attributes:
      flags: names of the flags whose values are the run's. They cannot be given.
      but: those of them that may be given all the same.
    """

    flags: tuple[str, ...]
    but: tuple[str, ...] = ("data_dir", "dataset", "random_labels")


INHERITED = {
    "train_peek": Inherited((*DATA, *NETWORK)),
    "attack": Inherited((*DATA, *NETWORK, *TRAINING_FLAGS)),
    **dict.fromkeys(MEASUREMENTS, Inherited((*DATA, *NETWORK, *TRAINING_FLAGS))),
}


def _has_moved(name: str, old: Any, new: Any) -> bool:
    """Return whether a flag may give another place of a file of data; the fingerprint then says if it is the same."""
    return name in ("dataset", "random_labels") and all(str(value).endswith(".npz") for value in (old, new))


def resolve(script: dict, given: dict[str, Any]) -> dict:
    """Return the complete flags of a task, with those of the run that it resumes or looks at.

    Args:
      script: a script's dict, nested. given: flat: flags that replace the script's, and must not contradict that run.

    Raises: UserError for a flag that is wrong or contradicts the run, and when there is no such run.
    """
    given = renamed(given)
    if given.get("resume") is not None:  # resolved once: `latest` may be another run a moment later
        return _resumed(given | {"resume": str(read.check_run(given["resume"]).resolve())})
    flags = complete(renamed(flatten(script)) | given)
    if flags["init_from"] is not None and flags["task"] in TASKS_OF["init_from"]:
        # Resolved once, too. The network is that run's, unless its flags are typed: then its weights have to fit.
        start = read.check_run(flags["init_from"]).resolve()
        theirs = flatten(of_trained(start))
        read.choose_eids(start, "last")
        flags = complete(
            flatten(flags) | {name: theirs[name] for name in NETWORK if name not in given} | {"init_from": str(start)}
        )
    rule = INHERITED.get(flags["task"])
    run = _run_of(flags) if rule else None
    if rule is None or run is None:
        return flags
    own, theirs = flatten(flags), flatten(of_trained(run))
    taken = {name: theirs[name] for name in rule.flags} | {"load_dir": str(run)}
    for name in rule.flags:
        if (
            name in given
            and own[name] != theirs[name]
            and not (own[name] is None and name in ("dataset", "data_dir"))
        ):
            if name != "data_dir" and not _has_moved(name, theirs[name], own[name]):
                raise UserError(f"--{name} {shown(own[name])}: the run {run} has {shown(theirs[name])}; leave it out")
            taken[name] = own[name]
    flags = complete(own | taken)
    if flags["task"] in MEASUREMENTS:
        networks(flags)
    return flags


def of_command_line(argv: list[str], script: dict, about: str = "", prog: str = "") -> dict:
    """Return the complete flags of a script and the words after its name. Arguments as of `command_line`.

    Raises: UserError, also for a flag that the task does not read.
    """
    given = command_line(argv, script, about, prog)
    rule = INHERITED.get(script.get("task", "train"))
    for name in given:
        if rule is not None and name in rule.flags and name not in rule.but:
            raise UserError(f"--{name}: comes from the run that is inspected; leave it out")
    flags = resolve(script, given)
    _check_read(flags, given)
    return flags


def _resumed(given: dict[str, Any]) -> dict:
    """Return the flags of the run to resume. Only FREE_ON_RESUME may change."""
    before = flatten(stored(given["resume"]))
    if before["task"] in INHERITED:
        # The run is where the directory lies: load_dir may have named `latest`, or a place that has moved since.
        given = given | {"load_dir": before["load_dir"]}
    cluster = before["cluster"]
    if "cluster" not in given and isinstance(cluster, str) and "://" not in cluster and not Path(cluster).exists():
        raise UserError(
            f"--resume {given['resume']}: ran with the scheduler file {cluster}, which is gone; give --cluster with "
            "another one, or --cluster none"
        )
    flags = complete(before | given)
    after = flatten(flags)
    for flag in FLAGS:
        old, new = before[flag.name], after[flag.name]
        if flag.name not in FREE_ON_RESUME and old != new and not _has_moved(flag.name, old, new):
            raise UserError(
                f"--{flag.name} {shown(new)}: the run to resume has {shown(old)}; "
                f"when resuming, only {', '.join(FREE_ON_RESUME)} may change"
            )
    if flags["task"] in INHERITED and flags["task"] != "train_peek":
        return flags | {"load_dir": str(read.check_run(given["resume"]).resolve().parent.parent)}
    return flags


def _check_read(flags: dict, given: dict[str, Any]) -> None:
    """Raises: UserError for a typed flag that the task, or the attack's method, does not read."""
    task = flags["task"]
    for name in given:
        if task not in TASKS_OF[name]:
            raise UserError(f"--{name}: the task {task} does not read it (only {', '.join(TASKS_OF[name])})")
        if task == "attack" and refuses(flags["attack_method"], name):
            raise UserError(f"--{name}: {flags['attack_method']} has no such setting; see --help")


def _run_of(flags: dict) -> Path | None:
    """Return the run that a task looks at; None where the flags name none (train_peek reports that itself)."""
    if flags["load_dir"] is not None:
        return read.check_run(flags["load_dir"]).resolve()
    if flags["task"] in MEASUREMENTS:
        return _latest_run(flags).resolve()
    if flags["task"] == "attack":
        raise UserError("which run? use ./eval.sh <attack> <working directory>, such as logs/<experiment>/<time>")
    return None


def _latest_run(flags: dict) -> Path:
    if flags["measured_experiment"] is None:
        raise UserError("give the working directory of a run, logs/<experiment>/<time>")
    experiment = flags["measured_experiment"] + ("_random" if flags["on_random_labels"] else "")
    logs = logs_dir(flags["logs_dir"])
    found = sorted(read.runs_in(logs / experiment), key=read.began)
    wanted = flags["dataset"]
    if wanted is not None:
        sets = {path: stored(path)["dataset"] for path in found}
        found = [path for path in found if sets[path] == wanted or _has_moved("dataset", sets[path], wanted)]
    if not found:
        of = f" on {wanted}" if wanted else ""
        raise UserError(f"no run of {experiment}{of} in {logs}; train first: ./run.sh {experiment}")
    return found[-1]


def networks(flags: dict) -> dict[str, Place]:
    """Return {name: place} of the networks of load_dir: one per seed, or per `eid`.

    Raises: UserError for a seed without its epochs: all E of them for the `eid` last, else those that are named.
    """
    run = Path(flags["load_dir"])
    of_the_run = stored(run)
    if of_the_run["task"] not in SEVERAL:
        return {f"epoch {eid}": (str(run), eid) for eid in read.choose_eids(run, flags["eid"])}
    found = {}
    for seed in of_the_run["seeds"]:
        path = run / f"seed-{seed}"
        eids = read.stored_eids(path) if (path / "flags.json").is_file() else []
        has, due = eids[-1] if eids else 0, of_the_run["E"]
        if has == 0 or (flags["eid"] == "last" and has != due):
            experiment = read.read_about(run)["experiment"]
            state = f"has {has} of its {due} epochs" if has < due else f"has {has} epochs, not {due}"
            remedy = f"finish it with ./run.sh {experiment} --resume {run}"
            raise UserError(
                f"{run}: seed {seed} {state}, and all {len(of_the_run['seeds'])} networks are needed; "
                + (remedy if has < due else f"{remedy} --E {has}, or choose a common epoch with --eid")
            )
        for eid in read.choose_eids(path, flags["eid"]):
            several = "" if flags["eid"] == "last" else f" epoch {eid}"
            found[f"seed {seed}{several}"] = (str(path), eid)
    return found
