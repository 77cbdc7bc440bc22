"""Sweeps and seeds: axes, resuming, data that changed or moved (`training.sweep`, `training.seeds`)."""

import json
import shutil
from pathlib import Path

import pytest
from builders import pixels

import results
from core import Core
from support.errors import Stopped, UserError
from training.sweep import points, table


@pytest.mark.parametrize(
    "grid",
    [
        *("task=train", "load_dir=a,b", "logs_dir=a,b", "cluster=1,2", "eid=1,2", "attack_K=1,2", "axes=a,b"),
        *("threads=1,2", "gpu=0,1", "seeds=0,1", "figures=true,false", "data_dir=a,b", "tensorboard=true,false"),
    ],
)
def test_an_axis_is_a_flag_that_changes_what_is_trained(grid):
    with pytest.raises(UserError, match="does not change what a training computes"):
        points([grid])


@pytest.mark.parametrize("grid", ["seed=0,00", "lr=0.01,1e-2", "train_N=100,1e2", "model.bias_mode=ALL,ALL"])
def test_the_values_of_an_axis_differ(grid):
    with pytest.raises(UserError, match="expected values that differ"):
        points([grid])


@pytest.fixture
def swept(tiny_flags, tmp_path):
    """(flags, directory) of a finished sweep over two learning rates, on data of its own."""
    path = pixels(tmp_path / "set.npz", n_classes=10)
    flags = tiny_flags | {"task": "sweep", "dataset": path, "train_N": "all", "B": 20, "E": 1, "figures": False}
    flags |= {"axes": ("lr=0.05,0.1",), "model": {"description": [["F", 10, {"act": False}]]}}
    return flags, Core(flags, "sweep-tiny").run()


def test_a_sweep_over_optimizers_lists_their_margins_in_three_norms(tiny_flags, logged):
    flags = tiny_flags | {"task": "sweep", "E": 2, "axes": ("opt=gd|sign",), "figures": False}
    path = Core(flags | {"measure": ("norm_margins",), "measure_every": 1}, "sweep-tiny").run()
    table = [line.split() for line in logged.messages if line.split()[0] in ("opt", "gd", "sign")]
    assert table[0][-3:] == ["q_bar_min", "q_bar_linf", "q_bar_spectral"]
    for words, run in zip(table[1:], sorted(path.glob("opt=*")), strict=True):
        stats = results.read_journal(run)[2]["stats"]
        assert words[-3:] == [f"{stats[name]:.4g}" for name in table[0][-3:]]


def test_a_sweep_is_not_resumed_on_other_data(swept):
    flags, path = swept
    pixels(flags["dataset"], n_classes=9)
    shutil.rmtree(path / "lr=0.1")
    with pytest.raises(UserError, match=r"lr=0\.05: was run on other data or labels"):
        Core({"resume": str(path)}, "sweep-tiny").run()
    assert not (path / "lr=0.1").exists()


def test_a_sweep_resumes_after_its_data_has_moved(swept):
    flags, path = swept
    moved = shutil.move(flags["dataset"], Path(flags["dataset"]).with_name("moved.npz"))
    shutil.rmtree(path / "lr=0.1")
    Core({"resume": str(path), "dataset": str(moved)}, "sweep-tiny").run()
    assert len(results.load(path / "lr=0.1")["raw"]) == 1


def test_an_axis_may_depend_on_another_flag():
    assert points(["subset_seed=0:2"]) == [{"subset_seed": "0"}, {"subset_seed": "1"}]
    assert len(points(["stats_every=1,10", "tf32=true,false"])) == 4


def test_points_of_a_sweep_that_were_swapped_are_refused(swept):
    _, path = swept
    (path / "lr=0.1").rename(path / "aside")
    (path / "lr=0.05").rename(path / "lr=0.1")
    (path / "aside").rename(path / "lr=0.05")
    with pytest.raises(UserError, match=r"lr=0\.05: has --lr 0\.1, not 0\.05"):
        Core({"resume": str(path)}, "sweep-tiny").run()


def test_a_sweep_with_an_invalid_point_leaves_no_directory(tiny_flags, tmp_path):
    with pytest.raises(UserError, match="--B 999: larger than the training set"):
        Core(tiny_flags | {"task": "sweep", "axes": ("B=50,999",)}, "sweep-tiny").run()
    assert not (tmp_path / "logs").exists()


def test_a_sweep_needs_no_possible_run_besides_its_points(tiny_flags):
    flags = tiny_flags | {"task": "sweep", "E": 1, "B": 5000, "figures": False, "axes": ("B=50,100",)}
    flags |= {"model": {"description": [["F", 2, {"act": False}]]}, "classes": (3, 5), "train_N": 200}
    assert len(results.load(Core(flags, "sweep-tiny").run())["raw"]) == 2


def test_a_resumed_sweep_keeps_the_threads_that_it_began_with(swept):
    _, path = swept
    about = json.loads((path / "about.json").read_text())
    (path / "about.json").write_text(json.dumps(about | {"threads": {"threads": 3, "parts": 1}}))
    shutil.rmtree(path / "lr=0.1")
    Core({"resume": str(path)}, "sweep-tiny").run()
    assert results.read_about(path / "lr=0.1")["threads"]["threads"] == 3


def test_runs_of_different_lengths_are_not_averaged():
    rows = [{"point": {"seed": k}, "info": {"eid": eid, "stats": {"acc": 0.5}}} for k, eid in enumerate((3, 5))]
    assert table(rows)[-1].split() == ["all", "2", "runs", "epochs", "differ"]
    rows[0]["info"]["eid"] = 5
    assert "0.5±0" in table(rows)[-1]


def test_values_with_commas_are_explained():
    with pytest.raises(UserError, match=r"--classes 3: .* separate values with \|"):
        points(["classes=3,5"])


def test_resuming_a_sweep_as_a_run_names_the_command_that_works(swept):
    _, path = swept
    with pytest.raises(UserError, match=r"use python sweep\.py tiny --resume"):
        Core({"resume": str(path)}, "tiny").run()


def test_seeds_are_not_resumed_on_other_data(tiny_flags, tmp_path):
    path = pixels(tmp_path / "set.npz", n_classes=10)
    flags = tiny_flags | {"task": "train_seeds", "dataset": path, "train_N": "all", "B": 20, "E": 1, "seeds": (0, 1)}
    flags |= {"model": {"description": [["F", 10, {"act": False}]]}}
    run = Core(flags, "seeds").run()
    shutil.rmtree(run / "seed-1")
    pixels(tmp_path / "set.npz", n_classes=9)
    with pytest.raises(UserError, match="seed-0: was run on other data or labels"):
        Core({"resume": str(run)}, "seeds").run()
    assert not (run / "seed-1").exists()


def test_a_dead_scheduler_leaves_no_directory_and_resuming_does_not_need_it(tiny_flags, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    from engine import cluster

    monkeypatch.setattr(cluster, "START", 0.2)
    seeds = tiny_flags | {"task": "train_seeds", "seeds": (0,), "E": 1}
    with pytest.raises(UserError, match="no such file; start dask scheduler"):
        Core(seeds | {"cluster": str(tmp_path / "dead.json")}, "seeds").run()
    assert not (tmp_path / "logs").exists()
    run = Core(seeds, "seeds").run()
    stored = json.loads((run / "flags.json").read_text())
    (run / "flags.json").write_text(json.dumps(stored | {"cluster": str(tmp_path / "dead.json")}))
    with pytest.raises(UserError, match="which is gone; give --cluster with another one, or --cluster none"):
        Core({"resume": str(run), "E": 2}, "seeds")
    Core({"resume": str(run), "E": 2, "cluster": None}, "seeds").run()
    assert json.loads((run / "flags.json").read_text())["cluster"] is None


def test_a_stopped_sweep_prints_the_command_that_resumes_it(tiny_flags, logged):
    def update(fraction):
        if fraction > 0:  # its first run trains
            raise Stopped(2)

    with pytest.raises(Stopped):
        Core(tiny_flags | {"task": "sweep", "axes": ("seed=0:2",)}, "sweep-tiny", update).run()
    (path,) = Path(tiny_flags["logs_dir"]).glob("sweep-tiny/2*")
    assert f"  python sweep.py tiny --resume {path}" in logged.messages
