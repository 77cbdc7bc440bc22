"""The attacks: analytic distances, independence of the logits' scale, and what each promises."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from builders import CW, L2_ATTACKS, PGD, SHAPE, N, classes, l2, lengths, linear_classifier

from attacks import certificate
from attacks.apgd import AutoPGD
from attacks.base import normalized
from attacks.best import CrossEntropyDDN, Nearest
from attacks.bim import BasicIterativeMethod
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.fmn import FMN, FMNL1, FMNLinf
from attacks.l2_attack import CarliniWagnerL2
from attacks.linf_attack import ProjectedGradientDescent
from models import margins

SCALE_FREE = L2_ATTACKS | {
    "cw": lambda logits: CarliniWagnerL2(normalized(logits, "sum"), SHAPE, **CW | {"initial_const": 10.0}),
    "pgd": lambda logits: ProjectedGradientDescent(logits, SHAPE, **PGD),
    "apgd": lambda logits: AutoPGD(logits, SHAPE, PGD["eps_list"], steps=20),
    "fmn-l1": lambda logits: FMNL1(logits, SHAPE),
    "fmn-linf": lambda logits: FMNLinf(logits, SHAPE),
}


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
def test_every_example_is_an_image_and_misclassified_in_batches_of_any_size(small_network, found_examples, name):
    model, _, y = small_network
    adversarial = found_examples(name)
    assert adversarial.dtype == np.float32 and adversarial.min() >= 0 and adversarial.max() <= 1
    for batch in (1, 7, N):
        assert (classes(model, adversarial, batch) != y).all()


@pytest.mark.parametrize("name", L2_ATTACKS)
def test_the_certificate_is_below_every_distance(small_network, found_examples, name):
    model, x, y = small_network
    bound = certificate.lipschitz(model.specs, model.effective_weights(), "relu")
    radius = certificate.certified(model.logits(x).numpy(), y, *bound)
    assert (radius > 0).all()
    assert (radius < l2(found_examples(name), x)).all()


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


@pytest.fixture
def weights_times(small_network):
    """A function that sets the network's weights to so many times what they are."""
    model, _, _ = small_network
    weights = [array for _, array in model.get_weights()]
    yield lambda factor: model.set_weights([w * np.float32(factor) for w in weights])
    model.set_weights(weights)


def factor_for_gaps(model, x, y, gap):
    """The power of two times which the weights make every gap at least so large, in a homogeneous network."""
    margin = margins.margins(margins.gaps(model.logits(x).numpy(), y)).min()
    return 2.0 ** np.ceil(np.log2(gap / margin) / len(model.layers))


@pytest.mark.parametrize("name", SCALE_FREE)
def test_a_loss_of_1e_minus_800_and_halved_weights_change_no_distance(small_network, weights_times, name):
    model, x, y = small_network
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
def test_gradients_neither_vanish_nor_overflow_at_logits_near_the_ends_of_float32(small_network, name):
    model, x, y = small_network
    scale = tf.Variable(1.0)
    attack = SCALE_FREE[name](lambda x: scale * model.logits(x))
    distance = l2(attack(x, y), x)
    for exponent in (-60, 60):
        scale.assign(2.0**exponent)
        np.testing.assert_allclose(l2(attack(x, y), x), distance, rtol=1e-4, err_msg=f"2**{exponent}")


def test_as_long_as_an_image_is_not_fooled_pgds_steps_are_the_same_at_any_scale(small_network):
    """-relu(z_y - max z_j + 50) is flat only where the image is wrong by 50 logits, and PGD stops before."""
    model, x, y = small_network
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


def test_cw_on_raw_logits_of_1e4_finds_what_it_finds_at_1(small_network, weights_times):
    """Its constant weighs logits against the distance, so it is the search for it that bridges the scale."""
    model, x, y = small_network
    attack = CarliniWagnerL2(model.logits, SHAPE, **CW | {"binary_search_steps": 9, "initial_const": 1e-3})
    distance = l2(attack(x, y), x)
    factor = factor_for_gaps(model, x, y, 800 * np.log(10))
    for part in (1, 0.5):
        weights_times(part * factor)
        scaled = attack(x, y)
        assert (classes(model, scaled, N) != y).all()
        np.testing.assert_allclose(np.median(l2(scaled, x)), np.median(distance), rtol=0.05)


def test_pgd_stays_in_its_ball_and_depends_on_the_seed_and_not_on_the_batch(small_network):
    model, x, y = small_network
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


def test_cw_reaches_the_class_it_is_aimed_at(small_network, found_examples):
    model, x, y = small_network
    goal = (y + 1) % 10
    aimed = CarliniWagnerL2(model.logits, SHAPE, **CW | {"iterations": 500, "initial_const": 1.0}, targeted=True)(
        x, goal
    )
    assert (classes(model, aimed, N) == goal).all()
    # To one class it is farther than to the nearest of all.
    assert np.median(l2(aimed, x)) > np.median(l2(found_examples("cw"), x))


def test_cw_that_finds_nothing_returns_the_image_itself(small_network):
    model, x, y = small_network
    aimed = CarliniWagnerL2(model.logits, SHAPE, 1, iterations=5, initial_const=1e-6, targeted=True)
    np.testing.assert_array_equal(aimed(x, (y + 1) % 10), x)


def test_cw_examples_are_wrong_by_the_confidence(small_network):
    model, x, y = small_network
    found = CarliniWagnerL2(model.logits, SHAPE, **CW | {"iterations": 500, "initial_const": 1.0}, confidence=2.0)(
        x, y
    )
    z = model.logits(found).numpy()
    assert (z.max(axis=1) - z[np.arange(N), y] > 2).all()


def test_giving_up_early_costs_work_less_and_distance_hardly(small_network):
    model, x, y = small_network
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


@pytest.mark.parametrize("targeted", [False, True])
def test_the_best_of_three_is_the_nearest_of_each_for_every_image(small_network, targeted):
    model, x, y = small_network
    goal = (y + 1) % 10 if targeted else y
    kinds = (DDN, CrossEntropyDDN, FMN)
    alone = np.array([l2(kind(model.logits, SHAPE, 30, targeted=targeted)(x, goal), x) for kind in kinds])
    together = l2(Nearest(model.logits, SHAPE, 30, targeted=targeted)(x, goal), x)
    np.testing.assert_array_equal(together, np.where(alone > 0, alone, np.inf).min(axis=0))
    assert len({int(k) for k in alone.argmin(axis=0)}) > 1  # no attack is the nearest everywhere


def test_ddn_along_the_cross_entropy_follows_its_gradient_also_where_it_underflows(small_network):
    model, x, y = small_network
    attack = CrossEntropyDDN(model.logits, SHAPE)
    x, y = tf.constant(x), tf.constant(y)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model.logits(x))
    exact = tf.reshape(tape.gradient(loss, x), [len(y), -1]).numpy().astype(np.float64)
    ours = tf.reshape(attack.gap_and_gradient(x, y)[1], [len(y), -1]).numpy().astype(np.float64)
    kept = np.linalg.norm(exact, axis=1) > 1e-4
    unit = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in (exact[kept], ours[kept])]
    assert kept.sum() > 10 and ((unit[0] * unit[1]).sum(axis=1) > 1 - 1e-4).all()
    steep = CrossEntropyDDN(lambda images: 1000 * model.logits(images), SHAPE)
    assert (np.abs(steep.gap_and_gradient(x, y)[1].numpy()).max(axis=(1, 2, 3)) > 0).all()
