"""APGD, its step-size rule and its loss (`attacks.apgd`, `models.step_size`)."""

import numpy as np
import tensorflow as tf
from builders import SHAPE, lengths, linear_classifier

from attacks.apgd import AutoPGD, dlr
from attacks.fmn import FMNLinf
from attacks.linf_attack import ProjectedGradientDescent
from models.step_size import StepSize, periods


def test_apgd_looks_at_its_step_after_the_papers_iterations():
    """p_1 = 0.22, p_2 = 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99: section 3 of the paper, of 100 iterations."""
    assert np.cumsum(list(periods(100))).tolist() == [22, 41, 57, 70, 80, 87, 93, 99, 100]
    for n in (1, 2, 7, 33, 1000):
        assert sum(periods(n)) == n and min(periods(n)) >= 1


def test_a_step_is_halved_where_few_steps_climbed_or_nothing_has_changed_since_the_last_look():
    step = StepSize(np.ones(4))
    assert step.halve(20, np.array([14, 15, 20, 15]), np.array([True, True, True, False])).tolist() == [
        *(True, False, False, True)
    ]
    # The first and last were halved, so these may go on as they are even without a new best value.
    assert step.halve(20, np.array([15, 15, 14, 15]), np.array([False, False, True, False])).tolist() == [
        *(False, True, True, False)
    ]
    assert step.eta.tolist() == [0.5, 0.5, 0.5, 0.5]
    step.keep(np.array([True, False, False, True]))
    assert len(step.eta) == len(step.was_halved) == 2


def test_the_dlr_loss_is_the_papers_with_the_sign_turned():
    z = np.random.default_rng(0).normal(0, 1, (50, 6)).astype(np.float32)
    y = np.arange(50, dtype=np.int32) % 6
    down = np.sort(z, axis=1)[:, ::-1]
    for scale in (1e-20, 1.0, 1e20):
        found = dlr(tf.constant(z * np.float32(scale)), tf.constant(y)).numpy()
        others = np.where(np.arange(6) == y[:, None], -np.inf, z).max(axis=1)
        exact = -(z[np.arange(50), y] - others) / (down[:, 0] - down[:, 2])
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


def test_apgd_finds_the_examples_of_a_linear_classifier_inside_eps_and_no_others():
    logits, x, y, _ = linear_classifier(5)
    exact = lengths(FMNLinf(logits, SHAPE, steps=400)(x, y) - x, np.inf)
    eps = float(np.sort(exact)[len(exact) // 2]) * 1.03
    adversarial = AutoPGD(logits, SHAPE, eps_list=(eps,))(x, y)
    fooled = logits(adversarial).numpy().argmax(axis=1) != y
    assert fooled[exact < 0.97 * eps].all() and not fooled[exact > 1.03 * eps].any()
    assert (np.abs(adversarial - x).max(axis=(1, 2, 3)) <= eps + 1e-6).all()
    assert (adversarial[~fooled] == x[~fooled]).all()


def test_apgd_is_at_least_as_strong_as_pgd_with_as_many_restarts(small_network):
    model, x, y = small_network
    eps_list = (0.02, 0.04, 0.06, 0.08)

    def smallest(attack):
        adversarial = attack(x, y)
        fooled = model.logits(adversarial).numpy().argmax(axis=1) != y
        return np.where(fooled, np.abs(adversarial - x).max(axis=(1, 2, 3)), 1.0)

    ours = smallest(AutoPGD(model.logits, SHAPE, eps_list, restarts=2))
    pgds = smallest(ProjectedGradientDescent(model.logits, SHAPE, eps_list, restarts=2))
    grid = np.array([*eps_list, 1.0])
    ours, pgds = (np.searchsorted(grid + 1e-6, found) for found in (ours, pgds))
    assert (ours <= pgds).mean() > 0.95 and ours.sum() <= pgds.sum() + 1
