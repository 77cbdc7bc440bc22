"""The attacks against Foolbox and CleverHans."""

import numpy as np
import pytest
import tensorflow as tf
from builders import SHAPE, N, classes, l2, lengths, soak

from attacks.base import normalized
from attacks.bim import BasicIterativeMethod
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.fmn import FMN, FMNL1, FMNLinf
from attacks.l2_attack import CarliniWagnerL2
from attacks.linf_attack import ProjectedGradientDescent, cw_loss

FOOLBOXS = {
    "cw": (
        lambda logits: CarliniWagnerL2(logits, SHAPE, 4, iterations=150, initial_const=1.0, abort_early="none"),
        lambda fb: fb.L2CarliniWagnerAttack(4, steps=150, initial_const=1.0, abort_early=False),
        0.002,
    ),
    "ddn": (lambda logits: DDN(logits, SHAPE), lambda fb: fb.DDNAttack(steps=100), 0.05),
    "deepfool": (lambda logits: DeepFool(logits, SHAPE), lambda fb: fb.L2DeepFoolAttack(steps=50), 0.002),
}
FOOLBOXS_FMN = {1: (FMNL1, "L1FMNAttack"), 2: (FMN, "L2FMNAttack"), np.inf: (FMNLinf, "LInfFMNAttack")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", FOOLBOXS_FMN)
def test_fmn_finds_examples_as_near_as_foolboxs_does(small_network, order):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = small_network
    ours, theirs = FOOLBOXS_FMN[order]
    network = foolbox.models.TensorFlowModel(lambda x: model.logits(x), bounds=(0, 1), device="/CPU:0")
    attack = getattr(foolbox.attacks, theirs)(steps=100)
    _, found, fooled = attack(network, tf.constant(x), tf.constant(y, tf.int64), epsilons=None)
    distance = np.where(fooled.numpy(), lengths(found.numpy() - x, order), np.inf)
    adversarial = ours(model.logits, SHAPE)(x, y)
    assert (classes(model, adversarial, N) != y).all()
    assert np.median(lengths(adversarial - x, order)) <= 1.03 * np.median(distance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(name, marks=soak if name == "cw" else ()) for name in FOOLBOXS])
def test_the_distances_are_foolboxs(small_network, name):
    """Median within 2 %, and image by image.

    Foolbox's DDN climbs the cross-entropy, ours the gap. Where the logits are sharp, which eight times
    these are, both have the same direction. (On these themselves ours finds examples 4 % nearer.)
    """
    foolbox = pytest.importorskip("foolbox")
    import foolbox.attacks as theirs

    model, x, y = small_network
    our_attack, their_attack, tolerance = FOOLBOXS[name]
    sharper = 8.0 if name == "ddn" else 1.0
    logits = tf.function(lambda x: sharper * model.logits(x), input_signature=[tf.TensorSpec([None, *SHAPE])])
    network = foolbox.models.TensorFlowModel(lambda x: logits(x), bounds=(0, 1), device="/CPU:0")
    # int64, because of a NumPy function, gone by now, that it calls on mixed integers
    adversarial = their_attack(theirs).run(network, tf.constant(x), tf.constant(y, tf.int64)).numpy()
    assert (classes(model, adversarial, N) != y).all()
    distance, ours = l2(adversarial, x), l2(our_attack(logits)(x, y), x)
    assert np.median(ours) == pytest.approx(np.median(distance), rel=0.02)
    assert (np.abs(ours / distance - 1) < tolerance).mean() >= 0.9


@pytest.mark.filterwarnings("ignore")
def test_where_foolboxs_ddn_takes_another_direction_ours_is_no_farther(small_network):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = small_network
    network = foolbox.models.TensorFlowModel(lambda x: model.logits(x), bounds=(0, 1), device="/CPU:0")
    theirs = foolbox.attacks.DDNAttack(steps=100).run(network, tf.constant(x), tf.constant(y, tf.int64))
    assert np.median(l2(DDN(model.logits, SHAPE)(x, y), x)) <= 1.01 * np.median(l2(theirs.numpy(), x))


def test_pgd_without_random_start_is_cleverhans_to_the_last_digits(small_network):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    model, x, y = small_network
    eps = 0.01  # too little for an example, so that no image stops early
    attack = ProjectedGradientDescent(model.logits, SHAPE, eps_list=(eps,), restarts=1, steps=7)
    ours, found = attack._climb(x, x, y, eps, 7)
    assert not found.numpy().any()
    theirs = projected_gradient_descent(
        model.logits, x, eps, 0.1 * eps, 7, np.inf, lambda labels, logits: cw_loss(logits, labels), 0, 1, y
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_bim_in_one_ball_is_cleverhans_to_the_last_digits(small_network):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    model, x, y = small_network
    attack = BasicIterativeMethod(normalized(model.logits, "max"), SHAPE, steps=8)
    eps = 0.05
    ours, found = attack._try(x, y, np.full(N, eps, np.float32))
    assert not found.numpy().any()
    logits = normalized(model.logits, "max")
    theirs = projected_gradient_descent(logits, x, eps, eps / 6, 8, 2, None, 0, 1, y)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
