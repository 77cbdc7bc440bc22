"""What the compiled functions would do on a GPU, and the training turn as one program of XLA."""

import json
import re
import sys

import golden
import numpy as np
import pytest
import tensorflow as tf
from builders import TINY, soak

import results
from bench import gpu, gpu_placement
from core import Core
from models.network import Network, on_device
from support.files import ROOT


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("name", ["MNIST CNN", pytest.param("VGG-16 with batch norm", marks=soak), "MLP"])
def test_nothing_large_crosses_in_a_loop_and_nothing_but_shapes_falls_back(name, xla):
    attacks = not xla and name != "VGG-16 with batch norm"
    rows = gpu_placement.placed(name, xla, spans=name == "MNIST CNN" and not xla, attacks=attacks)
    assert {row["function"]: text for row in rows for text in gpu_placement.too_much(row)} == {}
    turn = next(row for row in rows if row["function"] == "training turn")
    assert (turn["once"]["programs"], turn["loop"]["ops"]) == (1, 0) if xla else turn["loop"]["ops"] > 30


@soak
def test_nothing_large_crosses_in_attacks_on_a_network_with_batch_norm():
    rows = gpu_placement.placed("VGG-16 with batch norm", False, spans=False, attacks=True)
    assert {row["function"]: text for row in rows for text in gpu_placement.too_much(row)} == {}


IMAGES = np.zeros((5000, 28, 28, 1), np.uint8)


def gathered_in_a_loop(images, labels):
    """The placement of a loop that gathers batches."""

    @tf.function
    def run(images, labels, batches):
        def body(i, total):
            x, y = tf.gather(images, batches[i]), tf.gather(labels, batches[i])
            return i + 1, total + tf.reduce_sum(tf.cast(x, tf.float32)) + tf.cast(tf.reduce_sum(y), tf.float32)

        return tf.while_loop(lambda i, _: i < 3, body, (0, 0.0))[1]

    graph = gpu_placement.Graph(run.get_concrete_function(images, labels, tf.zeros([3, 10], tf.int32)), 10)
    return graph.loop


def test_a_gather_of_bytes_from_a_tensor_falls_back_and_takes_the_whole_set_along():
    loop = gathered_in_a_loop(tf.constant(IMAGES), tf.zeros([5000], tf.int64))
    assert loop.largest == loop.to_host == IMAGES.size
    assert [op for op in loop.fallen if op.startswith("GatherV2")]


def test_int32_labels_cross_as_a_whole_and_what_on_device_makes_stays():
    images, labels = on_device(IMAGES, np.zeros(5000, np.int32))
    assert gathered_in_a_loop(images, tf.zeros([50_000], tf.int32)).largest == 4 * 50_000
    loop = gathered_in_a_loop(images, labels)
    assert loop.largest <= 40 and not loop.fallen  # the ten indices


def test_an_op_that_xla_does_not_know_is_detected():
    @tf.function(jit_compile=True)
    def inner(text):
        return tf.strings.length(text)

    concrete = tf.function(lambda: inner(tf.constant("a"))).get_concrete_function()
    assert "StringLength" in str(gpu_placement.Graph(concrete, 1).once.fallen)


@pytest.fixture(scope="module")
def networks():
    """The tiny network without XLA and with it."""
    return [Network(TINY, (8, 8, 1), init={"weight": "he_normal"}, xla=xla) for xla in (False, True)]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return on_device(rng.integers(0, 256, (120, 8, 8, 1), np.uint8), rng.integers(0, 10, 120))


@pytest.mark.parametrize("augment", [None, np.array([3, 1], np.int32)])
def test_a_compiled_turn_makes_the_same_steps_and_stops_at_the_same_batch(networks, data, augment):
    found = []
    for model in networks:
        model.set_weights(model.initial_weights(1))
        batches = np.arange(120, dtype=np.int32).reshape(6, 20)
        ok, losses = model.train_epoch(*data, batches, 0.01, 0.5, 600.0, augment)
        assert ok and len(losses) == 6
        bound = float(np.sort(losses)[-2])
        model.set_weights(model.initial_weights(1))
        stopped, few = model.train_epoch(*data, batches, 0.01, 0.5, bound, augment)
        found.append((losses, stopped, few, [w.numpy() for w in model.weights]))
    (plain, *_), (compiled, *_) = found
    np.testing.assert_allclose(compiled, plain, rtol=1e-6)
    assert found[0][1] == found[1][1] and len(found[0][2]) == len(found[1][2])
    for a, b in zip(found[0][3], found[1][3], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


def test_the_compiled_turn_is_one_loop_of_fusions_that_calls_nobody_on_the_host(networks):
    hlo = gpu_placement.compiled_turn(networks[1], (8, 8, 1), 20)
    assert len(re.findall(r" while\(", hlo)) >= 1
    kernels = gpu_placement.kernels_of(hlo)
    assert kernels["fusion"] > 5 and kernels["dot"] + kernels.get("convolution", 0) >= 5
    assert not {"infeed", "outfeed", "send", "recv"} & set(kernels)
    assert "callback" not in hlo.lower()


@soak
@pytest.mark.parametrize("name", gpu.TRAJECTORIES)
def test_a_reference_trajectory_begins_within_its_tolerance_with_xla(name):
    path = ROOT / "tests" / "golden" / f"{name}.json"
    file = json.loads(path.read_text())
    file["flags"]["xla"], file["attempts"] = True, file["attempts"][:4]
    assert golden.compare(file, golden.tolerances(file))


def test_auto_compiles_nothing_on_a_cpu_and_a_resumed_run_keeps_its_choice(tiny_flags):
    assert not Core(tiny_flags | {"E": 1}).context.compute.xla
    path = Core(tiny_flags | {"E": 1, "xla": True}).run()
    assert results.read_about(path)["xla"] is True
    assert Core(tiny_flags | {"resume": str(path)}).context.compute.xla


@soak
def test_the_bench_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_placement, "NETWORKS", {"MLP": gpu_placement.NETWORKS["MLP"]})
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "j")])
    gpu_placement.main()
    assert "training turn" in capsys.readouterr().out
    assert {"once", "loop", "results"} <= set(json.loads((tmp_path / "j").read_text())[0])


@soak
def test_the_bench_for_a_gpu_runs_to_its_end_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--small", "--json", str(tmp_path / "j")])
    gpu.main()
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert len(table) > 10 and all(len(row) == 3 for row in table if row[0].startswith("| "))
    said = {row[0]: row[1] for row in json.loads((tmp_path / "j").read_text())}
    assert said["device"].startswith("CPU") and "within tolerance" in said.values()
