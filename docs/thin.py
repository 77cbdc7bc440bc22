"""Keeps a small part of a run's record, for docs/runs: `python docs/thin.py <working directory> <place>`.

The place gets flags.json, about.json, and of `res`
- of a training some 250 epochs, evenly spaced on a logarithmic axis, and all that --measure looked at;
- of an attack the distances and whether images were fooled, and its summary.json;
- of a measurement all of it.
Figures are drawn from it as from the run itself. What is of one machine only is left out.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results
from catalogue.tasks import TRAINING
from flags import complete, flatten
from flags.table import DATA, TASKS_OF
from flags.values import shown
from reporting.kinds import ATTACKED
from storage import workdir

EPOCHS = 250
OF_THE_MACHINE = ("logs_dir", "data_dir", "resume", "load_dir")


def thinned(raw: dict[int, dict]) -> dict[int, dict]:
    """Of a training: the epochs to keep."""
    last = max(raw)
    spaced = set(np.unique(np.geomspace(1, last, EPOCHS).round().astype(int)).tolist())
    return {eid: info for eid, info in raw.items() if eid in spaced or "beta" in info["stats"]}


def main(directory: Path, place: Path) -> None:
    """Write the small record of `directory` to `place`."""
    res, about = results.load(directory), results.read_about(directory)
    flags = results.read_flags(directory) | dict.fromkeys(OF_THE_MACHINE)
    kept = ("format", "experiment", "git", "versions", "device", "threads", "data", "measured")
    about = {key: about[key] for key in kept if key in about}
    script = flatten(complete(importlib.import_module(about["experiment"]).flags))
    now = flatten(complete(flags))
    training = flags["task"] in TRAINING
    mine = [name for name in now if flags["task"] in TASKS_OF[name] and name != "figures"]
    given = [name for name in mine if training or name.split(".")[0] not in {*DATA, "model", "B", "drop_last"}]
    changed = {name: now[name] for name in given if now[name] != script[name]}
    words = [f"--{name} {shown(tuple(v) if isinstance(v, list) else v)}" for name, v in changed.items()]
    about["command"] = " ".join([f"{about['experiment']}.py", *([] if training else ["<run>"]), *words])
    place.mkdir(parents=True, exist_ok=True)
    written = workdir.WorkDir(place)
    written.write_json("flags.json", flags)
    written.write_json("about.json", about)
    if flags["task"] == "attack":
        written.write_json("summary.json", results.read_summary(directory))
        written.write_res({eid: {key: found[key] for key in ATTACKED} for eid, found in res.items()})
    else:
        written.write_res({"flags": flags, "raw": thinned(res["raw"]) if training else res["raw"]})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
