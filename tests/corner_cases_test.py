"""Corner cases that once gave a wrong number, or an error without a remedy."""

import io
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from builders import TINY, soak

import export
import figures
import results
from attacks.apgd import AutoPGD
from attacks.base import normalized
from core import Core
from data import loading
from engine.context import Context
from storage import read, workdir
from storage.run_flags import resolve
from support.errors import Stopped, TrainingDiverged, UserError
from support.screen import log
from training.sweep import points


@pytest.fixture(autouse=True)
def logged(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "margin")
    return caplog


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four epochs of digits, the first one far from fitted, all archived."""
    flags = {"dataset": "digits", "train_N": 300, "B": 50, "E": 4, "gpu": -1, "archive": 1, "figures": False}
    flags |= {"model": {"description": TINY, "init": {"weight": "he_normal"}}, "log_frame0": 2.0}
    return Core(flags | {"logs_dir": str(tmp_path_factory.mktemp("logs"))}, "tiny").run()


@pytest.fixture
def own(run, tmp_path):
    """A copy of that run."""
    return shutil.copytree(run, tmp_path / "logs" / "tiny" / run.name)


def pixels(path, x=None, y=None, n_classes=4, **more):
    """An .npz of images [60, 4, 4], uint8."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8) if x is None else x
    y = np.arange(len(x)) % n_classes if y is None else y
    np.savez(path, **{"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]} | more)
    return str(path)


# Attacks


@pytest.mark.parametrize("target", ["next", 3])
def test_with_a_target_only_images_of_that_class_are_at_distance_0(run, target):
    flags = {"task": "attack", "attack_method": "ddn", "load_dir": str(run), "eid": [1], "attack_target": target}
    path = Core(flags | {"attack_K": 30, "figures": False, "attack_eps_list": (0.25, 0.5, 1.0)}, "ddn").run()
    found, summary = results.load(path)[1], results.read_summary(path)["1"]
    context = Context(resolve({}, flags))
    x, y = context.dataset[0]
    context.model.set_weights(context.stored_weights(run, 1))
    chosen = found["indices"]
    goal = (y[chosen] + 1) % 10 if target == "next" else np.full(len(chosen), target)
    there = context.model.logits(context.model.pixels(x[chosen])).numpy().argmax(1) == goal
    distance = np.sqrt(((found["images"] - x[chosen] / 16.0) ** 2).sum(axis=(1, 2, 3)))
    distance[~found["success"]] = np.inf
    assert (~found["clean_correct"] & ~there).sum() > 20 and there.any()
    assert ((distance == 0) == there).all()
    assert summary["median"] == pytest.approx(np.median(distance), rel=1e-4)
    assert summary["mean"] == pytest.approx(distance[found["success"]].mean(), rel=1e-4)
    for eps in (0.25, 0.5, 1.0):
        assert summary["robust_acc"][str(eps)] == pytest.approx((distance > eps).mean())
    table = results.table(path)
    np.testing.assert_allclose(table["distance"], np.where(found["success"], distance, np.nan), rtol=1e-4, atol=1e-7)
    (curve,) = [line for line in figures.build([path])["attack_l2"].axes[1].lines if len(line.get_xdata()) > 2]
    eps, robust = curve.get_data()
    assert robust[0] == pytest.approx(100 * (~there).mean())
    assert robust[np.searchsorted(eps, 0.5, side="right") - 1] == pytest.approx(100 * (distance > 0.5).mean())
    plt.close("all")


def test_drawing_changes_no_result():
    from catalogue.attacks import METHODS

    errors = np.array([0.1, 1.0])
    assert METHODS["pgd"].distances(errors, np.array([True, True]), "next") is not errors


def test_apgd_finds_examples_where_two_logits_are_the_same_function():
    """z = (s, -s, -s): the DLR loss is -1 for all images of class 0."""
    import tensorflow as tf

    def logits(x):
        s = tf.reduce_sum(x, axis=[1, 2, 3]) - 2.0
        return tf.stack([s, -s, -s], axis=1)

    x = np.full((14, 2, 2, 1), 0.55, np.float32)
    attack = AutoPGD(logits, (2, 2, 1), eps_list=(0.2,))
    found = attack(x, np.zeros(14, np.int32))
    assert (logits(tf.constant(found)).numpy().argmax(1) != 0).all()
    assert np.abs(found - x).max() <= 0.2 + 1e-6


@pytest.mark.parametrize("how", ["sum", "max"])
def test_two_opposite_logits_keep_their_gradient_when_they_are_normalized(how):
    import tensorflow as tf

    def logits(x):
        s = tf.reduce_sum(x, axis=[1, 2, 3]) - 2.0
        return tf.stack([s, -s], axis=1)

    x = tf.ones((3, 2, 2, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = normalized(logits, how)(x)
        gap = z[:, 0] - z[:, 1]
    assert (tape.gradient(gap, x).numpy() > 0).all()


# Data


def test_pixels_far_below_their_range_are_warned_of(tmp_path, logged):
    rng = np.random.default_rng(0)
    for top in (1, 16):
        logged.clear()
        path = pixels(tmp_path / "low.npz", rng.integers(0, top + 1, (60, 4, 4)).astype(np.uint8))
        loading.load(path)
        assert f"largest pixel {top} of 255; did you mean `levels={top}`?" in logged.text
        logged.clear()
        loading.load(pixels(tmp_path / "low.npz", np.load(path)["x_train"], levels=top))
        assert "largest pixel" not in logged.text
    loading.load(pixels(tmp_path / "full.npz"))
    assert "warning" not in logged.text


@pytest.mark.parametrize(
    "labels, says",
    [(np.arange(60) % 10 + 1, r"from 1 to 10, but 1 of these 11 .* no training example: 0$"),
     (np.arange(60) % 2 * 255, r"from 0 to 255, but 254 of these 256 .*: 1, 2, 3, 4, 5, \.\.\.$")],
)  # fmt: skip
def test_classes_without_an_example_are_warned_of(tmp_path, logged, labels, says):
    loading.load(pixels(tmp_path / "set.npz", y=labels))
    assert re.search(says, logged.messages[-1])


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda x, y: {"x_train": x[:, None].repeat(3, 1)}, "x.transpose(0, 2, 3, 1)"),
        (lambda x, y: {"x_train": x / 255.0}, "(x * 255).round().astype('uint8')"),
        (lambda x, y: {"x_train": x.astype(np.float32)}, "x.round().astype('uint8')"),
        (lambda x, y: {"x_train": x > 100}, "x.astype('uint8')"),
        (lambda x, y: {"y_train": np.eye(4, dtype=int)[y]}, "y.argmax(axis=1)"),
        (lambda x, y: {"y_train": np.ones((60, 4), int)}, "several labels of one image"),
        (lambda x, y: {"y_train": y.astype(float)}, "y.astype('int64')"),
        (lambda x, y: {"levels": 16.7}, "expected one whole number, 1 to 255"),
        (lambda x, y: {"levels": "many"}, "expected one whole number, 1 to 255"),
        (lambda x, y: {"train_images": x}, "two names for the same arrays"),
        (lambda x, y: {"y_train": np.zeros(60, int)}, "all 60 training examples are of class 0"),
    ],
)
def test_what_a_file_of_data_lacks_is_said_with_its_remedy(tmp_path, change, says):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 4
    path = pixels(tmp_path / "set.npz", x, y, **change(x, y))
    with pytest.raises(UserError) as error:
        loading.load(path)
    assert says in str(error.value) and "None" not in str(error.value)


def test_one_class_is_refused_wherever_it_comes_from(tmp_path):
    for flags in ({"train_N": 1}, {"train_N": 1, "subset_seed": 3}):
        with pytest.raises(UserError, match="all 1 training examples are of class"):
            loading.load("digits", **flags)
    np.savez(tmp_path / "labels.npz", labels=np.full(1500, 3))
    with pytest.raises(UserError, match="all labels are 3"):
        Context({"dataset": "digits", "random_labels": str(tmp_path / "labels.npz")}).dataset  # noqa: B018


def test_other_levels_or_shapes_are_other_data(tmp_path, tiny_flags):
    path = pixels(tmp_path / "set.npz", n_classes=10)
    flags = tiny_flags | {"dataset": path, "train_N": "all", "B": 20, "E": 1, "log_frame0": 3.0}
    run = Core(flags).run()
    content = dict(np.load(path))
    for change in ({"levels": 254 + 1 - 0}, {}):
        np.savez(path, **content | change)
        Context(flags).check_data(run)
    content["x_train"] = np.minimum(content["x_train"], 200)
    content["x_test"] = np.minimum(content["x_test"], 200)
    np.savez(path, **content)
    second = Core(flags).run()
    np.savez(path, **content | {"levels": 200})
    with pytest.raises(UserError, match="other data or labels"):
        Context(flags).check_data(second)
    np.savez(
        path,
        **content | {"x_train": content["x_train"].reshape(60, 2, 8), "x_test": content["x_test"].reshape(20, 2, 8)},
    )
    with pytest.raises(UserError, match="other data or labels"):
        Context(flags).check_data(second)


def test_a_relative_path_of_data_is_kept_absolute_and_may_move(tmp_path, tiny_flags, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels(tmp_path / "set.npz", n_classes=10)
    flags = tiny_flags | {"dataset": "set.npz", "train_N": "all", "B": 20, "E": 1, "log_frame0": 3.0}
    run = Core(flags).run()
    assert read.read_flags(run)["dataset"] == str(tmp_path / "set.npz")
    (tmp_path / "elsewhere").mkdir()
    shutil.move("set.npz", "elsewhere/moved.npz")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"set\.npz: no such file"):
        Core({"resume": str(run), "E": 2}).run()
    Core({"resume": str(run), "E": 2, "dataset": "moved.npz"}).run()
    attack = {"task": "attack", "attack_method": "ddn", "load_dir": str(run), "eid": "last", "attack_K": 3}
    Core(attack | {"dataset": "moved.npz"}, "ddn").run()
    pixels(tmp_path / "other.npz", n_classes=9)
    with pytest.raises(UserError, match="other data or labels"):
        Core({"resume": str(run), "E": 3, "dataset": str(tmp_path / "other.npz")}).run()


# The first frame


# Whole batches, from weights so large that one step does not reach the loss of a uniform guess.
WHOLE = {"B": 300, "model": {"description": TINY, "init": {"weight": "he_normal", "weight_rescale": 2.0}}}


def test_where_no_first_epoch_is_accepted_training_begins_again_at_the_initial_loss(tiny_flags, logged):
    path = Core(tiny_flags | WHOLE | {"E": 2}).run()
    raw = results.load(path)["raw"]
    assert sorted(raw) == [1, 2] and raw[1]["stats"]["attempts"] > 1
    context = Context(tiny_flags | WHOLE)
    (x, y), _ = context.dataset
    z = context.model.logits(context.model.pixels(x)).numpy().astype(np.float64)
    loss = np.log(np.mean(np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(300), y]))
    assert raw[1]["log_frame"] == pytest.approx(loss, rel=1e-6)
    assert f"starting again at the log of the initial loss, {loss:.6g}" in logged.text


def test_a_frame_given_by_hand_stays_and_the_message_names_one_that_works(tiny_flags):
    with pytest.raises(TrainingDiverged, match=r"--log_frame0 (\S+), or leave the flag out") as error:
        Core(tiny_flags | WHOLE | {"E": 1, "log_frame0": 0.5}).run()
    value = float(str(error.value).split("--log_frame0 ")[1].split(",")[0])
    assert len(results.load(Core(tiny_flags | WHOLE | {"E": 1, "log_frame0": value}).run())["raw"]) == 1


@pytest.mark.parametrize("mode", ["USE_FRAME", "NORMAL"])
def test_more_classes_begin_with_their_own_frame(tmp_path, tiny_flags, mode):
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(256), rng.integers(0, 256, 44)])
    path = pixels(tmp_path / "set.npz", rng.integers(0, 256, (300, 4, 4), dtype=np.uint8), y)
    model = {"description": [["F", 32], ["F", 256, {"act": False}]]}
    raw = results.load(Core(tiny_flags | {"dataset": path, "model": model, "E": 1, "train_mode": mode}).run())["raw"]
    assert raw[1]["stats"]["loss"] > 0
    assert mode == "NORMAL" or raw[1]["log_frame"] == pytest.approx(np.log(np.log(256)), abs=0.02)


# Networks that are dead, or do not move


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
def test_of_a_dead_network_everything_is_measured_or_refused(dead, tiny_flags, logged):
    assert (dead / "stdout").read_text().count("the network is dead") == 1
    measuring = {"load_dir": str(dead), "eid": "last", "gpu": -1, "figures": True}
    path = Core(measuring | {"task": "measure_curvature", "probes": 2, "density": True, "density_steps": 3}).run()
    (found,) = results.load(path)["raw"].values()
    assert found["eigenvalues"] == [0.0] * 5 and found["trace"] == 0
    assert figures.build([path]) and figures.build([dead])
    with pytest.raises(UserError, match="the path of training does not move"):
        Core(measuring | {"task": "make_surface", "plane": "pca", "grid": 3}).run()


def test_weights_of_0_have_a_radius_without_a_norm(own):
    weights, state = read.load_checkpoint(own)
    kept = state.pop("kept")
    workdir.WorkDir(own).save([(name, np.zeros_like(w)) for name, w in weights], state, kept=kept)
    (own / "archive" / "eid-000004.npz").unlink()
    path = Core({"task": "measure_radius", "load_dir": str(own), "eid": [4], "directions": 1}).run()
    (found,) = results.load(path)["raw"]["networks"].values()
    assert np.isnan(found["mean_by_norm"]) and found["mean"] > 0
    with pytest.raises(UserError, match="--normalize layer: all perturbed weights are 0"):
        Core(
            {"task": "measure_radius", "load_dir": str(own), "eid": [4], "directions": 1, "normalize": "layer"}
        ).run()


def test_a_path_along_a_line_is_said_to_be_one(own, logged):
    start, end = ([w for _, w in results.load_weights(own, eid)] for eid in (1, 4))
    names = [name for name, _ in results.load_weights(own, 1)]
    for eid in (2, 3):
        between = [
            (a * np.float32(1 - (eid - 1) / 3) + b * np.float32((eid - 1) / 3))
            for a, b in zip(start, end, strict=True)
        ]
        _, state = read.load_checkpoint(own, eid)
        kept = state.pop("kept")
        state["eid"] = eid
        workdir.WorkDir(own).save(list(zip(names, between, strict=True)), state, archive=True, kept=kept)
    path = Core({"task": "make_surface", "load_dir": str(own), "eid": [4], "plane": "pca", "grid": 3}).run()
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


# Trust in what lies on the disk


def test_an_archive_is_the_epoch_that_it_holds(own):
    shutil.copy(own / "archive" / "eid-000001.npz", own / "archive" / "eid-000002.npz")
    with pytest.raises(UserError, match=r"eid-000002\.npz: holds epoch 1, not 2: it was copied or renamed"):
        results.load_weights(own, 2)
    shutil.copy(own / "archive" / "eid-000001.npz", own / "archive" / "eid-7.npz")
    assert 7 not in results.stored_eids(own)


def test_an_archive_that_is_a_file_is_noticed_before_the_first_epoch(own):
    shutil.rmtree(own / "archive")
    (own / "archive").write_text("")
    with pytest.raises(UserError, match="a file is in the way of the archived epochs"):
        Core({"resume": str(own), "E": 5}, "tiny").run()


@pytest.mark.parametrize("name", ["lock", "stdout", "journal.jsonl", "checkpoint.npz", "res", "archive"])
def test_nothing_is_written_through_a_link(own, tmp_path, name):
    target = tmp_path / "mine"
    target.write_text("precious")
    if (own / name).is_dir():
        shutil.rmtree(own / name)
    else:
        (own / name).unlink()
    (own / name).symlink_to(target)
    with pytest.raises(UserError, match="link"):
        Core({"resume": str(own), "E": 5}, "tiny").run()
    assert target.read_text() == "precious"


@pytest.mark.parametrize("name", ["lock", "stdout", "journal.jsonl"])
def test_a_pipe_is_refused_and_does_not_hang(own, name):
    (own / name).unlink()
    os.mkfifo(own / name)
    with pytest.raises(UserError, match="not a regular file"):
        Core({"resume": str(own), "E": 5}, "tiny").run()


def test_a_removed_lock_lets_no_second_process_in(own):
    with workdir.locked(own):
        (own / "lock").unlink()
        with pytest.raises(UserError, match="is writing there"), workdir.locked(own):
            pass


def test_the_latest_run_is_the_one_that_began_last(own, monkeypatch):
    logs = own.parent.parent
    shutil.rmtree(own)
    first = [workdir.create(logs, "tiny", {"about.json": workdir.about("tiny"), "flags.json": {}}) for _ in range(11)]
    assert sorted(read.runs_in(logs / "tiny"), key=read.began) == first  # `_10` after `_9`
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    first.append(workdir.create(logs, "tiny", {"about.json": workdir.about("tiny"), "flags.json": {}}))
    monkeypatch.undo()
    time.tzset()
    about = workdir.about("tiny") | {"began": "2001-01-01 00:00:00.000000+00:00"}  # the clock was set back
    first.append(workdir.create(logs, "tiny", {"about.json": about, "flags.json": {}}))
    assert sorted(read.runs_in(logs / "tiny"), key=read.began) == first
    assert (logs / "tiny" / "latest").resolve() == first[-1].resolve()


def test_latest_is_resolved_once(own):
    link = own.parent / "latest"
    link.symlink_to(own.name)
    attack = {
        "task": "attack",
        "attack_method": "ddn",
        "load_dir": str(link),
        "eid": [2],
        "attack_K": 3,
        "attack_N": 3,
    }
    core = Core(attack | {"attack_N": 3}, "ddn")
    resumed = Core({"resume": str(link), "E": 5}, "tiny")
    other = shutil.copytree(own, own.parent / "another", ignore=shutil.ignore_patterns("archive"))
    link.unlink()
    link.symlink_to(other.name)
    path = core.run()
    assert path.is_relative_to(own.resolve()) and read.read_flags(path)["load_dir"] == str(own.resolve())
    assert resumed.run() == own.resolve()


def test_an_export_deletes_no_foreign_file(own):
    mine = own / "export" / "eid-000004.npz"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="a folder is in the way"):
        export.export(own, "npz")
    assert (mine / "notes.txt").read_text() == "precious"


def test_a_saved_model_is_written_below_a_path_with_brackets(own, tmp_path):
    (place,) = export.export(own, "saved_model", out=tmp_path / "a [x]" / "model")
    assert (place / "saved_model.pb").exists() and [p.name for p in place.parent.iterdir()] == ["model"]


def test_no_error_is_called_none():
    from support.errors import reason

    assert reason(OSError()) == "OSError" and reason(OSError("a  \n b")) == "a b"
    assert reason(FileNotFoundError(2, "No such file")) == "No such file"
    assert reason(io.UnsupportedOperation("read")) == "read"


# Sweeps


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


def test_a_sweep_is_not_resumed_on_other_data(swept):
    flags, path = swept
    pixels(flags["dataset"], n_classes=9)
    shutil.rmtree(path / "lr=0.1")
    with pytest.raises(UserError, match=r"lr=0\.05: was run on other data or labels"):
        Core({"resume": str(path)}, "sweep-tiny").run()
    assert not (path / "lr=0.1").exists()


def test_a_sweep_goes_on_after_its_data_has_moved(swept):
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


def test_a_bad_point_leaves_no_directory(tiny_flags, tmp_path):
    with pytest.raises(UserError, match="--B 999: larger than the training set"):
        Core(tiny_flags | {"task": "sweep", "axes": ("B=50,999",)}, "sweep-tiny").run()
    assert not (tmp_path / "logs").exists()


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


def test_a_dead_scheduler_leaves_no_directory_and_resuming_needs_it_not(tiny_flags, tmp_path, monkeypatch):
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


# A run that still trains


def test_a_measurement_holds_the_epoch_that_it_chose(own, monkeypatch):
    from engine import measurement

    shutil.rmtree(own / "archive")
    real = measurement.networks

    def networks(flags):
        found = real(flags)
        return found

    def gone(context):
        found = checked(context)
        (own / "checkpoint.npz").unlink()  # as if the run had saved another epoch there
        return found

    checked = measurement.checked_networks
    monkeypatch.setattr(measurement, "networks", networks)
    monkeypatch.setattr("flatness.run.checked_networks", gone)
    path = Core({"task": "measure_sharpness", "load_dir": str(own), "eid": "all", "rho": (0.1,)}).run()
    assert len(results.load(path)["raw"]) == 1


@soak
def test_thousands_of_archived_epochs_are_listed_in_a_second(own):
    content = (own / "archive" / "eid-000001.npz").read_bytes()
    for eid in range(10, 5000):
        (own / "archive" / f"eid-{eid:06d}.npz").write_bytes(content)
    began = time.monotonic()
    assert len(results.stored_eids(own)) == 4994 and time.monotonic() - began < 10
