"""The attacks by themselves: against analytic distances, other libraries, and their own promises."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

import core
import flags
from attacks import certificate
from attacks.base import normalized
from attacks.bim import BasicIterativeMethod
from attacks.ddn import DDN
from attacks.deepfool import DeepFool
from attacks.fmn import FMN
from attacks.l2_attack import CarliniWagnerL2
from attacks.linf_attack import ProjectedGradientDescent, cw_loss
from models.architectures import parse

N = 24
SHAPE = (8, 8, 1)
CW = {"iterations": 200, "binary_search_steps": 6, "initial_const": 0.1}
L2_ATTACKS = {
    "cw": lambda logits: CarliniWagnerL2(logits, SHAPE, **CW),
    "ddn": lambda logits: DDN(logits, SHAPE, steps=200),
    "fmn": lambda logits: FMN(logits, SHAPE, steps=200),
    "deepfool": lambda logits: DeepFool(logits, SHAPE),
    "bim": lambda logits: BasicIterativeMethod(normalized(logits, "max"), SHAPE),
}
PGD = {"eps_list": (0.05, 0.1, 0.2), "restarts": 2, "steps": 20}


@pytest.fixture(scope="module")
def trained():
    """A tiny CNN after 15 epochs of digits, and N images that it classifies right: (model, x, y)."""
    run = core.Core(
        flags.complete(
            {
                "dataset": "digits",
                "train_N": 500,
                "B": 50,
                "gpu": -1,
                "lr": 0.1,
                "model": {"description": TINY, "init": {"weight": "he_normal"}},
            }
        )
    )
    progress = core.Progress(run)
    for _ in range(15):
        progress.accept(run.epoch(progress))
    (x, y), _ = run.dataset
    x = run.model.pixels(x).numpy()
    right = np.flatnonzero(run.model.logits(x).numpy().argmax(1) == y)[:N]
    return run.model, x[right], y[right]


def l2(a, b):
    return np.sqrt(((a.astype(np.float64) - b) ** 2).sum(axis=(1, 2, 3)))


def classes(model, x, batch):
    return np.concatenate([model.logits(x[k : k + batch]).numpy().argmax(1) for k in range(0, len(x), batch)])


@pytest.mark.parametrize("name", L2_ATTACKS)
def test_on_a_linear_classifier_the_distance_is_the_analytic_one(name):
    rng = np.random.default_rng(0)
    n = 2 if name == "bim" else 5  # BIM climbs the cross-entropy, which heeds all classes
    w = rng.choice([-1, 1], (64, n)).astype(np.float32) / 8
    y = np.arange(16, dtype=np.int32) % n
    # An image is grey with a trace of its class, so no pixel comes near 0 or 1 on the way out.
    x = 0.5 + 0.6 * w.T[y] + rng.uniform(-0.02, 0.02, (16, 64))
    x, b = x.reshape(16, *SHAPE).astype(np.float32), np.linspace(-0.01, 0.01, n, dtype=np.float32)
    z = x.reshape(16, -1) @ w + b - w.sum(axis=0) / 2
    b -= w.sum(axis=0) / 2
    assert (z.argmax(axis=1) == y).all()
    attack = L2_ATTACKS[name] if name != "bim" else lambda logits: BasicIterativeMethod(logits, SHAPE)
    gaps, norms = z.max(axis=1)[:, None] - z, np.linalg.norm(w.T[y][:, None] - w.T[None], axis=2)
    with np.errstate(invalid="ignore"):
        exact = np.nanmin(np.where(norms > 0, gaps / norms, np.nan), axis=1)
    found = attack(lambda x: tf.reshape(x, [-1, 64]) @ w + b)(x, y)
    assert (((found.reshape(16, -1) @ w) + b).argmax(axis=1) != y).all()
    tolerance = 0.021 if name == "deepfool" else 0.01  # DeepFool overshoots by 2 % on purpose
    np.testing.assert_allclose(l2(found, x), exact, rtol=tolerance, atol=2e-4)
    assert (l2(found, x) >= exact * (1 - 1e-4)).all()


@pytest.mark.parametrize("name", L2_ATTACKS)
def test_every_example_is_an_image_and_misclassified_in_batches_of_any_size(trained, name):
    model, x, y = trained
    found = L2_ATTACKS[name](model.logits)(x, y)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    for batch in (1, 7, N):
        assert (classes(model, found, batch) != y).all()


@pytest.mark.parametrize("name", L2_ATTACKS)
def test_the_certificate_is_below_every_distance(trained, name):
    model, x, y = trained
    bound = certificate.lipschitz(model.specs, [layer.weight.numpy() for layer in model.layers], "relu")
    radius = certificate.certified(model.logits(x).numpy(), y, *bound)
    assert (radius > 0).all()
    assert (radius < l2(L2_ATTACKS[name](model.logits)(x, y), x)).all()


@pytest.mark.parametrize("name", ["ddn", "fmn", "deepfool", "bim"])
def test_the_scale_of_the_logits_does_not_matter(trained, name):
    model, x, y = trained
    distance = l2(L2_ATTACKS[name](model.logits)(x, y), x)
    top = np.abs(model.logits(x).numpy()).max()
    for scale in (2.0**-4, 2.0 ** np.ceil(np.log2(1e4 / top)), 2.0**-60, 2.0**60):
        scaled = L2_ATTACKS[name](lambda x, s=scale: s * model.logits(x))(x, y)
        np.testing.assert_allclose(l2(scaled, x), distance, rtol=1e-4, err_msg=f"scale {scale}")


def test_halved_weights_give_the_same_distances(trained):
    model, x, y = trained
    weights = [array for _, array in model.get_weights()]
    attack = DDN(model.logits, SHAPE)
    normalized_cw = CarliniWagnerL2(normalized(model.logits, "sum"), SHAPE, **CW | {"initial_const": 10.0})
    before = [l2(a(x, y), x) for a in (attack, normalized_cw)]
    try:
        model.set_weights([w / 2 for w in weights])
        after = [l2(a(x, y), x) for a in (attack, normalized_cw)]
    finally:
        model.set_weights(weights)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1], before[1], rtol=1e-3)


def test_cw_on_raw_logits_of_1e4_finds_what_it_finds_at_1(trained):
    model, x, y = trained
    search = CW | {"binary_search_steps": 9, "initial_const": 1e-3}
    distance = l2(CarliniWagnerL2(model.logits, SHAPE, **search)(x, y), x)
    scale = 1e4 / np.abs(model.logits(x).numpy()).max()
    scaled = CarliniWagnerL2(lambda x: scale * model.logits(x), SHAPE, **search)(x, y)
    assert (classes(model, scaled, N) != y).all()
    np.testing.assert_allclose(np.median(l2(scaled, x)), np.median(distance), rtol=0.05)


# Other libraries


def foolbox_distance(attack, model, x, y):
    foolbox = pytest.importorskip("foolbox")
    network = foolbox.models.TensorFlowModel(lambda x: model.logits(x), bounds=(0, 1), device="/CPU:0")
    # int64, because of a NumPy function, gone by now, that it calls on mixed integers
    found = attack(foolbox.attacks).run(network, tf.constant(x), tf.constant(y, tf.int64)).numpy()
    assert (classes(model, found, N) != y).mean() > 0.9
    return np.median(l2(found, x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda logits: CarliniWagnerL2(
                logits, SHAPE, 9, iterations=300, initial_const=0.1, abort_early="none"
            ),
            lambda fb: fb.L2CarliniWagnerAttack(9, steps=300, initial_const=0.1, abort_early=False),
        ),
        (lambda logits: DDN(logits, SHAPE), lambda fb: fb.DDNAttack(steps=100)),
        (lambda logits: DeepFool(logits, SHAPE), lambda fb: fb.L2DeepFoolAttack(steps=50)),
    ],
    ids=["cw", "ddn", "deepfool"],
)
def test_the_median_is_foolboxs(trained, ours, theirs):
    model, x, y = trained
    median = np.median(l2(ours(model.logits)(x, y), x))
    assert median == pytest.approx(foolbox_distance(theirs, model, x, y), rel=0.02)


def test_pgd_without_random_start_is_cleverhans_to_the_last_digits(trained):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    model, x, y = trained
    eps = 0.01  # too little for an example, so that no image stops early
    attack = ProjectedGradientDescent(
        model.logits, SHAPE, eps_list=(eps,), restarts=1, steps=7, random_start=False
    )
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


def test_cw_reaches_the_class_it_is_aimed_at(trained):
    model, x, y = trained
    goal = (y + 1) % 10
    found = CarliniWagnerL2(model.logits, SHAPE, **CW | {"iterations": 400}, targeted=True)(x, goal)
    reached = classes(model, found, N) == goal
    assert reached.mean() > 0.8
    np.testing.assert_array_equal(found[~reached], x[~reached])
    assert np.median(l2(found, x)[reached]) > np.median(
        l2(CarliniWagnerL2(model.logits, SHAPE, **CW)(x, y), x)
    )


def test_cw_examples_are_wrong_by_the_confidence(trained):
    model, x, y = trained
    found = CarliniWagnerL2(model.logits, SHAPE, **CW, confidence=2.0)(x, y)
    z = model.logits(found).numpy()
    assert (z.max(axis=1) - z[np.arange(N), y] > 2).all()


def test_giving_up_early_costs_work_less_and_distance_hardly(trained):
    model, x, y = trained
    medians, work = {}, {}
    for rule in ("none", "image", "batch"):
        attack = CarliniWagnerL2(model.logits, SHAPE, 6, iterations=300, initial_const=1e-3, abort_early=rule)
        adam, sizes = attack._adam, []
        attack._adam = lambda n, x, *rest, adam=adam, sizes=sizes: (
            sizes.append((n, len(x))),
            adam(n, x, *rest),
        )[1]
        medians[rule] = np.median(l2(attack(x, y), x))
        work[rule] = sum(n * size for n, size in sizes)
        if rule == "image":
            assert sizes[-1][1] < N  # images that are done left the batch
        else:
            assert {size for _, size in sizes} == {N}  # all together
    assert work["none"] == 6 * 300 * N and work["image"] < work["none"]
    assert medians["image"] <= 1.01 * medians["none"] and medians["batch"] <= 1.02 * medians["none"]


def test_no_attack_is_traced_twice_for_batches_of_different_sizes(trained):
    model, x, y = trained
    attack = DDN(model.logits, SHAPE, steps=3)
    for n in (3, 5, 8):
        attack(x[:n], y[:n])
    assert attack._run.experimental_get_tracing_count() == 1


# The certificate


def dense_norm(kernel, in_shape):
    """Largest singular value of a SAME convolution written out as a matrix."""
    n = int(np.prod(in_shape))
    basis = np.eye(n, dtype=np.float32).reshape(n, *in_shape)
    return np.linalg.norm(tf.nn.conv2d(basis, kernel, 1, "SAME").numpy().reshape(n, -1), 2)


@pytest.mark.parametrize(("size", "kernel"), [((8, 8, 3), (3, 3)), ((7, 5, 2), (5, 3)), ((2, 2, 4), (3, 3))])
def test_a_convolutions_norm_is_bounded_from_above_and_not_by_much(size, kernel):
    weight = np.random.default_rng(0).standard_normal((*kernel, size[2], 6)).astype(np.float32)
    exact, bound = dense_norm(weight, size), certificate.conv_norm(weight, size)
    assert exact * (1 - 1e-6) <= bound <= 1.6 * exact


def test_a_matrix_norm_is_its_largest_singular_value():
    for shape in ((7, 3), (3, 7)):
        weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert certificate.fc_norm(weight) == pytest.approx(np.linalg.norm(weight.astype(np.float64), 2))


def test_gaps_of_random_images_never_grow_faster_than_the_lipschitz_constant(trained):
    model, x, _ = trained
    bound, difference = certificate.lipschitz(model.specs, [a.weight.numpy() for a in model.layers], "relu")
    other = np.clip(x + np.random.default_rng(0).normal(0, 0.1, x.shape), 0, 1).astype(np.float32)
    change = (model.logits(other) - model.logits(x)).numpy()
    gaps = np.abs(change[:, :, None] - change[:, None, :])  # [N, C, C]
    assert (gaps <= bound * difference * l2(other, x)[:, None, None] * (1 + 1e-4) + 1e-4).all()


def test_relu2_has_no_lipschitz_constant_and_an_average_pool_halves_it():
    with_pool = parse([["A"], ["F", 10, {"act": False}]], "NONE", (4, 4, 1))
    weight = np.ones((4, 10), np.float32)
    assert certificate.lipschitz(with_pool, [weight], "relu")[0] == 0.5
    squared = parse([["F", 4], ["F", 10, {"act": False}]], "NONE", (4, 4, 1))
    bound, difference = certificate.lipschitz(squared, [np.ones((16, 4)), weight], "relu2")
    z = np.eye(10, dtype=np.float32)
    assert (certificate.certified(z, np.arange(10), bound, difference) == 0).all()


logging.getLogger("foolbox").setLevel(logging.ERROR)
