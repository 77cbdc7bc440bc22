"""Measure how many slices of a batch pay: every network with 1 slice and one per core, in turn.

    python bench/parts.py [--rounds 30] [--only EXPERIMENT] [--before CHECKOUT]

TensorFlow fixes its thread pools once per process, so each contestant is a process of its own. All are started first;
then they take turns of a fraction of a second, so that a slow minute hits all of them. The table has
the median µs per image in training, what `--parts auto` chooses, the median over rounds of its time relative to the
better of 1 slice and one per core, and the median speed relative to plain TensorFlow with its default threads.
`--before` adds the same for another checkout of the program, with its own choice.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
NETWORKS = {  # {experiment: gradient steps in a turn}
    "exper-quick-digits-cnn-loss-based-lr": 60,
    "exper-final-mnist-cnn-loss-based-lr": 10,
    "train_mnist": 60,
    "exper-final-cifar-vgg-loss-based-lr": 1,
}


def contestant(experiment: str, parts: str, batches: int) -> None:
    """Train for one turn for each line of stdin, and print its seconds; first print the number of slices."""
    import runpy

    from train_step import SHAPES, Plain, flag_table, network_of, on_device, seconds, tf

    from engine.compute import choose_parts
    from support.device import cores, set_threads, set_up_device
    from support.files import ROOT

    flags = flag_table.complete(runpy.run_path(str(ROOT / f"{experiment}.py"), run_name="bench")["flags"])
    shape, batch, rng = SHAPES[flags["dataset"]], flags["B"], np.random.default_rng(0)
    device, plain = set_up_device(flags["gpu"]), parts == "plain"
    wanted = "auto" if parts == "auto" else 1 if plain else int(parts)
    n_parts = choose_parts(wanted, flags["model"]["description"], shape, batch, device, cores())
    if not plain:
        set_threads(cores(), n_parts)
    images = rng.integers(0, 256, (batches * batch, *shape), dtype=np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.int32)
    order = rng.permutation(len(images)).reshape(batches, batch).astype(np.int32)
    model = network_of(flags, shape, n_parts, False)
    if plain:
        x, y, reference = tf.constant(images), tf.constant(labels, tf.int64), Plain(model)
        turn = lambda: reference.train(x, y, order)  # noqa: E731
    else:
        x, y = on_device(images, labels)
        turn = lambda: model.train_epoch(x, y, order, 0.0, 0.0, np.inf)  # noqa: E731
    turn()
    print(n_parts, flush=True)
    for _ in sys.stdin:
        turn()  # the caches were another contestant's
        print(seconds(turn), flush=True)


def start(checkout: Path, parts: str, experiment: str, batches: int) -> subprocess.Popen:
    """Start a contestant on the sources of a checkout. Its first line comes when it is ready."""
    words = [sys.executable, "-P", str(HERE), "--contestant", parts, "--only", experiment, "--steps", str(batches)]
    environment = os.environ | {"PYTHONPATH": f"{checkout / 'bench'}:{checkout}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipes)


def turn(process: subprocess.Popen) -> float:
    """Return the seconds of a contestant's next turn."""
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", help="one experiment")
    parser.add_argument("--before", type=Path, help="another checkout of the program")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        contestant(args.only, args.contestant, args.steps)
        return
    n_cores = str(len(os.sched_getaffinity(0)))
    sources = {name: (HERE.parent.parent, name) for name in ("1", n_cores, "auto", "plain")}
    if args.before is not None:
        sources["before"] = (args.before.resolve(), "auto")
    print("| network | 1 part | " + f"{n_cores} parts | auto | auto / better | plain / auto | before / auto |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for experiment, batches in NETWORKS.items():
        if args.only not in (None, experiment):
            continue
        running = {name: start(*source, experiment, batches) for name, source in sources.items()}
        chosen = {name: process.stdout.readline().strip() for name, process in running.items()}
        rows = [{name: turn(process) for name, process in running.items()} for _ in range(args.rounds)]
        for process in running.values():
            process.stdin.close()
            process.wait()
        times = {name: np.array([row[name] for row in rows]) for name in running}
        batch = 64 if experiment.startswith("train_") else 100
        one, several = (f"{1e6 * np.median(times[name]) / batches / batch:.1f}" for name in ("1", n_cores))
        better = min(times["1"], times[n_cores], key=np.median)
        found = [np.median(times["auto"] / better), np.median(times["plain"] / times["auto"])]
        found += [np.median(times["before"] / times["auto"])] if "before" in times else []
        ratios = " | ".join(f"{value:.2f}" for value in found)
        print(f"| {experiment} | {one} | {several} | {chosen['auto']} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
