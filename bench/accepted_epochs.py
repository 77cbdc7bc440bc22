"""Accepted epochs per second, and where their time goes.

    python bench/accepted_epochs.py --experiment exper-quick-digits-cnn-loss-based-lr --epochs 100

Runs the experiment as ./run.sh does, in a working directory that is thrown away, with a stopwatch
around each part. `start-up` is the time from the start of the process to the first gradient step:
imports, data, tracing. With --random_data N the images are N random ones of the data set's shape, for
speed and memory at a size that is not at hand.
"""

import argparse
import contextlib
import json
import logging
import os
import resource
import runpy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BEGAN = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results
from core import Core
from data import loading
from storage import workdir
from support.device import import_tensorflow
from support.files import ROOT

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


class Stopwatch:
    """Seconds by part; what one part calls of another counts for the inner one only."""

    def __init__(self):
        self.seconds = {}
        self.calls = {}
        self._inner = [0.0]
        self.first_call = None

    def wrap(self, owner, method: str, part) -> None:
        """Time owner.method; part is a name, or a function of its arguments that gives one."""
        call = getattr(owner, method)

        def timed(*args, **kwargs):
            name = part if isinstance(part, str) else part(*args)
            began = time.perf_counter()
            self.first_call = self.first_call or began
            self._inner.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner.pop()
                self.calls[name] = self.calls.get(name, 0) + 1
                self._inner[-1] += whole

        setattr(owner, method, timed)


def watch_run(watch: Stopwatch, run: Core) -> None:
    """Time the parts of a training run."""
    import_tensorflow()  # as `Core` does it, without Keras
    from training import attempt

    model, (train_images, _) = run.context.model, run.context.train_set
    watch.wrap(model, "train_epoch", "training")
    watch.wrap(model, "evaluate", lambda x, *_: "train loss" if x is train_images else "test set")
    watch.wrap(attempt, "stats", "stats")
    watch.wrap(workdir.WorkDir, "save", "checkpoint")
    watch.wrap(workdir.WorkDir, "append", "journal")
    watch.wrap(workdir.WorkDir, "write_res", "res")


def process_seconds() -> float:
    """Return the seconds since this process was started, the interpreter's own start included (where /proc tells)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() - BEGAN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiment", default="exper-quick-digits-cnn-loss-based-lr")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--data_dir")
    parser.add_argument("--random_data", type=int, metavar="N", help="N random training images instead")
    parser.add_argument("--flags", default="{}", help="more flags, as JSON")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    path = ROOT / f"{args.experiment}.py"
    if not path.is_file() or args.epochs < 1:
        parser.error(f"no experiment {args.experiment}, or fewer than 1 epoch")
    flags = runpy.run_path(str(path), run_name="bench")["flags"]
    if args.random_data:
        shape, rng, n = SHAPES[flags["dataset"]], np.random.default_rng(0), args.random_data
        parts = [
            (rng.integers(0, 256, (size, *shape), np.uint8), rng.integers(0, 10, size).astype(np.int32))
            for size in (n, 10000)
        ]
        loading.load = lambda *_: loading.Dataset(*parts, flags["dataset"], 1 / 255)
    logging.getLogger("margin").setLevel(logging.WARNING)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as logs:
        change = {"E": args.epochs, "logs_dir": logs, "data_dir": args.data_dir} | json.loads(args.flags)
        run = Core(flags | change, args.experiment)
        watch_run(watch, run)
        start_up = process_seconds()
        began = time.perf_counter()
        work_dir = run.run()
        seconds = time.perf_counter() - began
        raw = results.load(work_dir)["raw"]
    start_up += watch.first_call - began
    attempts = sum(info["stats"]["attempts"] for info in raw.values())
    result = {
        "experiment": args.experiment,
        "epochs": len(raw),
        "seconds": seconds,
        "accepted_per_s": len(raw) / seconds,
        "attempts_per_epoch": attempts / len(raw),
        "log_loss": raw[len(raw)]["stats"]["log_loss"],
        "parts": watch.seconds,
        "start_up_seconds": start_up,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"{args.experiment}: {len(raw)} accepted epochs in {seconds:.1f} s")
    print(f"  {result['accepted_per_s']:.3f} accepted epochs a second", end=", ")
    print(f"{result['attempts_per_epoch']:.2f} attempts each, log loss {result['log_loss']:.2f}")
    parts = watch.seconds | {"the rest": seconds - sum(watch.seconds.values())}
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {name:12} {value:9.2f} s {value / seconds:6.1%}  in {watch.calls.get(name, 0)} calls")
    print(f"  start-up to the first step {start_up:.1f} s; peak memory {result['peak_memory_mib']:.0f} MiB")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
