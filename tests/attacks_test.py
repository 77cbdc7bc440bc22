"""The attacks by themselves: against analytic distances, other libraries, and their own promises."""

import functools
import logging

import numpy as np
import pytest
import tensorflow as tf
from conftest import soak, trained_on_digits

from attacks import certificate
from attacks.apgd import AutoPGD, dlr
from attacks.base import normalized
from attacks.bim import BasicIterativeMethod
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.fmn import FMN, FMNL1, FMNLinf
from attacks.l2_attack import CarliniWagnerL2
from attacks.linf_attack import ProjectedGradientDescent, cw_loss
from models import margins
from models.step_size import StepSize, periods

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
SCALE_FREE = L2_ATTACKS | {
    "cw": lambda logits: CarliniWagnerL2(normalized(logits, "sum"), SHAPE, **CW | {"initial_const": 10.0}),
    "pgd": lambda logits: ProjectedGradientDescent(logits, SHAPE, **PGD),
    "apgd": lambda logits: AutoPGD(logits, SHAPE, PGD["eps_list"], steps=20),
    "fmn-l1": lambda logits: FMNL1(logits, SHAPE),
    "fmn-linf": lambda logits: FMNLinf(logits, SHAPE),
}


@pytest.fixture(scope="module")
def trained():
    """A small CNN after 15 epochs of digits, and N images that it classifies right: (model, x, y)."""
    model, x, y = trained_on_digits(SMALL, 500)
    right = np.flatnonzero(model.logits(x).numpy().argmax(1) == y)[:N]
    return model, x[right], y[right]


@pytest.fixture(scope="module")
def found(trained):
    """What each of L2_ATTACKS finds on the small network: name -> float32 [N, h, w, c]."""
    model, x, y = trained
    return functools.cache(lambda name: L2_ATTACKS[name](model.logits)(x, y))


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


def assert_distances(attack, logits, x, y, exact, rtol):
    adversarial = attack(x, y)
    assert (logits(adversarial).numpy().argmax(axis=1) != y).all()
    distance = l2(adversarial, x)
    np.testing.assert_allclose(distance, exact, rtol=rtol, atol=2e-4)
    assert (distance >= exact * (1 - 1e-4)).all()


@pytest.mark.parametrize("name", ["cw", "ddn", "fmn", "deepfool"])
def test_on_a_linear_classifier_the_distance_is_the_analytic_one(name):
    logits, x, y, exact = linear_classifier(5)
    tolerance = 0.021 if name == "deepfool" else 0.01  # DeepFool overshoots by 2 % on purpose
    assert_distances(L2_ATTACKS[name](logits), logits, x, y, exact, tolerance)


def test_without_its_overshoot_deepfool_finds_the_analytic_distance_too():
    logits, x, y, exact = linear_classifier(5)
    assert_distances(DeepFool(logits, SHAPE, overshoot=1e-3), logits, x, y, exact, 0.01)


def test_bim_finds_the_analytic_distance_where_the_cross_entropy_points_to_the_nearest_class():
    """With the published 10 steps on two classes; on five with more steps and sharp logits.

    BIM climbs the cross-entropy, which pushes towards every class in proportion to its probability. On
    logits divided by their largest magnitude, as published, all classes are nearly equally probable, and
    neither more nor smaller steps bring it nearer to the boundary of five classes than 15 to 30 % off.
    """
    logits, x, y, exact = linear_classifier(2)
    assert_distances(BasicIterativeMethod(logits, SHAPE), logits, x, y, exact, 0.01)
    logits, x, y, exact = linear_classifier(5, scale=30.0)
    assert_distances(BasicIterativeMethod(logits, SHAPE, steps=100), logits, x, y, exact, 0.01)
    logits, x, y, exact = linear_classifier(5, scale=1e4)  # where the cross-entropy itself underflows
    assert_distances(BasicIterativeMethod(logits, SHAPE, steps=100), logits, x, y, exact, 0.2)
    published = l2(BasicIterativeMethod(normalized(logits, "max"), SHAPE)(x, y), x)
    assert 1.15 < np.median(published / exact) < 1.35


@pytest.mark.parametrize("name", L2_ATTACKS)
def test_every_example_is_an_image_and_misclassified_in_batches_of_any_size(trained, found, name):
    model, _, y = trained
    adversarial = found(name)
    assert adversarial.dtype == np.float32 and adversarial.min() >= 0 and adversarial.max() <= 1
    for batch in (1, 7, N):
        assert (classes(model, adversarial, batch) != y).all()


@pytest.mark.parametrize("name", L2_ATTACKS)
def test_the_certificate_is_below_every_distance(trained, found, name):
    model, x, y = trained
    bound = certificate.lipschitz(model.specs, model.effective_weights(), "relu")
    radius = certificate.certified(model.logits(x).numpy(), y, *bound)
    assert (radius > 0).all()
    assert (radius < l2(found(name), x)).all()


@pytest.mark.parametrize(("attack", "order", "dual"), [(FMNL1, 1, np.inf), (FMNLinf, np.inf, 1)])
def test_in_l1_and_l_infinity_too_fmn_finds_a_linear_classifiers_exact_distance(attack, order, dual):
    """Of two classes: of more, the class that is nearest in L2 need not be that of another norm."""
    logits, x, y, _ = linear_classifier(2)
    z = logits(x).numpy().astype(np.float64)
    w = (logits(np.eye(64, dtype=np.float32).reshape(64, *SHAPE)) - logits(np.zeros((1, *SHAPE), np.float32))).numpy()
    exact = [
        min(
            (z[i, k] - z[i, j]) / np.linalg.norm(w[:, k] - w[:, j], dual)
            for j in range(2)
            if (w[:, k] != w[:, j]).any()
        )
        for i, k in enumerate(y)
    ]
    adversarial = attack(logits, SHAPE, steps=200)(x, y)
    assert (logits(adversarial).numpy().argmax(axis=1) != y).all()
    distance = lengths(adversarial - x, order)
    np.testing.assert_allclose(distance, exact, rtol=0.02, atol=2e-4)
    assert (distance >= np.array(exact) * (1 - 1e-4)).all()


def test_the_projection_onto_an_l1_ball_is_the_nearest_point_of_it():
    rng = np.random.default_rng(0)
    points, radii = rng.normal(0, 1, (40, *SHAPE)).astype(np.float32), rng.uniform(0.1, 80, 40).astype(np.float32)
    found = FMNL1(lambda x: x, SHAPE).project(tf.constant(points), tf.constant(radii)).numpy()
    for point, radius, near in zip(
        points.reshape(40, -1).astype(np.float64), radii, found.reshape(40, -1), strict=True
    ):
        low, high = 0.0, np.abs(point).max()  # by bisection of what is taken off each magnitude
        if np.abs(point).sum() <= radius:
            high = 0.0
        for _ in range(80):
            off = (low + high) / 2
            inside = np.maximum(np.abs(point) - off, 0).sum() <= radius
            low, high = (low, off) if inside else (off, high)
        np.testing.assert_allclose(near, np.sign(point) * np.maximum(np.abs(point) - high, 0), atol=1e-5)


# APGD


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


def test_apgd_is_no_weaker_than_pgd_with_as_many_restarts(trained):
    model, x, y = trained
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


# The scale of the logits


@pytest.fixture
def weights_times(trained):
    """A function that sets the network's weights to so many times what they are."""
    model, _, _ = trained
    weights = [array for _, array in model.get_weights()]
    yield lambda factor: model.set_weights([w * np.float32(factor) for w in weights])
    model.set_weights(weights)


def factor_for_gaps(model, x, y, gap):
    """The power of two times which the weights make every gap at least so large, in a homogeneous network."""
    margin = margins.margins(margins.gaps(model.logits(x).numpy(), y)).min()
    return 2.0 ** np.ceil(np.log2(gap / margin) / len(model.layers))


@pytest.mark.parametrize("name", SCALE_FREE)
def test_a_loss_of_1e_minus_800_and_halved_weights_change_no_distance(trained, weights_times, name):
    model, x, y = trained
    factor = factor_for_gaps(model, x, y, 800 * np.log(10))
    attack = SCALE_FREE[name](model.logits)
    distance = l2(attack(x, y), x)
    assert np.median(distance) > 0.05
    weights_times(factor)
    gaps = margins.gaps(model.logits(x).numpy(), y)
    assert margins.log_mean_exp(margins.log_losses(margins.log_odds_of_gaps(gaps))) < -799 * np.log(10)
    assert np.abs(model.logits(x).numpy()).max() > 1e4
    np.testing.assert_allclose(l2(attack(x, y), x), distance, rtol=1e-4)
    weights_times(factor / 2)
    np.testing.assert_allclose(l2(attack(x, y), x), distance, rtol=1e-4)


@pytest.mark.parametrize("name", SCALE_FREE)
def test_gradients_neither_vanish_nor_overflow_at_logits_near_the_ends_of_float32(trained, name):
    model, x, y = trained
    scale = tf.Variable(1.0)
    attack = SCALE_FREE[name](lambda x: scale * model.logits(x))
    distance = l2(attack(x, y), x)
    for exponent in (-60, 60):
        scale.assign(2.0**exponent)
        np.testing.assert_allclose(l2(attack(x, y), x), distance, rtol=1e-4, err_msg=f"2**{exponent}")


def test_as_long_as_an_image_is_not_fooled_pgds_steps_are_the_same_at_any_scale(trained):
    """-relu(z_y - max z_j + 50) is flat only where the image is wrong by 50 logits, and PGD stops before."""
    model, x, y = trained
    scale = tf.Variable(1.0)
    eps = 0.004  # too little for an example
    attack = ProjectedGradientDescent(lambda x: scale * model.logits(x), SHAPE, eps_list=(eps,))
    ends = []
    for exponent in (0, -10, 14, 40):
        scale.assign(2.0**exponent)
        end, fooled = attack._climb(x, x, y, eps, 20)
        assert not fooled.numpy().any()
        ends.append(end.numpy())
    assert np.abs(ends[0] - x).max() > 0.9 * eps
    for end in ends[1:]:
        np.testing.assert_array_equal(end, ends[0])


def test_cw_on_raw_logits_of_1e4_finds_what_it_finds_at_1(trained, weights_times):
    """Its constant weighs logits against the distance, so it is the search for it that bridges the scale."""
    model, x, y = trained
    attack = CarliniWagnerL2(model.logits, SHAPE, **CW | {"binary_search_steps": 9, "initial_const": 1e-3})
    distance = l2(attack(x, y), x)
    factor = factor_for_gaps(model, x, y, 800 * np.log(10))
    for part in (1, 0.5):
        weights_times(part * factor)
        scaled = attack(x, y)
        assert (classes(model, scaled, N) != y).all()
        np.testing.assert_allclose(np.median(l2(scaled, x)), np.median(distance), rtol=0.05)


# Other libraries


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
def test_fmn_finds_examples_as_near_as_foolboxs_does(trained, order):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = trained
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
def test_the_distances_are_foolboxs(trained, name):
    """Median within 2 %, and image by image.

    Foolbox's DDN climbs the cross-entropy, ours the gap. Where the logits are sharp, which eight times
    these are, both have the same direction. (On these themselves ours finds examples 4 % nearer.)
    """
    foolbox = pytest.importorskip("foolbox")
    import foolbox.attacks as theirs

    model, x, y = trained
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
def test_where_foolboxs_ddn_takes_another_direction_ours_is_no_farther(trained):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = trained
    network = foolbox.models.TensorFlowModel(lambda x: model.logits(x), bounds=(0, 1), device="/CPU:0")
    theirs = foolbox.attacks.DDNAttack(steps=100).run(network, tf.constant(x), tf.constant(y, tf.int64))
    assert np.median(l2(DDN(model.logits, SHAPE)(x, y), x)) <= 1.01 * np.median(l2(theirs.numpy(), x))


def test_pgd_without_random_start_is_cleverhans_to_the_last_digits(trained):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    model, x, y = trained
    eps = 0.01  # too little for an example, so that no image stops early
    attack = ProjectedGradientDescent(model.logits, SHAPE, eps_list=(eps,), restarts=1, steps=7, random_start=False)
    ours, found = attack._climb(x, x, y, eps, 7)
    assert not found.numpy().any()
    theirs = projected_gradient_descent(
        model.logits, x, eps, 0.1 * eps, 7, np.inf, lambda labels, logits: cw_loss(logits, labels), 0, 1, y
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_bim_in_one_ball_is_cleverhans_to_the_last_digits(trained):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    model, x, y = trained
    attack = BasicIterativeMethod(normalized(model.logits, "max"), SHAPE, steps=8)
    eps = 0.05
    ours, found = attack._try(x, y, np.full(N, eps, np.float32))
    assert not found.numpy().any()
    logits = normalized(model.logits, "max")
    theirs = projected_gradient_descent(logits, x, eps, eps / 6, 8, 2, None, 0, 1, y)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# PGD


def test_pgd_stays_in_its_ball_and_depends_on_the_seed_and_not_on_the_batch(trained):
    model, x, y = trained
    attack = ProjectedGradientDescent(model.logits, SHAPE, **PGD, seed=1)
    together = attack(x, y)
    broken = classes(model, together, N) != y
    assert broken.any() and np.abs(together - x).max() <= 0.2 + 1e-6
    np.testing.assert_array_equal(together[~broken], x[~broken])
    apart = np.concatenate(
        [
            attack(x[k : k + 8], y[k : k + 8], range(k, k + 8))
            for k in range(0, N, 8)
        ]
    )  # fmt: skip
    np.testing.assert_allclose(apart, together, atol=1e-6)
    other = ProjectedGradientDescent(model.logits, SHAPE, **PGD, seed=2)(x, y)
    assert np.abs(other - together).max() > 1e-3


# Carlini-Wagner's options


def test_cw_reaches_the_class_it_is_aimed_at(trained, found):
    model, x, y = trained
    goal = (y + 1) % 10
    aimed = CarliniWagnerL2(model.logits, SHAPE, **CW | {"iterations": 500, "initial_const": 1.0}, targeted=True)(
        x, goal
    )
    assert (classes(model, aimed, N) == goal).all()
    # To one class it is farther than to the nearest of all.
    assert np.median(l2(aimed, x)) > np.median(l2(found("cw"), x))


def test_cw_that_finds_nothing_returns_the_image_itself(trained):
    model, x, y = trained
    aimed = CarliniWagnerL2(model.logits, SHAPE, 1, iterations=5, initial_const=1e-6, targeted=True)
    np.testing.assert_array_equal(aimed(x, (y + 1) % 10), x)


def test_cw_examples_are_wrong_by_the_confidence(trained):
    model, x, y = trained
    found = CarliniWagnerL2(model.logits, SHAPE, **CW | {"iterations": 500, "initial_const": 1.0}, confidence=2.0)(
        x, y
    )
    z = model.logits(found).numpy()
    assert (z.max(axis=1) - z[np.arange(N), y] > 2).all()


def test_giving_up_early_costs_work_less_and_distance_hardly(trained):
    model, x, y = trained
    medians, work = {}, {}
    for rule in ("none", "image", "batch"):
        attack = CarliniWagnerL2(model.logits, SHAPE, 6, iterations=200, initial_const=1e-2, abort_early=rule)
        adam, sizes = attack._adam, []
        attack._adam = lambda n, x, *rest, adam=adam, sizes=sizes: (sizes.append((n, len(x))), adam(n, x, *rest))[1]
        medians[rule] = np.median(l2(attack(x, y), x))
        work[rule] = sum(n * size for n, size in sizes)
        if rule == "image":
            assert sizes[-1][1] < N  # images that are done left the batch
        else:
            assert {size for _, size in sizes} == {N}  # all together
    assert work["none"] == 6 * 200 * N and work["image"] < work["none"]
    assert medians["image"] <= 1.01 * medians["none"] and medians["batch"] <= 1.02 * medians["none"]


@pytest.mark.parametrize(
    ("attack_class", "options", "graph"),
    [
        (CarliniWagnerL2, {"binary_search_steps": 1, "iterations": 3}, "_adam"),
        (ProjectedGradientDescent, {"eps_list": (0.1,), "restarts": 1, "steps": 3}, "_climb"),
        (BasicIterativeMethod, {"search_steps": 1, "steps": 3}, "_try"),
        (DeepFool, {"steps": 12}, "_run"),
        (DDN, {"steps": 30}, "_run"),
        (FMN, {"steps": 30}, "_run"),
    ],
)
def test_no_attack_is_traced_twice_for_batches_of_different_sizes(attack_class, options, graph):
    logits, x, y, _ = linear_classifier(5)
    attack = attack_class(logits, SHAPE, **options)
    for n in (3, 5, 8):
        attack(x[:n], y[:n])
    assert getattr(attack, graph).experimental_get_tracing_count() == 1


@pytest.mark.parametrize("attack_class", [DDN, FMN, DeepFool])
def test_an_attack_looks_up_every_few_steps_and_can_be_stopped_there(attack_class):
    logits, x, y, _ = linear_classifier(5)
    parts = []

    def update(part):
        parts.append(part)
        if part >= 0.5:
            raise KeyboardInterrupt

    frozen = attack_class(lambda x: logits(x) * 0.0 + 1.0, SHAPE, steps=100)  # it never finds anything
    with pytest.raises(KeyboardInterrupt):
        frozen(x, y, update=update)
    assert len(parts) >= 2 and parts == sorted(parts) and parts[-1] == 0.5


def test_in_pieces_an_attack_takes_the_same_path(monkeypatch):
    logits, x, y, _ = linear_classifier(5)
    for attack_class in (DDN, FMN):
        whole = attack_class(logits, SHAPE, steps=25)(x, y)
        monkeypatch.setattr(attack_class, "PIECE", 7)
        np.testing.assert_array_equal(attack_class(logits, SHAPE, steps=25)(x, y), whole)


logging.getLogger("foolbox").setLevel(logging.ERROR)
