"""Spectra, sharpness and planes around a network: against dense matrices, closed forms and plain evaluation."""

import math

import numpy as np
import pytest
import tensorflow as tf
from builders import soak
from flatness_test import TORCH, arrays, dense_hessian, digits, names, network
from scipy import integrate

import results
from core import Core
from engine.context import Context
from flatness import curvature, hessian, plane, sharpness
from flatness.hessian import Hessian, LogLoss
from flatness.span import Examples, FastSpan, PlainSpan
from models import margins
from models.network import Network
from storage import workdir
from support.errors import Stopped, UserError


@pytest.fixture(scope="module")
def small():
    """(examples, x [30, 4], labels, dense Hessian of the loss in its frame) of an MLP 4-5-4."""
    rng = np.random.default_rng(0)
    model = Network([["F", 5], ["F", 4, {"act": False}]], (2, 2, 1), "ALL", init=TORCH)
    x, y = rng.integers(0, 256, (30, 2, 2, 1)).astype(np.uint8), rng.integers(0, 4, 30).astype(np.int32)
    examples = Examples(model, x, y)
    pixels = x.reshape(30, 4) / 255
    dense = dense_hessian([w.numpy() for w in model.weights], pixels, y)
    return examples, pixels, y, dense * np.exp(-curvature.Hessian(examples).log_frame)


def columns_of(operator):
    return np.stack([operator.matvec(e) for e in np.eye(operator.shape[0])])


# Parts of the Hessian


@pytest.mark.parametrize("layer, own", [(0, slice(0, 25)), (1, slice(25, 49))])
def test_a_layers_block_is_that_of_the_dense_hessian(small, layer, own):
    examples, _, _, dense = small
    found = columns_of(Hessian(examples, layer=layer))
    np.testing.assert_allclose(found, dense[own, own], atol=1e-6 * np.abs(dense).max())


def test_the_gauss_newton_part_is_jacobian_loss_hessian_jacobian(small):
    examples, x, _, dense = small
    weights = [w.numpy().astype(np.float64) for w in examples.model.weights]
    ends = np.cumsum([w.size for w in weights])[:-1]
    flat = np.concatenate([w.ravel() for w in weights])

    def logits(flat):
        W, b, V, c = (p.reshape(w.shape) for p, w in zip(np.split(flat, ends), weights, strict=True))
        return np.maximum(x @ W + b, 0) @ V + c

    eps = 1e-6
    J = np.stack([(logits(flat + eps * e) - logits(flat - eps * e)) / (2 * eps) for e in np.eye(len(flat))], -1)
    z = logits(flat)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    exact = sum(J[i].T @ (np.diag(p[i]) - np.outer(p[i], p[i])) @ J[i] for i in range(len(x))) / len(x)
    operator = Hessian(examples, gauss_newton=True)
    exact = exact * np.exp(-operator.log_frame)
    np.testing.assert_allclose(columns_of(operator), exact, atol=1e-5 * np.abs(dense).max())
    assert np.abs(exact - dense).max() > 0.01 * np.abs(dense).max()  # the rest is there


def test_of_a_linear_network_the_gauss_newton_part_is_the_hessian_also_at_1e_minus_434():
    model = Network([["F", 2, {"act": False}]], (1, 1, 1), "NONE")
    model.set_weights([np.array([[-500.0, 500.0]], np.float32)])
    examples = Examples(model, np.full((3, 1, 1, 1), 255, np.uint8), np.ones(3, np.int32))
    operator = Hessian(examples, gauss_newton=True)
    assert operator.log_frame == pytest.approx(-1000)
    np.testing.assert_allclose(columns_of(operator), [[1, -1], [-1, 1]], rtol=1e-5)


# The density of the spectrum


def test_with_as_many_steps_as_weights_the_quadrature_has_every_eigenvalue(small):
    examples, _, _, dense = small
    exact, vectors = np.linalg.eigh((dense + dense.T) / 2)
    values, weights = curvature.quadrature(Hessian(examples), len(dense), np.random.default_rng(3))
    v = np.random.default_rng(3).standard_normal(len(dense))
    parts = (vectors.T @ v / np.linalg.norm(v)) ** 2
    large = np.abs(exact) > 1e-3 * exact.max()
    for value, part in zip(exact[large], parts[large], strict=True):
        near = np.abs(values - value) < 1e-4 * exact.max()
        assert near.any() and weights[near].sum() == pytest.approx(part, abs=1e-3)
    assert weights.sum() == pytest.approx(1)


def test_a_few_steps_integrate_polynomials_of_the_spectrum_exactly(small):
    examples, _, _, dense = small
    values, weights = curvature.quadrature(Hessian(examples), 5, np.random.default_rng(1))
    v = np.random.default_rng(1).standard_normal(len(dense))
    v /= np.linalg.norm(v)
    for degree in range(10):  # up to 2 steps - 1
        exact = v @ np.linalg.matrix_power(dense, degree) @ v
        assert weights @ values**degree == pytest.approx(exact, rel=1e-4)


def test_the_spectrums_trace_agrees_with_the_dense_one_and_with_hutchinsons(small):
    examples, _, _, dense = small
    hessian = Hessian(examples)
    probes = []
    for k in range(60):
        values, weights = curvature.quadrature(hessian, 10, np.random.default_rng(k))
        probes.append({"parameters": len(dense), "values": values.tolist(), "weights": weights.tolist()})
    found = curvature.spectrum(probes)
    mean, error = curvature.trace(hessian, 60, np.random.default_rng(0))
    assert abs(found["trace"] - np.trace(dense)) < 4 * found["trace_error"]
    assert abs(found["trace"] - mean) < 4 * math.hypot(error, found["trace_error"])
    assert found["weights"].sum() == pytest.approx(1)


# The log of the loss


def test_log_losses_and_their_gradient_are_float64s_in_blocks_of_any_size(small, monkeypatch):
    examples, x, y, _ = small
    monkeypatch.setattr(hessian, "BLOCK_FLOATS", 1)  # blocks of 32: a whole set; below, of 7
    found, gradient = LogLoss(examples).value_and_gradient()
    loss = LogLoss(examples)
    loss.blocks = examples.blocks(7)
    value, in_blocks = loss.value_and_gradient()
    weights = [w.numpy().astype(np.float64) for w in examples.model.weights]

    def log_loss(flat):
        ends = np.cumsum([w.size for w in weights])[:-1]
        W, b, V, c = (p.reshape(w.shape) for p, w in zip(np.split(flat, ends), weights, strict=True))
        z = np.maximum(x @ W + b, 0) @ V + c
        return np.log(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))

    flat = np.concatenate([w.ravel() for w in weights])
    exact = [(log_loss(flat + 1e-6 * e) - log_loss(flat - 1e-6 * e)) / 2e-6 for e in np.eye(len(flat))]
    assert found == pytest.approx(log_loss(flat), rel=1e-6) and value == pytest.approx(found, rel=1e-9)
    np.testing.assert_allclose(gradient, exact, atol=1e-6)
    np.testing.assert_allclose(in_blocks, exact, atol=1e-6)


# Sharpness


def linear(logit, pixels=(255, 128)):
    """A linear network of two classes and one image of two pixels, with the loss softplus(w . x) at w."""
    model = Network([["F", 2, {"act": False}]], (1, 2, 1), "NONE")
    x = np.array(pixels, np.float64) / 255
    w = logit * x / (x @ x) / 2
    model.set_weights([np.stack([w, -w], axis=1).astype(np.float32)])
    image = np.array(pixels, np.uint8).reshape(1, 1, 2, 1)
    return Examples(model, image, np.ones(1, np.int32)), x


def softplus_log(s):
    return float(margins.log_losses(np.array([s]))[0])


@pytest.mark.parametrize("logit", [-3.0, -2000.0])
@pytest.mark.parametrize("adaptive", ["norm", "layer", "element"])
def test_of_a_linear_classifier_the_worst_loss_in_a_ball_is_the_closed_form(logit, adaptive):
    """The logit w . d, d = (x, -x), rises by at most rho ||T d||; at a loss of 1e-868, too."""
    examples, x = linear(logit)
    d = np.stack([x, -x], axis=1).ravel()
    ball = sharpness.Ball(examples, adaptive)
    T = {"norm": np.linalg.norm(ball.w), "layer": np.linalg.norm(ball.w), "element": np.abs(ball.w)}[adaptive]
    for rho in (0.01, 0.3, 1.7):
        found = ball.worst(rho, 30)
        exact = softplus_log(logit + rho * np.linalg.norm(T * d))
        assert found == pytest.approx(exact, rel=2e-3) and found <= exact * (1 + np.sign(exact) * 1e-5) + 1e-5


def test_the_average_loss_is_the_gaussian_integral_within_its_error():
    examples, x = linear(-3.0)
    d = np.stack([x, -x], axis=1).ravel()
    ball = sharpness.Ball(examples, "norm")
    rho = 0.5
    sd = rho / math.sqrt(4) * np.linalg.norm(ball.w) * np.linalg.norm(d)

    def integrand(t):
        return np.logaddexp(0, -3 + sd * t) * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    exact = integrate.quad(integrand, -10, 10)[0]
    part = {"rho": rho, "worst": 0.0, "losses": ball.average(rho, [0], 400).tolist()}
    found = sharpness.summary([part])
    error = math.exp(found["average"][0]) * found["average_error"][0]
    assert abs(math.exp(found["average"][0]) - exact) < 4 * error and error < 0.1 * exact


def test_a_small_networks_worst_loss_is_that_of_many_random_points_or_larger(small):
    examples, *_ = small
    ball = sharpness.Ball(examples, "norm")
    found = ball.worst(0.2, 40)
    rng = np.random.default_rng(0)
    points = rng.standard_normal((300, len(ball.w)))
    best = max(ball.value(0.2 * u / np.linalg.norm(u)) for u in points)
    # The best of a second order: along the gradient and the top eigenvector, on the sphere.
    assert found > best and found > ball.log_loss
    ball.go_to(0.0)
    assert LogLoss(examples).value() == pytest.approx(ball.log_loss, rel=1e-6)


def test_rescaled_layers_that_leave_the_network_as_it_is_leave_the_adaptive_sharpness():
    def worst(factor, adaptive):
        model = Network([["F", 8], ["F", 10, {"act": False}]], (8, 8, 1), "NONE", scale=1 / 16)
        first, second = arrays(model)
        model.set_weights([first * factor, second / factor])
        return sharpness.Ball(Examples(model, *digits(100)), adaptive).worst(0.1, 10)

    for adaptive in ("layer", "element"):
        assert worst(8, adaptive) == pytest.approx(worst(1, adaptive), rel=1e-4)
    assert abs(worst(8, "norm") - worst(1, "norm")) > 0.01


def test_the_layers_own_scales_are_their_norms_with_their_biases():
    model = network("batch norm", steps=1)
    T = sharpness.scales(model, "layer")
    at = 0
    for layer in model.layers:
        own = [v for v in model.weights if any(v is w for w in layer.trainable_variables)]
        size = math.sqrt(sum(float(tf.reduce_sum(v**2)) for v in own))
        n = sum(int(tf.size(v)) for v in own)
        np.testing.assert_allclose(T[at : at + n], size, rtol=1e-5)
        at += n
    assert at == len(T)


def test_a_larger_ball_never_has_a_smaller_worst_loss():
    parts = [{"rho": r, "worst": w, "losses": [0.0, 0.0]} for r, w in ((0.2, -5.0), (0.1, -3.0), (0.4, -4.0))]
    assert sharpness.summary(parts)["worst"] == [-3.0, -3.0, -3.0]


# Planes


def test_a_random_plane_has_the_filters_norms_and_leaves_biases_and_batch_norm():
    model = network("batch norm", steps=1)
    weights = arrays(model)
    found = plane.filter_normalized(np.random.default_rng(0), names(model), weights)
    for name, weight, part in zip(names(model), weights, found, strict=True):
        if not name.endswith("/weight"):
            assert part is None
            continue
        flat, of = part.reshape(-1, part.shape[-1]), weight.reshape(-1, weight.shape[-1])
        np.testing.assert_allclose(np.linalg.norm(flat, axis=0), np.linalg.norm(of, axis=0), rtol=1e-5)


def test_a_path_in_a_plane_is_found_with_its_distances_and_all_of_its_variance():
    rng = np.random.default_rng(0)
    shapes = [(5, 4), (4,), (4, 3)]
    center, first, second = ([rng.standard_normal(s) for s in shapes] for _ in range(3))
    at = rng.standard_normal((6, 2)) * (3, 1)
    epochs = [[c + a * f + b * s for c, f, s in zip(center, first, second, strict=True)] for a, b in at]
    found = plane.principal(center, epochs)
    assert found.explained.sum() == pytest.approx(1) and found.explained[0] > found.explained[1]
    flat = [np.concatenate([np.ravel(t) for t in tensors]) for tensors in (center, *epochs, *found.directions)]
    np.testing.assert_allclose(np.stack(flat[-2:]) @ np.stack(flat[-2:]).T, np.eye(2), atol=1e-9)
    for (a, b), epoch in zip(found.coordinates, flat[1:-2], strict=True):
        np.testing.assert_allclose(flat[0] + a * flat[-2] + b * flat[-1], epoch, atol=1e-8)


def test_of_a_path_that_leaves_the_plane_the_explained_parts_are_those_of_the_singular_values():
    rng = np.random.default_rng(1)
    center = [np.zeros((7, 3))]
    epochs = [[rng.standard_normal((7, 3))] for _ in range(5)]
    values = np.linalg.svd(np.stack([e[0].ravel() for e in epochs]), compute_uv=False) ** 2
    np.testing.assert_allclose(plane.principal(center, epochs).explained, values[:2] / values.sum())


@pytest.mark.parametrize("name", ["mlp", "cnn", "batch norm"])
def test_the_fast_span_gives_the_logs_of_the_plain_losses_in_a_plane(name):
    model = network(name)
    weights = arrays(model)
    rngs = (np.random.default_rng(k) for k in range(2))
    basis = [weights, *(plane.filter_normalized(rng, names(model), weights) for rng in rngs)]
    examples = Examples(model, *digits(200))
    at = np.array([[1.0, a, b] for a in (-0.5, 0, 0.3) for b in (-0.2, 0, 0.7)])
    plain = PlainSpan(examples, basis, log=True).losses(at)
    np.testing.assert_allclose(FastSpan(examples, basis, keep=3, log=True).losses(at), plain, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(plain, np.log(PlainSpan(examples, basis).losses(at)), rtol=1e-5, atol=1e-6)


def test_a_plane_through_a_network_with_a_loss_of_1e_minus_868_has_heights():
    examples, _ = linear(-2000.0)
    weights = arrays(examples.model)
    basis = [weights, weights]
    for span in (PlainSpan(examples, basis, log=True), FastSpan(examples, basis, log=True)):
        np.testing.assert_allclose(span.losses(np.array([[1.0, 0.0], [1.0, -0.5]])), [-2000, -1000], rtol=1e-5)


def test_long_paths_are_thinned_evenly_to_what_memory_holds():
    assert plane.thinned([1, 2, 5], 10) == [1, 2, 5]
    found = plane.thinned(list(range(1, 101)), plane.PATH_BYTES // 10)
    assert found[0] == 1 and found[-1] == 100 and len(found) == 10


# The tasks


@pytest.fixture(autouse=True)
def few_looks(monkeypatch):
    """Sharpness of a few steps and probes."""
    monkeypatch.setattr(sharpness, "ASCENT_STEPS", 4)
    monkeypatch.setattr(sharpness, "PROBES", 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 6 epochs of a small network on 200 digits, with every second epoch stored."""
    script = {
        "dataset": "digits", "train_N": 200, "B": 50, "E": 6, "lr": 0.1, "gpu": -1, "archive": 2, "threads": 1,
        "model": {"description": [["F", 12], ["F", 10, {"act": False}]]}, "figures": False,
        "logs_dir": str(tmp_path_factory.mktemp("logs")),
    }  # fmt: skip
    return Core(script, "run").run()


TASKS = {
    "measure_sharpness": {"rho": (0.01, 0.1), "eid": [2, 6]},
    "measure_curvature": {"density": True, "density_probes": 2, "density_steps": 5, "layer": "all", "eigenvalues": 2,
                          "probes": 2, "eid": "last"},
    "make_surface": {"plane": "pca", "grid": 5, "eid": "last"},
}  # fmt: skip


def measure(run, task, stop=lambda fraction: None, **more):
    flags = {"task": task, "load_dir": str(run), "gpu": -1, "figures": False} | TASKS[task] | more
    return Core(flags, task, stop).run()


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=soak) if task == "measure_curvature" else task for task in TASKS]
)
def test_stopped_and_resumed_a_measurement_leaves_the_same_results(run, task, monkeypatch):
    whole = results.load(measure(run, task))["raw"]
    units = []

    def stopping(self, entry, append=workdir.WorkDir.append):
        append(self, entry)
        units.append(entry)
        if len(units) == 3:
            raise Stopped(2)

    with monkeypatch.context() as patched:
        patched.setattr(workdir.WorkDir, "append", stopping)
        with pytest.raises(Stopped):
            measure(run, task)
    path = max((run / task).glob("2*"))
    assert len((path / "journal.jsonl").read_text().splitlines()) == 3
    again = results.load(measure(run, task, resume=str(path)))["raw"]
    np.testing.assert_equal(again, whole)


def test_the_surface_of_a_run_is_its_loss_at_the_network_and_its_path_ends_there(run):
    found = results.load(measure(run, "make_surface"))["raw"]
    logs = results.load(run)["raw"]
    at = np.abs(found["y"]).argmin(), np.abs(found["x"]).argmin()
    assert found["x"][at[1]] == 0 == found["y"][at[0]]
    assert found["log_loss"][at] == pytest.approx(logs[6]["stats"]["log_loss"], rel=1e-4)
    assert found["path_eids"] == [2, 4] and found["explained"].sum() == pytest.approx(1)


def test_the_sharpness_of_a_run_begins_at_its_loss(run):
    found = results.load(measure(run, "measure_sharpness"))["raw"]
    logs = results.load(run)["raw"]
    for eid in (2, 6):
        network = found[f"epoch {eid}"]
        assert network["log_loss"] == pytest.approx(logs[eid]["stats"]["log_loss"], rel=1e-5)
        for kind in ("norm", "layer"):
            assert (
                network["log_loss"] < network["sharpness"][kind]["worst"][0] < network["sharpness"][kind]["worst"][1]
            )


def test_user_errors_are_one_line(run):
    with pytest.raises(UserError, match="a surface goes through one network; here are 2"):
        measure(run, "make_surface", eid=[2, 4])
    with pytest.raises(UserError, match=r"needs two stored epochs before 2; .* has 0"):
        measure(run, "make_surface", eid=[2])
    with pytest.raises(UserError, match="--layer 5: the network's layers with weights are 0 to 1"):
        measure(run, "measure_curvature", layer=(5,))
    with pytest.raises(UserError, match="--layer 0: needs --density"):
        Context({"task": "measure_curvature", "layer": 0})
