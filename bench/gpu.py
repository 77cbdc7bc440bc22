"""GPU benchmarks: start with this script on a machine with a GPU. Prints one table to paste.

    python bench/gpu.py [--gpu 0] [--tf32] [--json FILE]

It says of this machine's device: TF32; the roof, the rate of a large float32 matrix product; the time of a training
step of each network, and its part of the roof, with XLA and without; accepted epochs a second of the quick
experiment; images a second of two attacks; how near the reference trajectories are followed; peak memory. The images
are random.
Without a GPU it measures the CPU. `--small` takes a minute: it tries this program, its numbers say nothing.
"""

import argparse
import contextlib
import io
import json
import logging
import resource
import runpy
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]

import golden
import train_step
from train_step import tf

import flags as flag_table
import results
from attacks import measurement
from attacks.ddn import DDN
from attacks.l2_attack import CarliniWagnerL2
from core import Core
from support.device import set_up_device

QUICK = "exper-quick-digits-cnn-loss-based-lr"
STEPS = {  # experiment: batches of an epoch that is timed
    "exper-final-mnist-cnn-loss-based-lr": 100,
    QUICK: 100,
    "exper-final-cifar-vgg-loss-based-lr": 30,
    "train_mnist": 200,
}
TRAJECTORIES = ("digits_const_lr_simultaneous", "digits_small_lr_simultaneous")


def flags_of(experiment: str) -> dict:
    return runpy.run_path(str(ROOT / f"{experiment}.py"), run_name="bench")["flags"]


def steps(gpu: int, small: bool) -> list[tuple[str, str, str]]:
    """Time the step of each network, with XLA and without: rows."""
    rows = []
    for experiment, batches in STEPS.items():
        if small and experiment != QUICK:
            continue
        for xla in (False, True):
            flags = flag_table.complete(flags_of(experiment) | {"gpu": gpu})
            size = {"batches": 2, "repeats": 1} if small else {"batches": batches, "repeats": 5}
            args = Namespace(images=0, parts="auto", xla=xla, **size)
            found, _ = train_step.compare(flags, args)
            train = found["train"]
            ms = train["us_per_image"] * found["batch"] / 1e3
            name = f"step of {experiment}, xla {str(xla).lower()}"
            rows.append((name, f"{ms:.3f} ms", f"{train['fraction']:.1%} of {found['roof_gflops']:.0f} GFLOP/s"))
    return rows


def epochs(gpu: int, small: bool) -> list[tuple[str, str, str]]:
    """Time accepted epochs of the quick experiment, with XLA and without: rows."""
    rows = []
    for xla in (False, True):
        with tempfile.TemporaryDirectory() as logs:
            change = {"gpu": gpu, "xla": xla, "logs_dir": logs, "E": 2 if small else 60, "archive": "idle"}
            core = Core(flags_of(QUICK) | change, QUICK)
            path = core.run()
            raw = results.load(path)["raw"]
        seconds = sum(raw[eid]["time"] for eid in raw if eid > 1)  # the first one traces its graphs
        attempts = sum(raw[eid]["stats"]["attempts"] for eid in raw if eid > 1)
        said = f"{attempts / seconds:.2f} attempts a second"
        rows.append((f"{QUICK}, xla {str(xla).lower()}", f"{(len(raw) - 1) / seconds:.2f} epochs a second", said))
    return rows


def attacks(gpu: int, small: bool) -> list[tuple[str, str, str]]:
    """Time two attacks on the MNIST network with its initial weights, in images per second: rows."""
    flags = flags_of("exper-final-mnist-cnn-loss-based-lr")
    shape, rng = (28, 28, 1), np.random.default_rng(0)
    model = train_step.network_of(flag_table.complete(flags), shape)
    n = 4 if small else 512
    images = rng.integers(0, 256, (n, *shape), np.uint8)
    labels = model.logits(model.pixels(images)).numpy().argmax(axis=1).astype(np.int32)
    rows = []
    steps, searches, iterations = (2, 1, 5) if small else (100, 9, 1000)
    for name, attack in (
        (f"DDN, {steps} steps", DDN(model.logits, shape, steps)),
        (f"Carlini-Wagner, {searches} x {iterations}", CarliniWagnerL2(model.logits, shape, searches, iterations)),
    ):
        run = lambda attack=attack: measurement.attack_block(attack, model, images, labels, np.arange(n))  # noqa: E731
        run() if small or name.startswith("DDN") else measurement.attack_block(
            attack, model, images[:2], labels[:2], np.arange(2)
        )
        began = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - began
        rows.append((name, f"{n / seconds:.1f} images a second", f"{found['success'].mean():.0%} of {n} found"))
    return rows


def trajectories(gpu: int, small: bool) -> list[tuple[str, str, str]]:
    """Follow the reference trajectories, which come from a CPU, on this device: rows."""
    rows = []
    for name in TRAJECTORIES[: 1 if small else None]:
        for xla in (False, True):
            file = json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())
            file["flags"] |= {"gpu": gpu, "xla": xla}
            if small:
                file["attempts"] = file["attempts"][:2]
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                good = golden.compare(file, golden.tolerances(file))
            last = said.getvalue().splitlines()[-1]
            verdict = "within tolerance" if good else "NOT within tolerance"
            rows.append((f"{name}, xla {str(xla).lower()}", verdict, last.split(" lr:")[-1].split(" ", 1)[-1]))
    return rows


def memory() -> str:
    """Measure peak memory, of the GPU where there is one."""
    if tf.config.list_logical_devices("GPU"):
        return f"{tf.config.experimental.get_memory_info('GPU:0')['peak'] / 2**20:.0f} MiB of the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--tf32", action="store_true", help="let products be rounded to TensorFloat-32")
    parser.add_argument("--small", action="store_true", help="try the program; the numbers say nothing")
    parser.add_argument("--json", metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    logging.getLogger("margin").setLevel(logging.WARNING)
    device = set_up_device(args.gpu, args.tf32)
    rows: list[tuple[str, str, str]] = [("device", device, f"TensorFlow {tf.__version__}")]
    rows.append(("TF32", "on" if args.tf32 else "off", ""))
    print("| what | measured | for comparison |\n|---|---|---|")
    for row in rows:
        print("| {} | {} | {} |".format(*row), flush=True)
    for part in (steps, epochs, attacks, trajectories):
        for row in part(args.gpu, args.small):
            rows.append(row)
            print("| {} | {} | {} |".format(*row), flush=True)
    rows.append(("peak memory", memory(), "of this process"))
    print("| {} | {} | {} |".format(*rows[-1]))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
