"""How fast the flatness measurements are: `python bench/radius.py [--json FILE]`.

On one MNIST network and the whole training set, in the same process:

    plain.fraction    the plain walk's share of the machine's matrix-product roof
    speedup           the walks with all parameters perturbed: plain time / time with the short cuts
    top.speedup       the same for the last layer, by step walked
    surface.speedup   a grid point evaluated afresh / a point of a row of 50 with the short cuts

Both sides of a quotient take turns, and the best of each counts: other processes only ever add time.
Tracing of graphs is left out (a warm-up does it); what is computed once for a network is in.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import core

core.import_tensorflow()  # before anything else does, without its start-up chatter

import results
from core_flatness import FlatnessCore
from flatness import interpolation, radius
from flatness.span import Examples, PlainSpan
from train_mnist import flags as TRAIN

THRESHOLD, MAX_STEPS = 0.05, 1000


def seconds(function) -> tuple[float, object]:
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def roof(n: int = 4096) -> float:
    """FLOP/s of a float32 matrix product."""
    import tensorflow as tf

    a = tf.random.stateless_normal([n, n], [0, 0])
    product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)[0]))
    return 2 * n**3 / min(seconds(lambda: float(product(a)))[0] for _ in range(3))


def networks(run: str | None, args) -> tuple[FlatnessCore, list]:
    """A core with the data, and the tensors of three networks: of a run, or trained here for a while."""
    flags = TRAIN | {
        "task": "train",
        "seeds": None,
        "E": args.E,
        "stats_every": args.E,
        "train_N": args.train_N,
    }
    if run is not None:
        core = FlatnessCore({"task": "measure_radius", "load_dir": run, "eid": "last", "dataset": "mnist"})
        return core, [core._weights(*where) for where in core.networks().values()]
    trained = []
    for seed in (0, 1, 2):
        with tempfile.TemporaryDirectory() as logs:
            core = FlatnessCore(flags | {"seed": seed, "logs_dir": logs}, "bench")
            trained.append([w for _, w in results.load_weights(core.run())])
    return core, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument(
        "--run", help="a run of train_mnist; without it, three networks are trained for --E epochs"
    )
    parser.add_argument("--E", type=int, default=2)
    parser.add_argument("--directions", type=int, default=3)
    parser.add_argument("--train_N", type=lambda text: text if text == "all" else int(text), default="all")
    args = parser.parse_args()
    core, trained = networks(args.run, args)
    weights, names = trained[0], [name for name, _, _ in core.model.places()]
    (x, y), _ = core.dataset
    examples = Examples(core.model, x, y)
    found = {"examples": len(y), "roof_gflops": roof() / 1e9}

    # The plain walk against the roof.
    span = PlainSpan(examples, trained)
    third = (1 / 3, 1 / 3, 1 / 3)
    span.loss(third)
    flops = len(y) * sum(spec.flops for spec in core.model.specs)
    rounds = [(roof(), flops / seconds(lambda: span.loss(third))[0]) for _ in range(4)]
    best_roof, best_plain = (max(values) for values in zip(*rounds, strict=True))
    found["roof_gflops"] = best_roof / 1e9
    found["plain"] = {"fraction": best_plain / best_roof, "seconds_a_point": flops / best_plain}

    def walks(method: str, params: str, step: float, n: int):
        walker = radius.WALKS[method](examples, weights)
        for k in range(n):
            delta = radius.direction(np.random.default_rng([0, 0, k]), names, weights, params)
            yield walker.walk(delta, step, THRESHOLD, MAX_STEPS)

    def compare(params: str, step: float, plain_n: int, fast_n: int) -> dict:
        list(walks("fast", params, step, 1))
        times = []
        for _ in range(2):
            fast_time, fast = seconds(lambda: list(walks("fast", params, step, fast_n)))
            plain_time, plain = seconds(lambda: list(walks("plain", params, step, plain_n)))
            times.append((fast_time, plain_time))
        assert [w["radius"] for w in fast[:plain_n]] == [w["radius"] for w in plain], "the radii differ"
        # A walk evaluates w, the steps up to the radius, and one more.
        steps = [sum(len(w["profile"]) + 1 for w in found) for found in (fast, plain)]
        fast_step, plain_step = (
            min(side) / n for side, n in zip(zip(*times, strict=True), steps, strict=True)
        )
        return {
            "speedup": plain_step / fast_step,
            "ms_a_step": 1e3 * fast_step,
            "plain_ms_a_step": 1e3 * plain_step,
        }

    found |= (everything := compare("all", 1.0, args.directions, args.directions))
    found["top"] = compare("top", 0.2, min(2, args.directions), 20)

    # One row of the surface, in the middle of the grid; the products for the plane serve all rows.
    X, Y = interpolation.grid(50)
    made, plane = seconds(lambda: interpolation.Plane(examples, trained))
    plane.row(X[25], Y[25])
    row_time, row = min((seconds(lambda: plane.row(X[25], Y[25])) for _ in range(2)), key=lambda r: r[0])
    plain = interpolation.Plane(examples, trained, "plain")
    some = slice(20, 26)
    point_time, points = min(
        (seconds(lambda: plain.row(X[25, some], Y[25, some])) for _ in range(2)), key=lambda r: r[0]
    )
    np.testing.assert_allclose(row[some], points, rtol=1e-5)
    fast_point, plain_point = (row_time + made / 50) / 50, point_time / len(points)
    found["surface"] = {
        "speedup": plain_point / fast_point,
        "ms_a_point": 1e3 * fast_point,
        "plain_ms_a_point": 1e3 * plain_point,
    }
    print(f"{len(y)} examples, roof {found['roof_gflops']:.0f} GFLOP/s")
    part = found["plain"]
    print(f"plain walk: {part['fraction']:.0%} of the roof, {part['seconds_a_point']:.3f} s a point")
    for name, part in (("all params", everything), ("top layer", found["top"])):
        print(
            f"{name}: {part['speedup']:.2f} times as fast as the plain walk "
            f"({part['ms_a_step']:.2f} against {part['plain_ms_a_step']:.1f} ms a step)"
        )
    part = found["surface"]
    print(
        f"surface: {part['speedup']:.2f} times as fast as each point afresh "
        f"({part['ms_a_point']:.1f} against {part['plain_ms_a_point']:.1f} ms a point)"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
