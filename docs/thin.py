"""Keeps a small part of a training run's record, for docs/runs: `python docs/thin.py <working directory> <place>`.

The place gets flags.json, about.json and `res` of some 250 epochs, evenly spaced on a logarithmic axis, and of all
that --measure looked at. Figures are drawn from it as from the run itself. What is of one machine only is left out.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results
from flags import complete, flatten
from flags.values import shown

EPOCHS = 250
OF_THE_MACHINE = ("logs_dir", "data_dir", "resume")


def thinned(raw: dict[int, dict]) -> dict[int, dict]:
    """The epochs to keep."""
    last = max(raw)
    spaced = set(np.unique(np.geomspace(1, last, EPOCHS).round().astype(int)).tolist())
    return {eid: info for eid, info in raw.items() if eid in spaced or "beta" in info["stats"]}


def main(directory: Path, place: Path) -> None:
    """Write the small record of `directory` to `place`."""
    res, about = results.load(directory), results.read_about(directory)
    flags = results.read_flags(directory) | dict.fromkeys(OF_THE_MACHINE)
    about = {key: about[key] for key in ("experiment", "git", "versions", "device", "threads", "data")}
    script = flatten(complete(importlib.import_module(about["experiment"]).flags))
    now = flatten(complete(flags))
    changed = [f"--{name} {shown(now[name])}" for name in now if now[name] != script[name] and name != "figures"]
    about["command"] = " ".join([f"{about['experiment']}.py", *changed])
    place.mkdir(parents=True, exist_ok=True)
    written = results.WorkDir(place)
    written.write_json("flags.json", flags)
    written.write_json("about.json", about)
    written.write_res({"flags": flags, "raw": thinned(res["raw"])})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
