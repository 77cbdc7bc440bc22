"""Speed-up by workers: measured here, and simulated for more of them.

    python bench/scale.py [--simulate RUN ...] [--workers 2]

First it measures, in turn, attempts, an attack and directions of a radius: by one process with all cores, by one
worker with one thread, by several such workers. Graphs are traced before the clock starts. It also measures how many
units a second the driver can hand out. Then it simulates the engine's own scheduling (`cluster.Remote.run`: at most
two units a worker that are not judged, judged in order) with recorded durations: speculative attempts of training
runs, and attacks with ever more workers.
"""

import argparse
import heapq
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results
from attacks.run import AttackRun
from core import Core
from engine import cluster
from engine.context import Context
from engine.serial import Serial
from engine.units import Unit, Worker
from storage.run_flags import of_command_line
from support.device import cores, import_tensorflow
from support.screen import Progress
from training.run import Training

DIGITS = {
    "dataset": "digits", "model": {"description": "CNN", "init": {"weight": "he_normal"}}, "gpu": -1,
    "lr": ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)), "archive": "idle", "figures": False,
}  # fmt: skip
NOTHING = Progress()


# Measured


def attempts(executor: Any, context: Context, epochs: int) -> float:
    """Return the seconds per epoch, from the third epoch on."""
    progress = Training(context, executor)
    for _ in range(2):
        progress.epoch()
    began = time.perf_counter()
    for _ in range(epochs):
        progress.epoch()
    return time.perf_counter() - began


def seconds_of(executor: Any, units: list[Unit], warm_up: int) -> float:
    """Return the seconds that units take, after the first few of them have been executed once."""
    executor.run(units[:warm_up], lambda unit, found: None, NOTHING)
    began = time.perf_counter()
    executor.run(units, lambda unit, found: None, NOTHING)
    return time.perf_counter() - began


def nothing(worker: Worker, args: dict, update: Any) -> int:
    """Do nothing: a unit."""
    return 0


def measured(workers: int, rounds: int, small: bool) -> tuple[dict[str, dict[str, float]], float]:
    """Return ({what: {by whom: best seconds}}, units per second of the driver)."""
    with tempfile.TemporaryDirectory() as logs:
        run = Core(DIGITS | {"logs_dir": logs, "E": 5}, "scale").run()
        looking = {
            "attack": {"attack_method": "ddn", "attack_N": 64 if small else 768, "attack_B": 32, "eid": "last"},
            "measure_radius": {"directions": 2 if small else 12, "eid": "last"},
        }
        contexts = {}
        for task, asked in looking.items():
            flags = of_command_line([str(run), "--gpu", "-1"], {"task": task} | asked)
            for threads in (1, cores()):
                contexts[task, threads] = Core(flags | {"threads": threads}, "scale").context
        for threads in (1, cores()):
            contexts["train", threads] = Context(DIGITS | {"threads": threads}, "scale")
        best: dict[str, dict[str, float]] = {}
        with cluster.Cluster(1, 1, -1) as one, cluster.Cluster(workers, 1, -1) as several:
            for _ in range(rounds):
                for task in ("train", "attack", "measure_radius"):
                    for who, threads, maker in (
                        (f"1 process, {cores()} threads", cores(), lambda context: Serial(context, 2)),
                        ("1 worker of 1 thread", 1, one.executor),
                        (f"{workers} workers of 1 thread", 1, several.executor),
                    ):
                        context = contexts[task, threads]
                        if task == "train":
                            executor = Serial(context) if threads != 1 else maker(context)
                            took = attempts(executor, context, 2 if small else 30)
                        else:
                            executor = maker(context)
                            took = seconds_of(executor, units_of(task, context, executor), 2 * workers)
                        own = best.setdefault(task, {})
                        own[who] = min(own.get(who, np.inf), took)
            context = contexts["train", 1]
            n = 50 if small else 500
            took = seconds_of(several.executor(context), [Unit(nothing, (k,)) for k in range(n)], 4)
    return best, n / took


def units_of(task: str, context: Context, executor: Any) -> list[Unit]:
    if task == "attack":
        run = AttackRun(context)
        executor.publish("last", run.last_weights)
        return run.blocks(run.eids[-1], np.zeros(len(run.images), bool))
    from engine.measurement import checked_networks
    from flatness.run import directions

    return directions(context, checked_networks(context))


# Simulated


def recorded(run: str) -> list[list[float]]:
    """Return, for each epoch of a training run, the mean seconds of its attempts, once per attempt."""
    found = []
    for info in results.read_journal(run).values():
        stats = info["stats"]
        found.append([(stats["train_time"] + stats["eval_time"]) / stats["attempts"]] * stats["attempts"])
    return found


def speculative(epochs: list[list[float]], n: int, overhead: float = 0.0) -> tuple[float, int]:
    """Simulate n workers on epochs whose attempts take these durations: (seconds, attempts started).

    Attempts of an epoch start in order, each on the worker that is free first; when the last one needed is done, the
    others end immediately. Overhead: seconds more for an attempt, and once more for an epoch.
    """
    total, started = 0.0, 0
    for durations in epochs:
        free = [0.0] * n
        ends = []
        for duration in durations:
            begin = heapq.heappop(free)
            ends.append(begin + duration + overhead)
            heapq.heappush(free, ends[-1])
        # Attempts beyond the last one needed, begun while it was under way.
        started += len(durations) + sum(1 for at in free if at < max(ends))
        total += max(ends) + overhead
    return total, started


def shared_out(durations: Iterable[float], n: int, hand_out: float) -> float:
    """Return the seconds that units take on n workers, when the driver needs hand_out seconds for each.

    As `cluster.Remote.run`: a unit is submitted when fewer than 2n are not judged; they are judged in order.
    """
    driver, judged, waiting = 0.0, 0.0, []  # type: ignore[var-annotated]
    free = [0.0] * n
    for duration in durations:
        if len(waiting) == 2 * n:
            judged = max(judged, waiting.pop(0))
            driver = max(driver, judged)
        driver += hand_out
        begin = max(heapq.heappop(free), driver)
        heapq.heappush(free, begin + duration)
        waiting.append(begin + duration)
    return max([judged, *waiting])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--simulate", nargs="*", default=[], metavar="RUN", help="training runs")
    parser.add_argument("--only_simulate", action="store_true")
    parser.add_argument("--small", action="store_true", help="try the program; the numbers say nothing")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    import_tensorflow()
    logging.getLogger("margin").setLevel(logging.WARNING)
    found: dict[str, Any] = {}
    per_unit = 0.005
    if not args.only_simulate:
        best, rate = measured(args.workers, 1 if args.small else args.rounds, args.small)
        found |= {"measured": best, "units_a_second": rate}
        per_unit = 1 / rate
        names = {"train": "attempts", "attack": "DDN", "measure_radius": "directions"}
        for task, times in best.items():
            print(f"{names[task]}: " + "; ".join(f"{who} {took:.2f} s" for who, took in times.items()))
        print(f"the driver hands out {rate:.0f} units a second")
    for run in args.simulate:
        epochs = recorded(run)
        alone, _ = speculative(epochs, 1)
        needed = sum(map(len, epochs))
        print(f"{run}: {len(epochs)} epochs, {needed / len(epochs):.2f} attempts each; speculative, simulated")
        for n in range(1, 9):
            (ideal, started), (real, _) = speculative(epochs, n), speculative(epochs, n, 0.01)
            row = {"speed_up": alone / ideal, "with_10_ms": alone / real, "started": started / needed}
            found.setdefault(run, {})[n] = row
            said = f"  {n} workers: {alone / ideal:.2f}, with 10 ms an attempt and an epoch {alone / real:.2f}"
            print(f"{said}; attempts started of those needed {started / needed:.2f}")
    print(f"an attack of 1000 blocks of 10 s, {1e3 * per_unit:.1f} ms of the driver for each, simulated")
    for n in (1, 8, 64, 512, 4096, 10_000):
        took = shared_out([10.0] * 1000 * max(1, n // 64), n, per_unit)
        speed_up = 10.0 * 1000 * max(1, n // 64) / took
        found.setdefault("attack", {})[n] = speed_up
        print(f"  {n} workers: {speed_up:.0f} times as fast as one")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
