"""Attacks here and in Foolbox, in one run on the same network and images: `python bench/attacks.py RUN`.

RUN is a training run's working directory; its last epoch is attacked, on training images that it
classifies right. Foolbox is handed the network as its users would write it, in TensorFlow's own ops;
with --same_ops it gets ours (`models/layers.py`). Our side runs as ./eval.sh runs it (without the
certificate). Graphs are compiled before the clock starts: on a whole batch, for Carlini-Wagner, which is
long and meets many sizes of batches, on two images. Foolbox comes
with requirements-test.txt.

--iteration times an iteration of Carlini-Wagner against the network's own gradient, in turn, on 128 images.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flags
import results
from data import loading
from engine.context import Context, build_network
from engine.serial import Serial
from engine.units import Unit
from support.device import import_tensorflow, set_up_device
from support.errors import UserError
from support.screen import Bar

tf = import_tensorflow()

from attacks import measurement
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.l2_attack import CarliniWagnerL2
from attacks.run import AT_ONCE

# {name: (images, iterations)}
FULL = {"cw": (128, 1000), "cw-image": (128, 1000), "ddn": (512, 100), "deepfool": (128, 50)}
QUICK = {"cw": (16, 500), "cw-image": (16, 500), "ddn": (64, 100), "deepfool": (32, 50)}


def sides(name, model, shape, iterations):
    """Return (our attack, Foolbox's)."""
    import foolbox.attacks as theirs

    return {
        **{
            name: lambda rule=rule: (
                CarliniWagnerL2(model.logits, shape, 9, iterations, abort_early=rule),
                theirs.L2CarliniWagnerAttack(9, iterations),
            )
            for name, rule in (("cw", "batch"), ("cw-image", "image"))
        },
        "ddn": lambda: (DDN(model.logits, shape, iterations), theirs.DDNAttack(steps=iterations)),
        "deepfool": lambda: (DeepFool(model.logits, shape, iterations), theirs.L2DeepFoolAttack(steps=iterations)),
    }[name]()


def run_ours(attack, model, images, labels, batch, warm_up):
    """Return (seconds, distances); the first warm_up images are attacked once before the clock starts."""
    attack(model.pixels(images[:warm_up]).numpy(), labels[:warm_up])
    found = []

    def block(worker, args, update):
        where = np.arange(args["first"], min(args["first"] + batch, len(images)))
        return measurement.attack_block(attack, model, images[where], labels[where], where, update=update)

    units = [Unit(block, (first,), {"first": first}) for first in range(0, len(images), batch)]
    began = time.perf_counter()
    with Bar(len(units), "block") as bar:
        Serial(Context({}), AT_ONCE).run(units, lambda unit, result: found.append(result["error"]), bar)
    return time.perf_counter() - began, np.sqrt(np.concatenate(found))


def plain_logits(model):
    """Compute the model's logits in TensorFlow's own ops; `main` checks that they are the same."""

    def logits(x):
        layers = iter(model.layers)
        for spec in model.specs:
            if spec.kind in "PA":
                x = (tf.nn.max_pool2d if spec.kind == "P" else tf.nn.avg_pool2d)(x, 2, 2, "VALID")
                continue
            layer = next(layers)
            if spec.kind == "C":
                x = tf.nn.conv2d(x, layer.weight, 1, "SAME")
            else:
                x = tf.matmul(tf.reshape(x, [-1, layer.weight.shape[0]]), layer.weight)
            x = x if layer.bias is None else tf.nn.bias_add(x, layer.bias)
            x = tf.nn.relu(x) if spec.act else x
        return x

    return logits


def run_foolbox(attack, model, logits, images, labels):
    """Return (seconds, distances)."""
    import foolbox

    network = foolbox.models.TensorFlowModel(logits, bounds=(0, 1))
    x, y = model.pixels(images), tf.constant(labels, tf.int64)
    began = time.perf_counter()
    found = attack.run(network, x, y).numpy()
    seconds = time.perf_counter() - began
    wrong = model.logits(found).numpy().argmax(1) != labels
    return seconds, np.where(wrong, np.sqrt(measurement.errors(found, x.numpy())), np.inf)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a training run's working directory")
    parser.add_argument("--json", help="write the figures into this file")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", default="cw,ddn,deepfool", help="which attacks")
    parser.add_argument("--data_dir", help="where the data are, if not where the run had them")
    parser.add_argument("--attack_B", type=int, default=256, help="our batch size")
    parser.add_argument("--iteration", action="store_true", help="only an iteration of Carlini-Wagner")
    parser.add_argument("--same_ops", action="store_true", help="Foolbox, too, gets our layers")
    options = parser.parse_args()
    set_up_device(-1)
    try:
        stored = flags.complete(results.read_flags(options.run))
        dataset = loading.load(stored["dataset"], options.data_dir or stored["data_dir"])
        model = build_network(stored["model"], dataset, 0)
        model.set_weights([array for _, array in results.load_weights(options.run)])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    (iteration if options.iteration else compare)(options, model, dataset)


def iteration(options, model, dataset):
    """Time 40 iterations, and as many gradients of the gap alone, three times in turn."""
    (images, labels), _ = dataset
    x, y = model.pixels(images[:128]).numpy(), labels[:128]
    n, attack = len(x), CarliniWagnerL2(model.logits, x.shape[1:])
    w, zero, infinite = (
        np.arctanh((2 * x - 1) * np.float32(0.999999)),
        np.zeros_like(x),
        np.full(n, np.inf, np.float32),
    )
    state = (x, w, y, np.ones(n, np.float32), w, zero, zero, np.zeros(n, np.float32), x, infinite, np.zeros(n, bool))

    @tf.function
    def gradients(steps):
        def step(k, x):
            return k + 1, x + 1e-9 * attack.gap_and_gradient(x, y)[1]

        return tf.while_loop(lambda k, _: k < steps, step, (0, tf.constant(x)))

    jobs = {"iteration": lambda k: attack._adam(k, *state), "gradient alone": lambda k: gradients(tf.constant(k))}
    for job in jobs.values():
        job(3)
    for _ in range(3):
        for name, job in jobs.items():
            began = time.perf_counter()
            job(40)
            print(f"{name}: {(time.perf_counter() - began) / 40 * 1e3:.2f} ms")


def compare(options, model, dataset):
    """Attack the images that the network classifies right, here and in Foolbox; print a line an attack."""
    (images, labels), _ = dataset
    images, labels = images[:4000], labels[:4000]
    _, _, logits = model.evaluate(tf.constant(images), tf.constant(labels))
    right = np.flatnonzero(logits.argmax(1) == labels)
    their_logits = (lambda x: model.logits(x)) if options.same_ops else plain_logits(model)
    x = model.pixels(images[:8])
    np.testing.assert_allclose(their_logits(x), model.logits(x), rtol=1e-3, atol=1e-3)
    figures = {}
    for name in options.only.split(","):
        n, iterations = (QUICK if options.quick else FULL)[name]
        x, y = images[right[:n]], labels[right[:n]]
        ours, theirs = sides(name, model, x.shape[1:], iterations)
        batch = min(options.attack_B, -(-n // AT_ONCE))
        seconds, distance = run_ours(ours, model, x, y, batch, 2 if name.startswith("cw") else batch)
        their_seconds, their_distance = run_foolbox(theirs, model, their_logits, x, y)
        median, their_median = float(np.median(distance)), float(np.median(their_distance))
        figures[name] = {
            "images": n,
            "iterations": iterations,
            "seconds": seconds,
            "foolbox_seconds": their_seconds,
            "median": median,
            "foolbox_median": their_median,
            "speedup": their_seconds / seconds,
            "median_ratio": median / their_median,
        }
        print(
            f"{name} {n} images, {iterations} iterations: {seconds:.1f} s, Foolbox {their_seconds:.1f} s, "
            f"speedup {their_seconds / seconds:.2f}; median L2 {median:.4f}, Foolbox {their_median:.4f}, "
            f"ratio {median / their_median:.4f}",
            flush=True,
        )
        if options.json:
            Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
