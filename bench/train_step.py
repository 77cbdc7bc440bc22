"""Speed of the training epoch and the evaluation relative to peak throughput.

    python bench/train_step.py --experiment exper-final-mnist-cnn-loss-based-lr

One run measures, in turn, so that all see the same machine: a large float32 matrix product (the
roof), this program's epoch and evaluation, and a plain reference step with the same network: one
tf.function call a batch, ordinary tf.nn ops, TensorFlow's own gradients. Floating-point operations
are those of the convolutions and products: 2 a multiply-add, times 3 for a training step, less the
gradient by the first layer's input, which nobody needs. Each figure is the best of --repeats.
"""

import argparse
import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flags as flag_table
from data.loading import Dataset
from engine.compute import choose_parts
from engine.context import build_network
from models.architectures import LayerSpec
from support.device import cores, import_tensorflow, set_threads, set_up_device
from support.files import ROOT

tf = import_tensorflow()

from models.network import on_device

ROOF_SIZE = 4096
SHAPES = {
    "digits": (8, 8, 1),
    "separable": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
}


def seconds(f: Callable[[], object]) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def step_flops(specs: list[LayerSpec]) -> int:
    """Return the operations of one example's training step."""
    first = next(spec for spec in specs if spec.weight_shape)
    return 3 * sum(spec.flops for spec in specs) - first.flops


def plain_logits(model, images: tf.Tensor) -> tf.Tensor:
    """Compute the network's logits as one would write it down, activation before pool."""
    x, layers = images, iter(model.layers)
    for spec in model.specs:
        if spec.kind == "P":
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        elif spec.kind == "A":
            x = tf.nn.avg_pool2d(x, 2, 2, "VALID")
        else:
            layer = next(layers)
            if spec.kind == "C":
                x = tf.nn.conv2d(x, layer.weight, 1, "SAME")
            else:
                x = tf.matmul(tf.reshape(x, [-1, spec.weight_shape[0]]), layer.weight)
            x = x if layer.bias is None else tf.nn.bias_add(x, layer.bias)
            x = tf.nn.relu(x) if spec.act else x
    return x


class Plain:
    """The reference: one tf.function call per batch."""

    def __init__(self, model):
        self.model = model

    @tf.function
    def step(self, images, labels, lr):
        with tf.GradientTape() as tape:
            logits = plain_logits(self.model, self.model.pixels(images))
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = lr * tf.reduce_mean(losses)
        weights = self.model.weights
        for v, g in zip(weights, tape.gradient(loss, weights), strict=True):
            v.assign_sub(g)
        return loss

    @tf.function
    def forward(self, images):
        return plain_logits(self.model, self.model.pixels(images))

    def train(self, images, labels, batches):
        lr = tf.constant(0.0)
        for batch in batches:
            self.step(tf.gather(images, batch), tf.gather(labels, batch), lr)

    def evaluate(self, images, batch_size):
        for begin in range(0, len(images), batch_size):
            logits = self.forward(images[begin : begin + batch_size])
        return logits.numpy()


def measure(contestants: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Return the best seconds of each, taken in turn."""
    for f in contestants.values():
        f()
    times = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, f in contestants.items():
            times[name].append(seconds(f))
    return {name: min(values) for name, values in times.items()}


def op_table(model, batch: int, repeats: int) -> list[tuple[str, float, float]]:
    """Return (op, ms, GFLOP/s) of each layer's ops alone, on random activations of a batch."""
    rows, loops = [], 10

    def alone(name, flops, op, *operands):
        @tf.function
        def run():
            # The operands change by nothing, so that no op is lifted out of the loop.
            def body(i, total):
                zero = tf.cast(i, tf.float32) * 0.0
                out = op(operands[0] + zero, *operands[1:])
                return i + 1, total + tf.reshape(out, [-1])[0]

            return tf.while_loop(lambda i, total: i < loops, body, (0, 0.0), parallel_iterations=1)[1]

        best = min(seconds(lambda: run().numpy()) for _ in range(repeats + 1)) / loops
        rows.append((name, 1e3 * best, flops * batch / best / 1e9))

    from models import layers

    layer_of = iter(model.layers)
    for k, spec in enumerate(model.specs):
        x = tf.random.normal([batch, *spec.in_shape])
        dz = tf.random.normal([batch, *spec.out_shape])
        name = f"{k} {spec.kind} {'x'.join(map(str, spec.in_shape))}"
        if spec.kind == "P":
            alone(f"{name} forward", 0, layers.max_pool, x)
            y = layers.max_pool(x)
            alone(f"{name} gradient", 0, lambda dz, x=x, y=y: layers.max_pool_grad(x, y, dz), dz)
        elif spec.kind in "CF":
            layer = next(layer_of)
            w = tf.constant(layer.weight)
            if spec.kind == "C":
                conv = {"strides": [1, 1, 1, 1], "padding": "SAME"}
                alone(f"{name} forward", spec.flops, lambda x, w=w: tf.nn.conv2d(x, w, 1, "SAME"), x)
                if k:
                    op = lambda dz, x=x, w=w, c=conv: tf.raw_ops.Conv2DBackpropInput(  # noqa: E731
                        input_sizes=x.shape, filter=w, out_backprop=dz, **c
                    )
                    alone(f"{name} dX", spec.flops, op, dz)
                op = lambda x, w=w, dz=dz, c=conv: tf.raw_ops.Conv2DBackpropFilter(  # noqa: E731
                    input=x, filter_sizes=w.shape, out_backprop=dz, **c
                )
                alone(f"{name} dW", spec.flops, op, x)
            else:
                x = tf.reshape(x, [batch, -1])
                alone(f"{name} forward", spec.flops, lambda x, w=w: tf.matmul(x, w), x)
                if k:
                    alone(f"{name} dX", spec.flops, lambda dz, w=w: layers.matmul_transposed(dz, w), dz)
                alone(f"{name} dW", spec.flops, lambda x, dz=dz: tf.matmul(x, dz, transpose_a=True), x)
            alone(f"{name} update", 0, lambda w, g=w: w - g, w)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiment", default="exper-final-mnist-cnn-loss-based-lr")
    parser.add_argument("--batches", type=int, default=20, help="gradient steps in a measured epoch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=0, help="held in memory, as a real data set would be")
    parser.add_argument("--threads", type=int, default=0, help="cores to use; 0: all")
    parser.add_argument("--parts", default="auto", help="as the flag of the experiments")
    parser.add_argument("--xla", action="store_true", help="compile the training turn with XLA")
    parser.add_argument("--ops", action="store_true", help="also a table of each op alone")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    if args.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    path = ROOT / f"{args.experiment}.py"
    if not path.is_file() or args.batches < 1 or args.repeats < 1:
        parser.error(f"no experiment {args.experiment}, or a count below 1")
    flags = flag_table.complete(runpy.run_path(str(path), run_name="bench")["flags"])
    result, model = compare(flags, args)
    result = {"experiment": args.experiment} | result
    report(result)
    if args.ops:
        rows = op_table(model, result["batch"], args.repeats)
        total = sum(ms for _, ms, _ in rows)
        step = result["train"]["us_per_image"] * result["batch"] / 1e3
        print(f"each op alone, batch {result['batch']} (sum {total:.2f} ms; the whole step takes {step:.2f} ms)")
        for name, ms, gflops in sorted(rows, key=lambda row: -row[1]):
            print(f"  {name:24} {ms:8.3f} ms {ms / total:6.1%} {gflops:8.0f} GFLOP/s")
        result["ops"] = [{"op": name, "ms": ms, "gflops": gflops} for name, ms, gflops in rows]
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def network_of(flags: dict, shape: tuple, parts: int = 1, xla: bool = False):
    """Build the network of an experiment's flags, for images of a shape."""
    few = np.zeros((10, *shape), np.uint8), np.arange(10, dtype=np.int32)
    return build_network(flags["model"], Dataset(few, few, flags["dataset"], 1 / 255), 0, parts, xla)


def compare(flags: dict, args: argparse.Namespace) -> tuple[dict, object]:
    """Times of this program's epoch and evaluation, of the plain ones and of the roof; and the network."""
    # Random pixels of the data set's shape: speed does not depend on what they show.
    shape, batch, rng = SHAPES[flags["dataset"]], flags["B"], np.random.default_rng(0)
    device = set_up_device(flags["gpu"])
    n = args.batches * batch
    n_images = max(n, args.images)
    images = rng.integers(0, 256, (n_images, *shape), dtype=np.uint8)
    labels = rng.integers(0, 10, n_images).astype(np.int32)
    wanted_parts = args.parts if args.parts == "auto" else int(args.parts)
    parts = choose_parts(wanted_parts, flags["model"]["description"], shape, batch, device, cores())
    set_threads(cores(), parts)
    model = network_of(flags, shape, parts, args.xla)
    plain = Plain(network_of(flags, shape))
    x, y = on_device(images, labels)
    batches = rng.permutation(n_images)[:n].reshape(args.batches, batch).astype(np.int32)
    x_eval, y_eval = on_device(images[:n], labels[:n])

    a, b = (tf.random.normal([ROOF_SIZE, ROOF_SIZE]) for _ in range(2))
    # In as many parts as the network, so that all cores are used whatever the threads are set to.
    rows = tf.split(a, [len(part) for part in np.array_split(a, parts)])
    product = tf.function(lambda: tf.add_n([tf.reduce_sum(tf.matmul(part, b)) for part in rows]))
    times = measure(
        {
            "roof": lambda: product().numpy(),
            "train": lambda: model.train_epoch(x, y, batches, 0.0, 0.0, np.inf),
            "plain_train": lambda: plain.train(tf.convert_to_tensor(x), y, batches),
            "eval": lambda: model.evaluate(x_eval, y_eval),
            "plain_eval": lambda: plain.evaluate(tf.convert_to_tensor(x_eval), batch),
        },
        args.repeats,
    )
    roof = 2 * ROOF_SIZE**3 / times["roof"] / 1e9
    result = {"device": device, "batch": batch, "parts": parts, "roof_gflops": roof, "images": n_images}
    for name, flops in (("train", step_flops(model.specs)), ("eval", model.flops)):
        for prefix in ("", "plain_"):
            gflops = flops * n / times[prefix + name] / 1e9
            result[prefix + name] = {
                "us_per_image": 1e6 * times[prefix + name] / n,
                "gflops": gflops,
                "fraction": gflops / roof,
            }
        result[f"speedup_{name}"] = times["plain_" + name] / times[name]
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result, model


def report(result: dict) -> None:
    """Print what `compare` measured."""
    experiment, batch, parts, device = (result[k] for k in ("experiment", "batch", "parts", "device"))
    print(f"{experiment}, batch {batch}, parts {parts}, {device}; roof {result['roof_gflops']:.0f} GFLOP/s")
    print(f"{'':12} {'µs an image':>12} {'GFLOP/s':>9} {'of the roof':>12}")
    for name in ("train", "plain_train", "eval", "plain_eval"):
        row = result[name]
        print(f"{name:12} {row['us_per_image']:12.1f} {row['gflops']:9.0f} {row['fraction']:12.1%}")
    print(f"faster than plain: training {result['speedup_train']:.2f}x, evaluation {result['speedup_eval']:.2f}x")
    print(f"peak memory {result['peak_memory_mib']:.0f} MiB, {result['images']} images held")


if __name__ == "__main__":
    main()
