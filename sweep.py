"""A grid of whole runs: python sweep.py <experiment> --grid seed=0:5 --grid lr=0.01,0.1 [--flag value ...]

`--grid flag=value,value` once for each flag that changes; `--resume <directory>` continues a sweep.
"""

import runpy
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, Ctrl-C prints no traceback
sys.path.insert(0, __file__.rpartition("/")[0] or ".")  # also with PYTHONSAFEPATH

import launch
from support.errors import nearest
from support.screen import print_error


def main(words: list[str]) -> None:
    """Start the task `sweep` of an experiment."""
    known = launch.scripts("run")
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    name, *rest = words
    script = known.get(name.removesuffix(".py"))
    flags = runpy.run_path(str(script), run_name="sweep")["flags"] if script else {}
    if script is None or flags.get("task") not in ("train", "train_seeds"):
        trainings = [known_name for known_name in known if known_name.startswith(("exper", "train"))]
        print_error(f"error: no training is named {name}{nearest(name, trainings)}")
        sys.exit(2)
    grids, others = [], []
    while rest:
        word = rest.pop(0)
        if word == "--grid":  # one axis, or several
            while rest and not rest[0].startswith("--"):
                grids.append(rest.pop(0))
        elif word.startswith("--grid="):
            grids.append(word.partition("=")[2])
        else:
            others.append(word)
    flags |= {"task": "sweep", "seeds": None, "axes": grids or None}
    launch.main(f"sweep-{script.stem}.py", flags, __doc__, others, f"python sweep.py {script.stem}")


if __name__ == "__main__":
    main(sys.argv[1:])
