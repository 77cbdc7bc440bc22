"""Speed of the flatness measurements: `python bench/radius.py [--json FILE]`.

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

from support.device import import_tensorflow

import_tensorflow()  # before anything else does, without its start-up messages

import results
from core import Core
from engine.context import Context
from flatness import interpolation, radius
from flatness.span import Examples, FastSpan, PlainSpan
from storage.run_flags import networks as networks_of
from train_mnist import flags as TRAIN

THRESHOLD, MAX_STEPS = 0.05, 1000


def seconds(function) -> tuple[float, object]:
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def roof(n: int = 4096) -> float:
    """Measure the FLOP/s of a float32 matrix product."""
    import tensorflow as tf

    a = tf.random.stateless_normal([n, n], [0, 0])
    product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)[0]))
    return 2 * n**3 / min(seconds(lambda: float(product(a)))[0] for _ in range(3))


def networks(run: str | None, args) -> tuple[Context, list]:
    """Return a Context with the data, and the tensors of three networks: of a run, or trained here for a while."""
    flags = TRAIN | {"task": "train", "seeds": None, "E": args.E, "stats_every": args.E, "train_N": args.train_N}
    if run is not None:
        context = Core({"task": "measure_radius", "load_dir": run, "eid": "last", "dataset": "mnist"}).context
        return context, [context.stored_weights(*place) for place in networks_of(context.flags).values()]
    trained = []
    for seed in (0, 1, 2):
        with tempfile.TemporaryDirectory() as logs:
            core = Core(flags | {"seed": seed, "logs_dir": logs}, "bench")
            trained.append([w for _, w in results.load_weights(core.run())])
    return core.context, trained


def plain_walk(examples: Examples, trained: list) -> dict:
    """Time the plain walk and the matrix product, in turn."""
    span, third = PlainSpan(examples, trained), (1 / 3, 1 / 3, 1 / 3)
    span.loss(third)
    flops = len(examples) * examples.model.flops
    rounds = [(roof(), flops / seconds(lambda: span.loss(third))[0]) for _ in range(4)]
    best_roof, best_plain = (max(values) for values in zip(*rounds, strict=True))
    plain = {"fraction": best_plain / best_roof, "seconds_a_point": flops / best_plain}
    return {"roof_gflops": best_roof / 1e9, "plain": plain}


def compare(examples: Examples, weights: list, params: str, step: float, plain_n: int, fast_n: int) -> dict:
    """Walks with short cuts against plain ones, by step walked; the two in turn."""

    def walks(method: str, n: int):
        walker = radius.WALKS[method](examples, weights)
        for k in range(n):
            rng = np.random.default_rng([0, 0, k])
            delta = radius.direction(rng, examples.model.names, weights, params)
            yield walker.walk(delta, step, THRESHOLD, MAX_STEPS)

    list(walks("fast", 1))
    times = []
    for _ in range(2):
        fast_time, fast = seconds(lambda: list(walks("fast", fast_n)))
        plain_time, plain = seconds(lambda: list(walks("plain", plain_n)))
        times.append((fast_time, plain_time))
    assert [w["radius"] for w in fast[:plain_n]] == [w["radius"] for w in plain], "the radii differ"
    # A walk evaluates w, the steps up to the radius, and one more.
    steps = [sum(len(w["profile"]) + 1 for w in found) for found in (fast, plain)]
    fast_step, plain_step = (min(side) / n for side, n in zip(zip(*times, strict=True), steps, strict=True))
    return {"speedup": plain_step / fast_step, "ms_a_step": 1e3 * fast_step, "plain_ms_a_step": 1e3 * plain_step}


def surface(examples: Examples, trained: list) -> dict:
    """Time a row of the surface, in the middle of the grid. The products for the plane serve all rows."""
    X, Y = interpolation.grid(50)
    at = interpolation.coefficients(X[25], Y[25])
    made, fast = seconds(lambda: FastSpan(examples, trained, keep=3))
    fast.losses(at)
    row_time, row = min((seconds(lambda: fast.losses(at)) for _ in range(2)), key=lambda r: r[0])
    plain, some = PlainSpan(examples, trained), slice(20, 26)
    point_time, points = min((seconds(lambda: plain.losses(at[some])) for _ in range(2)), key=lambda r: r[0])
    np.testing.assert_allclose(row[some], points, rtol=1e-5)
    fast_point, plain_point = (row_time + made / 50) / 50, point_time / len(points)
    return {
        "speedup": plain_point / fast_point,
        "ms_a_point": 1e3 * fast_point,
        "plain_ms_a_point": 1e3 * plain_point,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument("--run", help="a run of train_mnist; without it, three networks are trained for --E epochs")
    parser.add_argument("--E", type=int, default=2)
    parser.add_argument("--directions", type=int, default=3)
    parser.add_argument("--train_N", type=lambda text: text if text == "all" else int(text), default="all")
    args = parser.parse_args()
    context, trained = networks(args.run, args)
    (x, y), _ = context.dataset
    examples = Examples(context.model, x, y)
    found = {"examples": len(y)} | plain_walk(examples, trained)
    found |= (everything := compare(examples, trained[0], "all", 1.0, args.directions, args.directions))
    found["top"] = compare(examples, trained[0], "top", 0.2, min(2, args.directions), 20)
    found["surface"] = surface(examples, trained)
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
