"""Distances of targeted attacks, and losses whose gradient would vanish (`catalogue.attacks`, `attacks.apgd`)."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import figures
import results
from attacks.apgd import AutoPGD
from attacks.base import normalized
from core import Core
from engine.context import Context
from storage.run_flags import resolve


@pytest.mark.parametrize("target", ["next", 3])
def test_with_a_target_only_images_of_that_class_are_at_distance_0(archived_run, target):
    flags = {
        "task": "attack",
        "attack_method": "ddn",
        "load_dir": str(archived_run),
        "eid": [1],
        "attack_target": target,
    }
    path = Core(flags | {"attack_K": 30, "figures": False, "attack_eps_list": (0.25, 0.5, 1.0)}, "ddn").run()
    found, summary = results.load(path)[1], results.read_summary(path)["1"]
    context = Context(resolve({}, flags))
    x, y = context.dataset[0]
    context.model.set_weights(context.stored_weights(archived_run, 1))
    chosen = found["indices"]
    goal = (y[chosen] + 1) % 10 if target == "next" else np.full(len(chosen), target)
    there = context.model.logits(context.model.pixels(x[chosen])).numpy().argmax(1) == goal
    distance = np.sqrt(((found["images"] - x[chosen] / 16.0) ** 2).sum(axis=(1, 2, 3)))
    distance[~found["success"]] = np.inf
    assert (~found["clean_correct"] & ~there).sum() > 20 and there.any()
    assert ((distance == 0) == there).all()
    assert summary["median"] == pytest.approx(np.median(distance), rel=1e-4)
    assert summary["mean"] == pytest.approx(distance[found["success"]].mean(), rel=1e-4)
    for eps in (0.25, 0.5, 1.0):
        assert summary["robust_acc"][str(eps)] == pytest.approx((distance > eps).mean())
    table = results.table(path)
    np.testing.assert_allclose(table["distance"], np.where(found["success"], distance, np.nan), rtol=1e-4, atol=1e-7)
    (curve,) = [line for line in figures.build([path])["attack_l2"].axes[1].lines if len(line.get_xdata()) > 2]
    eps, robust = curve.get_data()
    assert robust[0] == pytest.approx(100 * (~there).mean())
    assert robust[np.searchsorted(eps, 0.5, side="right") - 1] == pytest.approx(100 * (distance > 0.5).mean())
    plt.close("all")


def test_drawing_changes_no_result():
    from catalogue.attacks import METHODS

    errors = np.array([0.1, 1.0])
    assert METHODS["pgd"].distances(errors, np.array([True, True]), "next") is not errors


def test_apgd_finds_examples_where_two_logits_are_the_same_function():
    """z = (s, -s, -s): the DLR loss is -1 for all images of class 0."""
    import tensorflow as tf

    def logits(x):
        s = tf.reduce_sum(x, axis=[1, 2, 3]) - 2.0
        return tf.stack([s, -s, -s], axis=1)

    x = np.full((14, 2, 2, 1), 0.55, np.float32)
    attack = AutoPGD(logits, (2, 2, 1), eps_list=(0.2,))
    found = attack(x, np.zeros(14, np.int32))
    assert (logits(tf.constant(found)).numpy().argmax(1) != 0).all()
    assert np.abs(found - x).max() <= 0.2 + 1e-6


@pytest.mark.parametrize("how", ["sum", "max"])
def test_two_opposite_logits_keep_their_gradient_when_they_are_normalized(how):
    import tensorflow as tf

    def logits(x):
        s = tf.reduce_sum(x, axis=[1, 2, 3]) - 2.0
        return tf.stack([s, -s], axis=1)

    x = tf.ones((3, 2, 2, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = normalized(logits, how)(x)
        gap = z[:, 0] - z[:, 1]
    assert (tape.gradient(gap, x).numpy() > 0).all()
