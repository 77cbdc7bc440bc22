"""Cost of the theory's quantities, relative to the epochs that they are measured in.

    python bench/theory.py --experiment exper-quick-digits-cnn-loss-based-lr --epochs 60

Runs the experiment in a working directory that is thrown away, and times in the same run: an accepted epoch; what is
recorded at every epoch since the theory came in (smoothed margins, balance, the angle to the last epoch); the
gradient steps of one attempt; and at the last epoch, five times each, the measures `theory` and `sharpness`.
"""

import argparse
import importlib
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results
from core import Core
from models import margins
from storage import read
from support.screen import log
from training import measures
from training import run as training_run

ROUNDS = 5


class Clock:
    """Seconds spent in a function of a module; `restore` puts the function back."""

    def __init__(self, owner, name: str):
        self.owner, self.name, self.function, self.seconds = owner, name, getattr(owner, name), 0.0
        setattr(owner, name, self)

    def __call__(self, *args):
        began = time.perf_counter()
        try:
            return self.function(*args)
        finally:
            self.seconds += time.perf_counter() - began

    def restore(self) -> None:
        setattr(self.owner, self.name, self.function)


def measured(experiment: str, epochs: int, flags: dict) -> dict[str, float]:
    """Return the times, in seconds."""
    script = importlib.import_module(experiment).flags
    with tempfile.TemporaryDirectory() as logs:
        core = Core(script | {"E": epochs, "archive": max(epochs // 2, 1), "logs_dir": logs} | flags, experiment)
        clocks = [Clock(margins, "smoothed_stats"), Clock(margins, "balance"), Clock(training_run, "angle_between")]
        path = core.run()
        for clock in clocks:
            clock.restore()
        raw = results.load(path)["raw"]
        steady = [info for eid, info in raw.items() if eid > 5]
        context, infos = core.context, list(raw.values())
        context.model.set_weights(context.stored_weights(path, epochs))
        before = read.archived_eids(path)[0]
        found = {
            "epoch": statistics.mean(info["time"] for info in steady),
            "always": sum(clock.seconds for clock in clocks) / epochs,
            "steps of an epoch": statistics.mean(info["stats"]["train_time"] for info in steady),
            "steps of an attempt": statistics.mean(i["stats"]["train_time"] / i["stats"]["attempts"] for i in steady),
        }
        kept: dict = {}
        for name in ("theory", "sharpness"):
            times = []
            for _ in range(ROUNDS + 1):  # the first one traces, and starts cold
                now = measures.Evaluation(context, infos[-1]["log_frame"])
                history = measures.History(
                    infos[-1], infos, lambda: (before, context.stored_weights(path, before)), kept
                )
                began = time.perf_counter()
                measures.record(now, history, [name])
                times.append(time.perf_counter() - began)
            found[name] = statistics.median(times[1:])
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="exper-quick-digits-cnn-loss-based-lr")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--train_N", type=lambda text: text if text == "all" else int(text), default="all")
    parser.add_argument("--test_N", type=lambda text: text if text == "all" else int(text), default="all")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    log.setLevel(logging.WARNING)
    found = measured(args.experiment, args.epochs, {"train_N": args.train_N, "test_N": args.test_N})
    if args.json:
        print(json.dumps(found))
        return
    for name, seconds in found.items():
        print(f"{name:22} {1e3 * seconds:9.3f} ms")
    print(f"what is always recorded is {found['always'] / found['epoch']:.2%} of an epoch")
    for name in ("theory", "sharpness"):
        by = [found[name] / found[f"steps of an {what}"] for what in ("epoch", "attempt")]
        print(f"{name} at one epoch costs the gradient steps of {by[0]:.2f} accepted epochs, of {by[1]:.2f} attempts")


if __name__ == "__main__":
    main()
