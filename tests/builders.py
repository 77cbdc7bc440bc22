"""Builders of working directories and helpers, shared by the tests."""

import itertools
import math
import os

import matplotlib
import numpy as np
import pytest
import tensorflow as tf

import figures
import flags
from attacks.base import normalized
from attacks.bim import BasicIterativeMethod
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.fmn import FMN
from attacks.l2_attack import CarliniWagnerL2
from engine.context import Context
from models import losses, margins
from models.architectures import degrees, parse
from reporting import runs, style, training
from storage import workdir
from training import theory
from training.run import Training

soak = pytest.mark.skipif(os.environ.get("SOAK") != "1", reason="it takes long; ./test.sh --soak runs it")
TINY = [["C", 4, [3, 3]], ["P"], ["F", 16], ["F", 10, {"act": False}]]


def tiny_run_flags(logs, **more):
    """Flags of a run that takes a second: a tiny CNN, 300 digits, batches of 50; its directory is below `logs`."""
    model = {"description": TINY, "init": {"weight": "he_normal"}}
    flags = {"dataset": "digits", "train_N": 300, "B": 50, "E": 4, "gpu": -1, "model": model}
    return flags | {"logs_dir": str(logs)} | more


def trained_on_digits(description, train_N):
    """(network, images float32 in [0, 1], labels) after 15 epochs on `train_N` digits."""
    script = {
        "dataset": "digits",
        "train_N": train_N,
        "B": 50,
        "gpu": -1,
        "lr": 0.1,
        "model": {"description": description, "init": {"weight": "he_normal"}},
    }
    context = Context(script)
    progress = Training(context)
    for _ in range(15):
        progress.epoch()
    (x, y), _ = context.dataset
    return context.model, context.model.pixels(x).numpy(), y


def loss_margin(directories):
    """That figure of training runs, without the time that the others take."""
    labelled = runs.label(figures.read(directories))
    with matplotlib.rc_context(fname=style.STYLE):
        figure = training.loss_margin(labelled)
        style.finish(figure)
    return figure


def curves(axes):
    """Its curves' points, without the lines that only mark a value."""
    return [line.get_xydata() for line in axes.lines if line.get_transform() == axes.transData]


def work_dir(path, flat, res, **files):
    """A working directory with these results."""
    path.mkdir(parents=True)
    written = workdir.WorkDir(path)
    written.write_json("flags.json", flags.complete({"dataset": "digits"} | flat))
    if res is not None:
        written.write_res(res)
    return path


def an_attack(path, distances, clean_correct=None, success=None, method="ddn", **flat):
    """An attack's directory: {eid: distances of its images (for pgd its smallest eps)}."""
    res = {}
    for eid, found in distances.items():
        found = np.asarray(found, np.float64)
        everything = np.ones(len(found), bool)
        res[eid] = {
            "errors": found if method == "pgd" else found**2,
            "success": everything if success is None else np.array(success),
            "clean_correct": everything if clean_correct is None else np.array(clean_correct),
        }
    return work_dir(path, {"task": "attack", "attack_method": method} | flat, res)


def a_radius(path, names, published=None, eids=None, **flat):
    """A radius's directory, of networks with these names: the k-th one's mean is k + 3."""
    networks = {
        name: {"I": 0.01, "radii": [k + 2, k + 4], "profiles": [[0.01, 0.02], [0.01, 0.06]], "mean": k + 3}
        | {"norm": 2.0, "mean_by_norm": (k + 3) / 2}
        for k, name in enumerate(names)
    }
    raw = {
        "networks": networks,
        "row": {"published": published, "mean": 3.0, "sd": 1.0, "by_norm_mean": 1.5, "by_norm_sd": 0.5},
    }
    return measured_as(work_dir(path, {"task": "measure_radius"} | flat, {"flags": {}, "raw": raw}), names, eids)


def measured_as(path, names, eids=None):
    """The same directory, which says that its networks were measured at these epochs (else all at one)."""
    measured = dict(zip(names, eids or [9] * len(names), strict=True))
    workdir.WorkDir(path).write_json("about.json", {"measured": measured})
    return path


def a_curvature(path, names, eids=None):
    found = {"eigenvalues": [3.0, 2.0], "trace": 9.0, "parameters": 9, "log_frame": -1.0, "log_loss": -2.0}
    found["trace_error"] = 0.9
    res = {"flags": {}, "raw": dict.fromkeys(names, found)}
    return measured_as(work_dir(path, {"task": "measure_curvature"}, res), names, eids)


def assert_nothing_overlaps(figure):
    """No tick label lies on its neighbour, and no legend on a panel or beyond the page."""
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    for axes in figure.axes:
        for axis, start, end in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
            low, high = sorted(axis.get_view_interval())
            boxes = [
                tick.label1.get_window_extent()
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_text() and tick.label1.get_visible()
            ]
            boxes.sort(key=lambda box: getattr(box, start))
            for before, after in itertools.pairwise(boxes):
                assert getattr(before, end) <= getattr(after, start)


MLP = [["F", 16], ["F", 10, {"act": False}]]


class Exact:
    """A network in float64, from its description, by TensorFlow's plain ops; and all that theory says of it."""

    def __init__(self, description, act_type="relu", bias_mode="FIRST_LAYER", seed=0, shape=(6, 6, 2), n=12):
        rng = np.random.default_rng(seed)
        self.specs = parse(description, bias_mode, shape)
        self.act = {"relu": tf.nn.relu, "linear": tf.identity, "relu2": lambda x: tf.nn.relu(x) ** 2}[act_type]
        self.degrees = degrees(self.specs, act_type)
        self.layers = []
        for spec in self.specs:
            if spec.weight_shape is not None:
                weight = rng.standard_normal(spec.weight_shape) / math.sqrt(math.prod(spec.weight_shape[:-1]))
                bias = [rng.standard_normal(spec.weight_shape[-1])] if spec.bias else []
                self.layers.append([weight, *bias])
        self.x = rng.random((n, *shape))
        z = self.logits([w for layer in self.layers for w in layer], self.x).numpy()
        self.y = z.argmax(axis=1)  # all are classified right
        self.y[0] = np.argsort(z[0])[-2]  # but one

    def scaled(self, factor):
        self.layers = [[factor * w for w in layer] for layer in self.layers]
        return self

    @property
    def flat(self):
        return [w for layer in self.layers for w in layer]

    def logits(self, flat, x):
        flat, x = list(flat), tf.constant(x)
        for spec in self.specs:
            if spec.kind == "P":
                x = tf.nn.max_pool2d(x, 2, 2, "VALID")
                continue
            w = flat.pop(0)
            x = tf.nn.conv2d(x, w, 1, "SAME") if spec.kind == "C" else tf.reshape(x, [len(x), -1]) @ w
            x = x + flat.pop(0) if spec.bias else x
            x = self.act(x) if spec.act else x
        return x

    def log_loss_and_gradient(self, flat=None):
        """log of the mean loss, and the gradient of the mean loss over the loss."""
        flat = [tf.Variable(w) for w in (self.flat if flat is None else flat)]
        with tf.GradientTape() as tape:
            log_l = self.log_losses(flat)
            log_mean = tf.reduce_logsumexp(log_l) - math.log(len(self.y))
        return float(log_mean), [g.numpy() for g in tape.gradient(log_mean, flat)]

    def log_losses(self, flat):
        odds = losses.log_odds(tf.constant(self.y), self.logits(flat, self.x))
        small = tf.minimum(odds, -30.0)  # softplus(s) = e^s there
        return tf.where(odds < -30, small, tf.math.log(tf.nn.softplus(tf.maximum(odds, -30.0))))

    def gaps(self):
        z = self.logits(self.flat, self.x).numpy()
        d = z - z[np.arange(len(z)), self.y][:, None]
        d[np.arange(len(z)), self.y] = -np.inf
        return d

    def found(self):
        """(`theory.at_a_point`, s, p, log loss, gradient by layer)."""
        log_loss, gradient = self.log_loss_and_gradient()
        d = self.gaps()
        log_l = margins.log_losses(margins.log_odds_of_gaps(d))
        s, p = theory.constraint_weights(d, log_l, log_loss)
        gradients, flat = [], list(gradient)
        for layer in self.layers:
            gradients.append([flat.pop(0) for _ in layer])
        return theory.at_a_point(self.layers, gradients, self.degrees, s, p, len(self.y)), s, p, log_loss, gradient


def gap_gradients(network, chosen=slice(None)):
    """The gradients of gaps, in the order of `constraint_weights`: float64 [N (C-1) or chosen, n weights]."""
    flat = [tf.Variable(w) for w in network.flat]
    with tf.GradientTape() as tape:
        z = network.logits(flat, network.x)
        rows = tf.range(len(network.y))
        z_y = tf.gather_nd(z, tf.stack([rows, tf.constant(network.y, tf.int32)], 1))
        every = tf.boolean_mask(z_y[:, None] - z, np.isfinite(network.gaps()))
        every = every[chosen] if isinstance(chosen, slice) else tf.gather(every, chosen)
    parts = tape.jacobian(every, flat)
    return np.concatenate([part.numpy().reshape(len(every), -1) for part in parts], axis=1)


N = 24


SHAPE = (8, 8, 1)


# Its pool is an average: the max pool's kernels are compiled anew for each size of a batch. (The runs that
# tests/eval_test.py attacks have a max pool.)
SMALL = [["C", 4, [3, 3]], ["A"], ["F", 16], ["F", 10, {"act": False}]]


CW = {"iterations": 200, "binary_search_steps": 6, "initial_const": 0.1}


PGD = {"eps_list": (0.05, 0.1, 0.2), "restarts": 2, "steps": 20}


L2_ATTACKS = {
    "cw": lambda logits: CarliniWagnerL2(logits, SHAPE, **CW),
    "ddn": lambda logits: DDN(logits, SHAPE, steps=200),
    "fmn": lambda logits: FMN(logits, SHAPE, steps=200),
    "deepfool": lambda logits: DeepFool(logits, SHAPE),
    "bim": lambda logits: BasicIterativeMethod(normalized(logits, "max"), SHAPE),
}


def l2(a, b):
    return np.sqrt(((a.astype(np.float64) - b) ** 2).sum(axis=(1, 2, 3)))


def classes(model, x, batch):
    return np.concatenate([model.logits(x[k : k + batch]).numpy().argmax(1) for k in range(0, len(x), batch)])


def linear_classifier(n_classes, scale=1.0):
    """(logits, x, y, exact distances [16]) of a linear classifier and 16 images."""
    rng = np.random.default_rng(0)
    w = rng.choice([-1, 1], (64, n_classes)).astype(np.float32) / 8
    y = np.arange(16, dtype=np.int32) % n_classes
    # An image is grey with a trace of its class, so no pixel comes near 0 or 1 on the way out.
    x = (0.5 + 0.6 * w.T[y] + rng.uniform(-0.02, 0.02, (16, 64))).astype(np.float32)
    b = np.linspace(-0.01, 0.01, n_classes, dtype=np.float32) - w.sum(axis=0) / 2
    z = x @ w + b
    assert (z.argmax(axis=1) == y).all()
    gaps, norms = z.max(axis=1)[:, None] - z, np.linalg.norm(w.T[y][:, None] - w.T[None], axis=2)
    with np.errstate(invalid="ignore"):
        exact = np.nanmin(np.where(norms > 0, gaps / norms, np.nan), axis=1)
    return lambda x: scale * (tf.reshape(x, [-1, 64]) @ w + b), x.reshape(16, *SHAPE), y, exact


def lengths(difference, order):
    """The norm of each image's difference, [N]."""
    return np.linalg.norm(difference.reshape(len(difference), -1).astype(np.float64), order, axis=1)


def pixels(path, x=None, y=None, n_classes=4, **more):
    """An .npz of images [60, 4, 4], uint8."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8) if x is None else x
    y = np.arange(len(x)) % n_classes if y is None else y
    np.savez(path, **{"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]} | more)
    return str(path)
