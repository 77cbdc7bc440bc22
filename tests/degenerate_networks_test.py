"""Networks that are dead, do not move, move along a line, or have only their initial weights."""

from pathlib import Path

import numpy as np
import pytest
from builders import TINY

import export
import figures
import results
from core import Core
from storage import read, workdir
from support.errors import Stopped, UserError


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """A run whose units are all off after the first steps."""
    flags = {"dataset": "digits", "train_N": 100, "B": 50, "E": 6, "gpu": -1, "archive": 1, "lr": 1000.0}
    flags |= {
        "model": {"description": TINY, "init": {"weight": "he_normal"}},
        "loss_ub": 1e30,
        "measure": ("theory",),
    }
    flags |= {"measure_every": 2, "logs_dir": str(tmp_path_factory.mktemp("logs"))}
    return Core(flags, "dead").run()


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_dead_network_is_measured_or_refused_by_every_task(dead, tiny_flags, logged):
    assert (dead / "stdout").read_text().count("the network is dead") == 1
    measuring = {"load_dir": str(dead), "eid": "last", "gpu": -1, "figures": True}
    path = Core(measuring | {"task": "measure_curvature", "probes": 2, "density": True, "density_steps": 3}).run()
    (found,) = results.load(path)["raw"].values()
    assert found["eigenvalues"] == [0.0] * 5 and found["trace"] == 0
    assert figures.build([path]) and figures.build([dead])
    with pytest.raises(UserError, match="the path of training does not move"):
        Core(measuring | {"task": "make_surface", "plane": "pca", "grid": 3}).run()


def test_weights_of_0_have_a_radius_without_a_norm(own_run):
    weights, state = read.load_checkpoint(own_run)
    kept = state.pop("kept")
    workdir.WorkDir(own_run).save([(name, np.zeros_like(w)) for name, w in weights], state, kept=kept)
    (own_run / "archive" / "eid-000004.npz").unlink()
    path = Core({"task": "measure_radius", "load_dir": str(own_run), "eid": [4], "directions": 1}).run()
    (found,) = results.load(path)["raw"]["networks"].values()
    assert np.isnan(found["mean_by_norm"]) and found["mean"] > 0
    with pytest.raises(UserError, match="--normalize layer: all perturbed weights are 0"):
        Core(
            {"task": "measure_radius", "load_dir": str(own_run), "eid": [4], "directions": 1, "normalize": "layer"}
        ).run()


def test_a_path_along_a_line_is_reported_as_a_line(own_run, logged):
    start, end = ([w for _, w in results.load_weights(own_run, eid)] for eid in (1, 4))
    names = [name for name, _ in results.load_weights(own_run, 1)]
    for eid in (2, 3):
        between = [
            (a * np.float32(1 - (eid - 1) / 3) + b * np.float32((eid - 1) / 3))
            for a, b in zip(start, end, strict=True)
        ]
        _, state = read.load_checkpoint(own_run, eid)
        kept = state.pop("kept")
        state["eid"] = eid
        workdir.WorkDir(own_run).save(list(zip(names, between, strict=True)), state, archive=True, kept=kept)
    path = Core({"task": "make_surface", "load_dir": str(own_run), "eid": [4], "plane": "pca", "grid": 3}).run()
    raw = results.load(path)["raw"]
    assert "the path of training is a line" in logged.text
    assert raw["explained"] == pytest.approx([1, 0]) and np.isfinite(raw["log_loss"]).all()


def test_the_initial_weights_are_attacked_exported_and_measured_like_others(tiny_flags):
    def stop(fraction):
        calls.append(fraction)
        if len(calls) > 3:
            raise Stopped(2)

    calls = []
    with pytest.raises(Stopped):
        Core(tiny_flags, "early", stop).run()
    (run,) = read.runs_in(Path(tiny_flags["logs_dir"]) / "early")
    assert results.stored_eids(run) == [0]
    looking = {"load_dir": str(run), "eid": "last", "gpu": -1}
    attack = Core(looking | {"task": "attack", "attack_method": "ddn", "attack_K": 3, "attack_N": 5}, "ddn").run()
    assert list(results.load(attack)) == [0]
    measured = Core(looking | {"task": "measure_epochs", "measure": ("gradient_norm", "theory")}).run()
    stats = results.load(measured)["raw"][0]["stats"]
    assert stats["gradient_norm"] > 0 and stats["rho"] > 0 and figures.build([measured])
    Core(looking | {"task": "measure_curvature", "probes": 2, "eigenvalues": 1}).run()
    (file,) = export.export(run, "npz")
    assert file.name == "eid-000000.npz"
