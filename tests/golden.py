"""Repeat a training trajectory of the reference system and compare: `python tests/golden.py FILE`.

A file holds the recipe of its data, initial weights and permutations, its flags, and what the
reference measured in each attempt (in frame units). The same is done here by the program's own
training loop. Exit status 1 when a deviation is beyond tolerance, or the attempts part.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.context import Context
from flags import from_text
from support.errors import UserError
from training.attempt import attempt
from training.run import Training

MODEL_FLAGS = ("description", "bias_mode", "act_type", "init")
COMPARED = ("loss", "rho", "q_min")


def golden_context(golden_flags: dict) -> Context:
    """A Context with the recipe's data and flags."""
    # Two threads on any machine: their number changes last bits, which a loss-based run amplifies.
    flags = {"dataset": "digits", "early_reject": False, "gpu": -1, "threads": 2, "parts": 2, "model": {}}
    for key, value in golden_flags.items():
        value = from_text(value) if isinstance(value, str) else value
        if key in MODEL_FLAGS:
            flags["model"][key] = value
        else:
            flags[key] = value
    return Context(flags, "golden")


def initial(rng: np.random.RandomState, shape: tuple) -> np.ndarray:
    """The recipe's initial tensor."""
    if len(shape) == 1:
        return np.zeros(shape, np.float32)
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)


def attempts_of(golden: dict) -> list[dict]:
    """The infos of as many attempts as the file has, from the recipe's weights and permutations."""
    context, infos, stream = golden_context(golden["flags"]), [], np.random.RandomState(0)
    progress, rng = Training(context), np.random.RandomState(7)
    progress.weights = [initial(rng, v.shape) for v in context.model.weights]

    def noting(*args, **named):
        outcome = attempt(*args, **named)
        infos.append(outcome.info)
        return outcome

    def permutation(context, eid, number):
        return stream.permutation(len(context.dataset[0][0]))

    with mock.patch("training.attempt.attempt", noting), mock.patch("training.attempt.permutation", permutation):
        while len(infos) < len(golden["attempts"]):
            progress.epoch()
    return infos


def tolerances(golden: dict) -> dict[str, float]:
    """{'loss': rtol, ...} as the file's `tolerance` says, 'loss rtol 5e-3, rho rtol 5e-5 ...'."""
    said = re.findall(r"(\w+) rtol ([0-9.]+(?:e-?\d+)?)", golden.get("tolerance", ""))
    return {"loss": 5e-3, "rho": 5e-5} | {name: float(value) for name, value in said}


def deviation(got: float, expected: float) -> float:
    return abs(got - expected) / abs(expected) if expected else abs(got)


def compare(golden: dict, rtol: dict[str, float]) -> bool:
    """Repeat the trajectory, print a line an attempt; whether all stayed within tolerance."""
    good = True
    for number, (want, got) in enumerate(zip(golden["attempts"], attempts_of(golden), strict=False), 1):
        line = f"attempt {number}: eid={got['eid']} lr={got['lr']:.6e} "
        failed = got["stats"] is None, want.get("stats") is None
        if got["eid"] != want["eid"] or failed[0] != failed[1]:
            print(line + f"PARTED: expected eid={want['eid']}, {'failed' if failed[1] else 'with stats'}")
            return False
        # Shown, not judged: it follows from the losses before (const-lr), or from the decisions alone.
        off, bad = {"lr": deviation(got["lr"], want["lr"])}, []
        if not failed[0]:
            line += f"loss={got['stats']['loss']:.6e} "
            for key in COMPARED:
                off[key] = deviation(got["stats"][key], want["stats"][key])
                if key in rtol and not off[key] <= rtol[key]:
                    bad.append(key)
        good = good and not bad
        line += " ".join(f"{key}:{value:.1e}" for key, value in off.items())
        print(line + (f"  BEYOND TOLERANCE: {', '.join(bad)}" if bad else ""))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    for key in COMPARED:
        parser.add_argument(f"--rtol_{key}", type=float, help="instead of the file's own tolerance")
    args = parser.parse_args()
    try:
        golden = json.loads(args.file.read_text())
        rtol = tolerances(golden)
        rtol |= {key: v for key in COMPARED if (v := getattr(args, f"rtol_{key}")) is not None}
        if any(math.isnan(v) or v < 0 for v in rtol.values()):
            raise UserError("a tolerance must be ≥ 0")
        good = compare(golden, rtol)
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else error
        print(f"error: {args.file}: {reason}", file=sys.stderr)
        return 2
    limits = ", ".join(f"{key} {value:g}" for key, value in rtol.items())
    print(("within tolerance: " if good else "NOT within tolerance: ") + limits)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
