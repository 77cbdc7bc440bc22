"""The theory's quantities along runs, and measured afterwards (`training.measures`)."""

import logging
import math
import shutil

import numpy as np
import pytest
from builders import TINY, Exact, gap_gradients, soak
from core_test import without_times

import figures
import flags as flag_table
import results
from catalogue.measures import ALWAYS
from core import Core
from data import loading
from storage import workdir
from support.errors import Stopped
from support.screen import log
from training import measures, theory


def test_the_sandwich_holds_on_every_epoch_of_a_run(fitted):
    raw, seen = results.load(fitted[1])["raw"], 0
    for info in raw.values():
        stats = info["stats"]
        total = 300 * math.exp(stats["log_loss"])
        assert math.isnan(stats["smoothed_q_bar"]) == (total >= math.log(2))
        if total < math.log(2):
            lowest = (stats["q_min"] - math.log(300 * 9) - total) / stats["rhoL"]
            assert lowest <= stats["smoothed_q_bar"] <= stats["q_bar_min"]
            both = stats["smoothed_q_bar2"] * stats["norm_prod"], stats["smoothed_q_bar"] * stats["rhoL"]
            assert both[0] == pytest.approx(both[1], rel=1e-12)
            seen += 1
        assert 0 < stats["balance"] <= 1 and stats["angle_to_last_epoch"] > 0
    assert seen > 50


def test_what_is_recorded_at_a_stored_epoch_is_what_its_weights_give(fitted):
    flags, path = fitted
    context = Core(flags).context
    stats = results.load(path)["raw"][250]["stats"]
    now, before = ([w for _, w in results.load_weights(path, eid)] for eid in (250, 200))
    u, v = (np.concatenate([w.ravel() for w in ws]).astype(np.float64) for ws in (before, now))
    assert stats["since_eid"] == 200
    assert stats["beta_delta"] == pytest.approx(u @ (v - u) / np.linalg.norm(u) / np.linalg.norm(v - u), rel=1e-9)
    network = Exact(TINY, shape=(8, 8, 1))
    (x, y), _ = context.dataset
    network.x, network.y = x.astype(np.float32) * np.float32(1 / 16) * 1.0, np.asarray(y)
    network.x = network.x.astype(np.float64)
    network.layers = [
        [w.astype(np.float64) for w in now[:2]],
        [now[2].astype(np.float64)],
        [now[3].astype(np.float64)],
    ]
    found, s, p, log_loss, _ = network.found()
    assert stats["log_loss"] == pytest.approx(log_loss, abs=1e-4)
    for key in ("beta", "beta_0", "beta_1", "beta_2", "nu", "n_eff"):
        assert stats[key] == pytest.approx(found[key], rel=2e-3), key
    assert stats["euler_residual"] < 1e-4
    for key, value in theory.kkt(found["beta"], s, p).items():
        assert stats[key] == pytest.approx(value, rel=2e-3), key
    rate = theory.growth_rate(found["beta"], found["nu"], 3, log_loss, 300)
    assert stats["growth_rate"] == pytest.approx(rate, rel=5e-3)
    chosen = np.argsort(s)[:50]
    h = gap_gradients(network, chosen)
    w = np.concatenate([v.ravel() for v in network.flat])
    assert stats["kkt_certificate"] == pytest.approx(theory.certificate(h @ h.T, h @ w / np.linalg.norm(w)), abs=2e-3)
    assert stats["kkt_certificate"] < stats["kkt_stationarity_best"]


def test_measured_afterwards_the_theory_is_the_same(fitted, tmp_path):
    path = Core({"task": "measure_epochs", "load_dir": str(fitted[1]), "measure": ("theory",), "eid": "all"}).run()
    along, afterwards = (results.load(p)["raw"] for p in (fitted[1], path))
    assert sorted(afterwards) == [50, 100, 150, 200, 250]
    for eid, info in afterwards.items():
        np.testing.assert_equal(info["stats"], along[eid]["stats"])
    assert {"stored_theory", "stored_kkt"} <= set(figures.build([path]))


def test_sharpness_is_the_curvatures_largest_eigenvalue_and_warm_after_the_first_time(fitted):
    raw = results.load(fitted[1])["raw"]
    flags = {
        "task": "measure_curvature",
        "load_dir": str(fitted[1]),
        "eid": [200, 250],
        "probes": 2,
        "eigenvalues": 1,
    }
    measured = results.load(Core(flags).run())["raw"]
    for eid in (200, 250):
        found, stats, info = measured[f"epoch {eid}"], raw[eid]["stats"], raw[eid]
        assert stats["sharpness"] == pytest.approx(found["sharpness"], rel=1e-3)
        assert stats["lr_sharpness"] == pytest.approx(found["lr_sharpness"], rel=1e-3)
        true = stats["sharpness"] * info["lr"] * math.exp(stats["log_loss"] - info["log_frame"])
        assert stats["lr_sharpness"] == pytest.approx(true, rel=1e-9)
        assert stats["sharpness_products"] <= 12


@soak
def test_a_resumed_run_measures_what_the_unbroken_run_measures(fitted):
    flags = fitted[0] | {"E": 60, "measure_every": 10, "archive": 20, "checkpoint_every": 0.05}
    unbroken = Core(flags, "resumed").run()

    seen = 0

    def stop(fraction):
        nonlocal seen
        seen += 1
        if seen > 170:
            raise Stopped(2)

    with pytest.raises(Stopped):
        Core(flags, "resumed", stop).run()
    path = sorted((unbroken.parent).glob("2*"))[-1]
    assert 10 < max(results.load(path)["raw"]) < 60
    Core(flag_table.complete(flags | {"resume": str(path)}), "resumed").run()
    np.testing.assert_equal(*(without_times(results.load(p)["raw"]) for p in (path, unbroken)))


def test_all_is_finite_at_a_loss_of_1e_minus_3000(fitted):
    flags, path = fitted
    context = Core(flags).context
    context.model.set_weights([w for _, w in results.load_weights(path)])
    factor = (7000 / results.load(path)["raw"][250]["stats"]["q_min"]) ** (1 / 3)
    before = [np.asarray(w) * np.float32(0.9 * factor) for w in context.model.snapshot()]
    context.model.set_weights([w * np.float32(1 / 0.9) for w in before])
    epoch = measures.Evaluation(context, -6000.0)
    log_loss = epoch.log_loss
    assert log_loss < -3000 * math.log(10)
    log_before = losses_of(context, before)
    infos = [
        {"eid": 1, "lr": 0.1, "log_frame": log_before, "stats": {"rho": theory.norm(before), "log_loss": log_before}}
    ]
    infos.append({"eid": 2, "lr": 0.1, "log_frame": log_loss, "stats": {}})
    now, history = measures.Evaluation(context, log_loss), measures.History(infos[-1], infos, lambda: (1, before))
    stats = measures.record(now, history, [*ALWAYS, "theory", "sharpness"])
    may_be_nan = {"flow_bound", "flow_ratio"}  # the direction did not move: whether the margin fell is rounding
    assert all(math.isfinite(v) for k, v in stats.items() if k not in may_be_nan), stats
    assert stats["euler_residual"] < 1e-4 and stats["sharpness"] > 0


def losses_of(context, weights):
    after = context.model.snapshot()
    context.model.set_weights(weights)
    found = measures.Evaluation(context, 0.0).log_loss
    context.model.set_weights(after)
    return found


def test_a_network_that_is_not_homogeneous_has_only_what_is_true_of_it(tiny_flags, caplog):
    caplog.set_level(logging.INFO, log.name)
    model = tiny_flags["model"]
    described = [["C", 4, [3, 3], {"bn": True}], ["F", 10, {"act": False}]]
    for changes in (
        {"bias_mode": "ALL", "init": model["init"] | {"bias": "random_normal"}},
        {"description": described},
    ):
        flags = tiny_flags | {"model": model | changes, "E": 2, "measure": ("theory",), "measure_every": 2}
        flags["lr"] = 0.01
        path = Core(flags).run()
        stats = results.load(path)["raw"][2]["stats"]
        assert {"beta", "nu", "n_eff", "euler_residual"} <= set(stats)
        assert not {"growth_rate", "kkt_stationarity", "kkt_certificate", "flow_bound", "loss_rate"} & set(stats)
        assert stats["euler_residual"] > 1e-3
        said = [line for line in (path / "stdout").read_text().splitlines() if "theory: " in line]
        assert len(said) == 1 and "are left out: it has" in said[0]


def test_with_relu2_the_order_is_the_networks_own(tiny_flags, caplog):
    caplog.set_level(logging.INFO, log.name)
    changes = {"act_type": "relu2", "init": {"weight": "glorot_uniform"}}
    flags = tiny_flags | {"model": tiny_flags["model"] | changes, "E": 2, "measure": ("theory",), "measure_every": 2}
    flags["lr"] = 0.001
    core = Core(flags)
    assert core.context.model.degrees == [4, 2, 1]
    path = core.run()
    stats = results.load(path)["raw"][2]["stats"]
    assert stats["euler_residual"] < 1e-4 and math.isnan(stats["smoothed_q_bar"])
    assert "smoothed_q_bar is NaN: the network is homogeneous of order 7" in (path / "stdout").read_text()


def test_the_largest_margin_is_the_one_that_the_separable_set_was_made_with():
    (x, y), _ = loading.load("separable")
    x = x.reshape(len(x), -1) / 255
    expected = math.sqrt(2) * 8 * loading.SEPARABLE_CONTRAST / 255
    assert theory.largest_margins(x, y, bias=False)[0] == pytest.approx(expected, rel=1e-5)
    assert theory.largest_margins(x, y, bias=True)[0] >= expected * (1 - 1e-5)
    assert math.isnan(theory.largest_margins(np.concatenate([x, x]), np.concatenate([y, 1 - y]), bias=False)[0])
    at_random = np.random.default_rng(0).integers(0, 2, 300)  # nearly separable: the SVM alone would not end
    assert math.isnan(theory.largest_margins(np.random.default_rng(1).random((300, 30)), at_random, bias=True)[0])


def test_a_network_of_zeros_and_a_peek_record_what_is_defined_for_them(tiny_flags, tmp_path):
    model = tiny_flags["model"] | {"init": {"weight": "zeros"}}
    flags = tiny_flags | {
        "model": model,
        "lr": 0.01,
        "E": 2,
        "archive": 1,
        "measure": ("theory",),
        "measure_every": 1,
    }
    stats = results.load(Core(flags).run())["raw"][2]["stats"]
    assert math.isnan(stats["flow_bound"]) and math.isnan(stats["beta"])
    run = Core(tiny_flags | {"archive": 2}).run()
    peek = {"task": "train_peek", "load_dir": str(run), "eid": [2], "E": 2, "lr": 1e-3, "log_frame0": 0.0}
    peek |= {"measure": ("theory", "sharpness"), "measure_every": 1, "logs_dir": str(tmp_path)}
    found = results.load(Core(tiny_flags | peek).run())["raw"][2]["epochs"][1]["stats"]
    assert found["lr_sharpness"] == pytest.approx(1e-3 * found["sharpness"] * math.exp(found["log_loss"]), rel=1e-9)
    assert "beta" in found and "log_time" not in found  # the learning rates before the peek are not its own


def test_a_linear_network_tends_to_the_svm_and_never_beyond(tmp_path):
    import importlib

    script = importlib.import_module("exper-quick-separable-linear").flags
    path = Core(script | {"E": 160, "measure_every": 40, "logs_dir": str(tmp_path), "gpu": -1}).run()
    raw = results.load(path)["raw"]
    best = raw[160]["stats"]["q_bar_svm"]
    assert max(info["stats"]["q_bar_min"] for info in raw.values()) <= best * (1 + 1e-5)
    assert raw[160]["stats"]["q_bar_min"] > 0.8 * best
    gaps = {eid: 1 - raw[eid]["stats"]["smoothed_q_bar"] / best for eid in (40, 80, 160)}
    assert gaps[160] < gaps[80] < gaps[40]
    assert "linear" in figures.build([path])


def test_no_other_network_has_a_largest_margin(tiny_flags, caplog):
    caplog.set_level(logging.INFO, log.name)
    path = Core(tiny_flags | {"E": 2, "measure": ("max_margin",), "measure_every": 1}).run()
    assert "q_bar_svm" not in results.load(path)["raw"][2]["stats"]
    assert (
        "q_bar_svm is left out: it is known only for a linear network of two classes" in (path / "stdout").read_text()
    )


def test_a_run_of_an_older_version_has_smoothed_margins_when_it_is_loaded(fitted, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(fitted[1], old)
    res = results.read_res(old)
    keys = ("smoothed_q_bar", "smoothed_q_bar2", "balance")
    expected = {eid: {key: info["stats"][key] for key in keys} for eid, info in res["raw"].items()}
    for info in res["raw"].values():
        for key in ("smoothed_q_bar", "smoothed_q_bar2", "balance"):
            del info["stats"][key]
    workdir.WorkDir(old).write_res(res)
    about = results.read_about(old)
    del about["format"]
    workdir.WorkDir(old).write_json("about.json", about)
    found = results.load(old)["raw"]
    np.testing.assert_equal({eid: {key: info["stats"][key] for key in keys} for eid, info in found.items()}, expected)
