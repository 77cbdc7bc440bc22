"""Into how many slices to cut a batch: every network of the program with 1 slice and one per core, in turn.

    python bench/parts.py [--rounds 3]

Each measurement is a process of its own (`bench/train_step.py`), because TensorFlow fixes its thread pools once. The
table has µs per image in training, the best of all rounds; what `--parts auto` chooses, and how much slower that is
than the better of the two; and the speed relative to plain TensorFlow with its default threads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.device import cores

NETWORKS = {  # {experiment: gradient steps in a measured epoch}
    "exper-quick-digits-cnn-loss-based-lr": 60,
    "exper-final-mnist-cnn-loss-based-lr": 20,
    "train_mnist": 60,
    "exper-final-cifar-vgg-loss-based-lr": 2,
}


def measured(experiment: str, parts: str, batches: int) -> dict:
    """Return what `bench/train_step.py` measures in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        words = ["--experiment", experiment, "--parts", parts, "--batches", str(batches), "--json", file.name]
        script = Path(__file__).with_name("train_step.py")
        subprocess.run([sys.executable, script, *words, "--repeats", "4"], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="one experiment")
    args = parser.parse_args()
    both, roofs = ("1", str(cores())), []
    print(f"| network | 1 part | {both[1]} parts | auto | slower than the better | plain TensorFlow / auto |")
    print("|---|---|---|---|---|---|", flush=True)
    for experiment, batches in NETWORKS.items():
        if args.only not in (None, experiment):
            continue
        chosen = str(measured(experiment, "auto", 1)["parts"])
        found: dict[str, list[dict]] = {parts: [] for parts in {*both, chosen}}
        for _ in range(args.rounds):
            for parts in sorted(found):
                found[parts].append(measured(experiment, parts, batches))
        best = {parts: min(one["train"]["us_per_image"] for one in own) for parts, own in found.items()}
        plain = min(one["plain_train"]["us_per_image"] for one in found["1"])
        roofs += [one["roof_gflops"] for own in found.values() for one in own]
        lost = best[chosen] / min(best.values()) - 1
        shown = " | ".join(f"{best[parts]:.1f}" for parts in both)
        print(f"| {experiment} | {shown} | {chosen} | {lost:.1%} | {plain / best[chosen]:.2f} |", flush=True)
    print(f"\n{cores()} cores; float32 matrix products reach {min(roofs):.0f} to {max(roofs):.0f} GFLOP/s")


if __name__ == "__main__":
    main()
