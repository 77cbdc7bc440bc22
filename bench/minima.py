"""Measures of flatness and robustness side by side.

python bench/minima.py <run>    a table of all that was measured in a run's directory, with each measure's rank
                                correlation (Spearman's) with the normalized margin over the epochs
python bench/minima.py --cost   what each costs on the digits, in forward passes over the training set
"""

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results
from catalogue.attacks import METHODS

LN10 = math.log(10)


def measurements(run: Path, name: str) -> list[tuple[dict, dict]]:
    """Return (flags, `res`) of the finished measurements of a script in a run's directory, oldest first."""
    found = sorted(path for path in run.glob(f"{name}/2*") if (path / "res").exists())
    return [(results.read_flags(path), results.load(path)) for path in found]


def columns(run: Path) -> dict[str, dict[int, float]]:
    """Return {measure: {epoch: value}} of everything found."""
    raw = results.load(run)["raw"]
    found: dict[str, dict[int, float]] = {}

    def add(name: str, eid: int, value: float) -> None:
        found.setdefault(name, {})[eid] = float(value)

    for eid, info in raw.items():
        stats = info["stats"]
        add("`q_bar_min`", eid, stats["q_bar_min"])
        add("log10 loss", eid, stats["log_loss"] / LN10)
    for flags, res in measurements(run, "measure_radius"):
        for network in res["raw"]["networks"].values():
            add(f"radius / norm, directions {flags['normalize']}", network["eid"], network["mean_by_norm"])
    for _, res in measurements(run, "measure_curvature"):
        for name, network in res["raw"].items():
            eid, unit = epoch_of(name), math.exp(network["log_frame"] - network["log_loss"])
            add("largest eigenvalue / loss", eid, network["sharpness"])
            add("trace / loss, Hutchinson", eid, network["trace"] * unit)
            for operator, density in network.get("density", {}).items():
                add(f"trace / loss, density, {operator}", eid, density["trace"] * unit)
                values, weights = (np.asarray(density[key]) for key in ("values", "weights"))
                if operator == "hessian":
                    add(
                        "negative share of the trace",
                        eid,
                        -(weights * values)[values < 0].sum() / (weights @ np.abs(values)),
                    )
    for _, res in measurements(run, "measure_sharpness"):
        for name, network in res["raw"].items():
            for kind, ball in network["sharpness"].items():
                for k, rho in enumerate(ball["rho"]):
                    add(f"log10 of the worst loss, {kind}, rho {rho:g}", epoch_of(name), ball["worst"][k] / LN10)
                    rise = (ball["average"][k] - network["log_loss"]) / LN10
                    add(f"mean rise in decades, {kind}, rho {rho:g}", epoch_of(name), rise)
    for attack, norm in (("l2-ddn", "L2"), ("l1-fmn", "L1"), ("linf-fmn", "L-infinity")):
        for flags, res in measurements(run, f"eval-final-mnist-{attack}"):
            for eid, part in res.items():
                method = METHODS[flags["attack_method"]]
                distance = method.distances(part["errors"], part["clean_correct"], flags["attack_target"])
                add(f"median distance, {norm}", eid, np.median(distance))
                add(f"certified, {norm}, {flags['attack_certificate']}, median", eid, np.median(part["certified"]))
    for attack, name in (("inf", "PGD"), ("apgd", "APGD")):
        for flags, res in measurements(run, f"eval-final-mnist-{attack}"):
            for eid, part in res.items():
                for eps in flags["attack_eps_list"]:
                    stands = part["clean_correct"] & ~(part["success"] & (part["errors"] <= eps + 1e-9))
                    add(f"robust at eps {eps:g}, {name}", eid, stands.mean())
    return found


def epoch_of(name: str) -> int:
    return int(name.split()[-1])


def table(run: Path) -> None:
    found = columns(run)
    epochs = sorted({eid for name, part in found.items() if len(part) < len(found["log10 loss"]) for eid in part})
    print("| epoch | " + " | ".join(map(str, epochs)) + " | rank correlation with the margin |")
    print("|" + "---|" * (len(epochs) + 2))
    margin = found["`q_bar_min`"]
    for name, part in found.items():
        own = [eid for eid in epochs if eid in part]
        rank = (
            spearmanr([margin[eid] for eid in own], [part[eid] for eid in own]).statistic
            if len(own) > 2
            else math.nan
        )
        shown = [f"{part[eid]:.3g}" if eid in part else "" for eid in epochs]
        print(f"| {name} | " + " | ".join(shown) + f" | {rank:+.2f} |")


def cost() -> None:
    """Return each measure's time over that of one forward pass, in turn, best of three, on the digits' CNN."""
    from engine.context import Context
    from flatness import hessian, plane, radius, sharpness
    from flatness.span import FastSpan, PlainSpan, examples_of

    context = Context({"dataset": "digits", "model": {"description": "CNN"}, "task": "measure_curvature"})
    examples, model = examples_of(context), context.model
    weights = [w for _, w in model.get_weights()]
    loss, hessian = hessian.LogLoss(examples), hessian.Hessian(examples)
    gauss_newton = hessian.Hessian(examples, gauss_newton=True)
    v = np.random.default_rng(0).standard_normal(hessian.shape[0])
    rngs = [np.random.default_rng(k) for k in range(2)]
    basis = [weights, *(plane.filter_normalized(rng, model.names, weights) for rng in rngs)]
    points = np.column_stack([np.ones(50), np.linspace(-1, 1, 50), np.zeros(50)])
    fast, plain = FastSpan(examples, basis, keep=3, log=True), PlainSpan(examples, basis, log=True)
    delta = radius.direction(rngs[0], model.names, weights)
    walks = radius.FastWalks(examples, weights)
    ball = sharpness.Ball(examples, "norm")
    jobs = {
        "a forward pass (log loss)": loss.value,
        "a gradient of the log loss": loss.value_and_gradient,
        "a Hessian-vector product": lambda: hessian.matvec(v),
        "a Gauss-Newton product": lambda: gauss_newton.matvec(v),
        "a row of 50 points of a surface": lambda: fast.losses(points),
        "the same by plain evaluation": lambda: plain.losses(points),
        "a walk of 20 steps": lambda: walk_of(walks, delta),
        "worst case, one ball, 30 steps": lambda: ball.worst(0.01, 30),
        "average, one ball, 20 directions": lambda: ball.average(0.01, 20, [0]),
    }
    best = dict.fromkeys(jobs, math.inf)
    for turn in range(4):  # the first compiles
        for name, job in jobs.items():
            model.set_weights(weights)
            began = time.perf_counter()
            job()
            if turn:
                best[name] = min(best[name], time.perf_counter() - began)
    unit = best["a forward pass (log loss)"]
    for name, seconds in best.items():
        print(f"{name:36s} {seconds / unit:8.2f} passes")


def walk_of(walks, delta) -> None:
    from flatness.radius import EndlessWalk

    with contextlib.suppress(EndlessWalk):
        walks.walk(delta, 1e-3, 1e9, 20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    if options.cost:
        cost()
    elif options.run:
        table(options.run)
    else:
        parser.error("give a run's directory, or --cost")
