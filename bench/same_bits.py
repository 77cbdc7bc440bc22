"""Do two versions of this program compute the same bits? `python bench/same_bits.py OLD NEW WORK_DIR`.

OLD and NEW are folders with the program. Both run the same commands (trainings, attacks, flatness
measurements, all on the bundled digits), each with its own logs below WORK_DIR. Then every journal line
(times aside), every checkpoint and every result is compared, bit for bit. A side that has run already is not
run again. Exit status 1 where something differs.
"""

import argparse
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

TIMES = {"time", "train_time", "eval_time"}
QUICK = [f"exper-quick-digits-cnn-{lr}" for lr in ("loss-based-lr", "const-lr-1")]
MARGIN, MLP = "{logs}/parts2/" + QUICK[0] + "/latest", "{logs}/mlp/train_mnist_random/latest"
LABELS = "--dataset digits --random_labels {logs}/labels.npz"
COMMANDS = [
    *(f"run.sh {name} --E 40 --parts {n} --logs_dir {{logs}}/parts{n}" for name in QUICK for n in (1, 2)),
    f"run.sh make_random_labels {LABELS}",
    f"run.sh train_mnist_random {LABELS} --E 3 --logs_dir {{logs}}/mlp",
    f"eval.sh eval-final-mnist-l2-ddn {MARGIN} --eid 10,40 --attack_N 64",
    f"eval.sh eval-final-mnist-l2 {MARGIN} --eid 40 --attack_N 64 --attack_K 100",
    f"eval.sh eval-final-mnist-inf {MARGIN} --eid 40 --attack_N 64 --attack_K 20 --attack_E 2",
    f"run.sh measure_radius_mnist {MLP} --directions 2",
    f"run.sh measure_radius_mnist_top {MLP} --directions 2",
    f"run.sh make_points_mnist {MLP} --grid 4",
    f"run.sh measure_curvature {MARGIN} --eid 40 --eigenvalues 2 --probes 2",
]


def run_all(program: Path, logs: Path) -> None:
    """Every command of COMMANDS that has not left its mark below logs yet."""
    for number, command in enumerate(COMMANDS):
        mark = logs / f"done-{number}"
        if not mark.exists():
            script, *words = command.format(logs=logs).split()
            print(program.name, script, *words, flush=True)
            quiet = [] if "labels" in words[0] else ["--figures", "false"]
            subprocess.run(
                [program / script, *words, "--gpu", "-1", *quiet], check=True, stdout=subprocess.DEVNULL
            )
            logs.mkdir(parents=True, exist_ok=True)
            mark.touch()


def without_times(value):
    """Nested dicts and lists, without what a clock measured."""
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in TIMES | {"flags"}}
    return [without_times(v) for v in value] if isinstance(value, list | tuple) else value


def content(path: Path):
    """What a file of a working directory says, as nested dicts, lists and arrays."""
    if path.name == "journal.jsonl":
        return [without_times(json.loads(line.split(b"\t")[0])) for line in path.read_bytes().splitlines()]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays if name != "state"}
    if path.suffix == ".npy":
        return np.load(path)
    with open(path, "rb") as file:
        return without_times(pickle.load(file))


def differences(a, b, where: str = "") -> list[str]:
    """The places in which two contents differ; a NaN equals a NaN; keys that only b has are fine."""
    if isinstance(a, dict):
        missing = [f"{where}/{key}: missing" for key in a if key not in b]
        return missing + [d for key in a if key in b for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [
            d for k, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{where}/{k}")
        ]
    same = np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
    return [] if same else [where or "the array"]


def results_of(logs: Path) -> dict[Path, Path]:
    """{a file's place, its time stamps named by their order: the file}."""
    found = {}
    for path in sorted(logs.rglob("*")):
        if path.name in ("journal.jsonl", "res") or path.suffix in (".npz", ".npy"):
            place = [part for part in path.relative_to(logs).parts if part != "latest"]
            place = [part for part in place if not (part[:2] == "20" and "_" in part)]
            if "latest" not in path.relative_to(logs).parts:
                found[Path(*place)] = path
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("old", "new", "work_dir"):
        parser.add_argument(name, type=lambda word: Path(word).resolve())
    args = parser.parse_args()
    sides = []
    for side in (args.old, args.new):
        run_all(side, args.work_dir / side.name)
        sides.append(results_of(args.work_dir / side.name))
    old, new = sides
    wrong = [f"{place}: only in the old one" for place in old if place not in new]
    for place in old.keys() & new.keys():
        wrong += [f"{place}{d}" for d in differences(content(old[place]), content(new[place]))]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{len(old)} files compared, {len(wrong)} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
