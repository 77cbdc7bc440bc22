"""An attack on a run through Core: what it leaves, how it goes on, and what it refuses."""

import errno
import json
import logging
import math
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from builders import soak, tiny_run_flags

import flags
import launch
import results
from attacks import certificate
from attacks import run as attack_run
from core import Core
from data import loading
from engine.context import build_network
from storage import read
from storage.run_flags import of_command_line
from support.errors import Stopped, UserError
from support.files import ROOT
from support.screen import log

DDN = {"task": "attack", "attack_method": "ddn", "attack_K": 30}
N = 40


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.INFO, log.name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The working directory of a tiny run with epochs 3, 6 and 8 stored."""
    script = tiny_run_flags(tmp_path_factory.mktemp("logs"), E=8, lr=0.1, archive=3)
    return Core(script, "exper-tiny").run()


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """The working directory of a run on images of three channels, with all that a network can have."""
    path = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = rng.integers(0, 100, (120, 6, 6, 3))
    x[np.arange(120), ..., y] += 100  # the class is the brightest colour
    arrays = {"x_train": x, "y_train": y, "x_test": x[:30], "y_test": y[:30]}
    np.savez(path / "colours.npz", **arrays)
    layers = [["C", 6, [3, 3], {"bn": True}], ["A"], ["C", 6, [3, 3]], ["P"], ["F", 3, {"act": False}]]
    script = {
        "dataset": str(path / "colours.npz"),
        "B": 30,
        "E": 5,
        "gpu": -1,
        "lr": 0.1,
        "train_mode": "NORMAL",
        "model": {
            "description": layers,
            "bias_mode": "ALL",
            "init": {"weight": "he_normal"},
            "input_mean": "auto",
            "input_std": "auto",
        },
        "logs_dir": str(path / "logs"),
    }
    return Core(script, "exper-colours").run()


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run that a test may spoil."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval-*"))


def prepare(directory, *words, name="eval-tiny", **script):
    words = ["--gpu", "-1", "--eid", "last", "--attack_N", str(N), *words]
    script = DDN | {"attack_B": 16} | script
    return Core(of_command_line([str(directory), *words], script), name)


def attack(directory, *words, **script):
    """(res, the attack's directory)."""
    path = prepare(directory, *words, **script).run()
    return results.load(path), path


def network(run, eid):
    stored = flags.complete(results.read_flags(run))
    dataset = loading.load("digits", None, 300)
    model = build_network(stored["model"], dataset, 0)
    model.set_weights([array for _, array in results.load_weights(run, eid)])
    return model, dataset


@pytest.mark.parametrize("part", ["train", "test"])
def test_res_holds_for_every_epoch_what_a_fresh_network_confirms(own, part):
    res, path = attack(own, "--eid", "3,8", "--attack_set", part)
    assert path.parent == own / "eval-tiny" and set(res) == {3, 8}
    for eid, found in res.items():
        assert set(found) == {*("images", "errors", "labels", "indices", "success", "clean_correct", "certified")}
        model, dataset = network(own, eid)
        images, labels = dataset[part == "test"]
        x, y = images[:N].astype(np.float32) / 16, labels[:N]
        np.testing.assert_array_equal(found["labels"], y)
        np.testing.assert_array_equal(found["indices"], np.arange(N))
        assert found["images"].dtype == np.float32 and found["images"].shape == x.shape
        assert found["images"].min() >= 0 and found["images"].max() <= 1
        wrong = model.logits(found["images"]).numpy().argmax(1) != y
        np.testing.assert_array_equal(found["success"], wrong)
        assert wrong.mean() > 0.9
        true = ((found["images"].astype(np.float64) - x) ** 2).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(found["errors"][wrong], true[wrong], rtol=1e-6, atol=1e-12)
        clean = model.logits(x).numpy().argmax(1) == y
        np.testing.assert_array_equal(found["clean_correct"], clean)
        assert (found["errors"][~clean] == 0).all() and (found["certified"][~clean] == 0).all()
        assert (found["certified"] <= np.sqrt(found["errors"])).all()
        assert (found["certified"][clean] > 0).all()


def test_the_summary_is_what_res_says(run):
    res, path = attack(run, "--attack_eps_list", "0.2,0.6")
    summary = json.loads((path / "summary.json").read_text())["8"]
    distance = np.sqrt(res[8]["errors"])
    assert summary["median"] == pytest.approx(np.median(distance))
    assert summary["mean"] == pytest.approx(distance[res[8]["success"]].mean())
    assert summary["success"] == res[8]["success"].mean()
    in_order = np.sort(distance)
    for percent, value in summary["tail"].items():
        assert value == in_order[max(math.ceil(len(distance) * float(percent) / 100) - 1, 0)]
    assert summary["certified_median"] == pytest.approx(np.median(res[8]["certified"]))
    for eps in (0.2, 0.6):
        assert summary["robust_acc"][str(eps)] == (distance > eps).mean()
    assert summary["q_bar_min"] == results.load(run)["raw"][8]["stats"]["q_bar_min"]
    assert "median" in (path / "stdout").read_text()


def test_linf_errors_are_the_smallest_eps_of_the_list_that_holds_the_example(run):
    res, _ = attack(run, attack_method="pgd", attack_K=10, attack_E=2, attack_eps_list=(0.05, 0.1, 0.3))
    _, dataset = network(run, 8)
    x = dataset[0][0][:N].astype(np.float32) / 16
    found = res[8]
    assert set(found["errors"]) <= {0.05, 0.1, 0.3, 1.0} and found["success"].any()
    assert (found["errors"][~found["success"]] == 1.0).all()
    reach = np.abs(found["images"] - x).max(axis=(1, 2, 3))
    assert (reach <= found["errors"] + 1e-6).all()


@pytest.mark.parametrize(
    "script",
    [
        {"attack_method": "cw", "attack_K": 20, "attack_search_steps": 3},
        {"attack_method": "cw", "attack_K": 60, "attack_target": "next", "attack_initial_const": 1.0},
        {"attack_method": "bim", "attack_K": 5, "attack_normalize_output": "max"},
        {"attack_method": "deepfool", "attack_K": 20, "attack_normalize_output": "max"},
        {"attack_method": "fmn"},
    ],
    ids=lambda script: script["attack_method"],
)
def test_every_method_runs_through_core(run, script):
    res, _ = attack(run, "--attack", "3,14,15", **script)
    np.testing.assert_array_equal(res[8]["indices"], [3, 14, 15])
    if script.get("attack_target") == "next":
        model, _ = network(run, 8)
        reached = model.logits(res[8]["images"]).numpy().argmax(1) == (res[8]["labels"] + 1) % 10
        np.testing.assert_array_equal(res[8]["success"], reached)


def test_a_stopped_attack_resumes_to_the_same_res(run, monkeypatch):
    whole, _ = attack(run, "--eid", "3,8")
    before, calls = certificate.certified, []

    def certified(*args):
        calls.append(1)
        return before(*args)

    def update(fraction):
        if len(calls) >= 4:  # of 3 blocks in each of 2 epochs
            raise Stopped(15)

    stopped = Core(prepare(run, "--eid", "3,8").context.flags, "eval-tiny", update)
    monkeypatch.setattr(certificate, "certified", certified)
    with pytest.raises(Stopped):
        stopped.run()
    path = max((run / "eval-tiny").glob("2*"), key=lambda p: (p.stat().st_ctime_ns, p.name))
    assert not (path / "res").exists() and (path / "eid-000003.npy").exists()
    assert f"./eval.sh eval-tiny --resume {path}" in (path / "stdout").read_text()
    done = np.load(path / "eid-000003.npy")["done"]
    assert done.any()
    calls.clear()
    monkeypatch.setattr(certificate, "certified", lambda *args: (calls.append(1), before(*args))[1])
    Core(of_command_line(["--resume", str(path)], DDN), "eval-tiny").run()
    assert len(calls) < 6  # what was done was not done again
    resumed = results.load(path)
    for eid in (3, 8):
        for key, value in whole[eid].items():
            np.testing.assert_array_equal(resumed[eid][key], value, err_msg=key)


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs an attack as its script does; checks exit status 2 and one line, which it returns."""

    def command(directory, *words, **script):
        words = [str(directory), "--gpu", "-1", "--eid", "last", "--attack_N", str(N), *words]
        monkeypatch.setattr(sys, "argv", ["eval-tiny.py", *words])
        monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            launch.main("eval-tiny.py", DDN | script, "An attack.")
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0]

    return command


def test_invalid_values_are_refused_in_one_line(own, tmp_path, refused):
    assert "no such directory" in refused(tmp_path / "nowhere")
    assert "flags.json" in refused(tmp_path)
    assert "--attack_N 0" in refused(own, "--attack_N", "0")
    assert "--attack_B 0" in refused(own, "--attack_B", "0")
    assert "--attack_indices -1" in refused(own, "--attack=-1")
    assert "deepfool" in refused(own, "--attack_method", "deepfol")
    assert "297" in refused(own, "--attack_set", "test", "--attack", "297", "--attack_N", "all")
    assert "300" in refused(own, "--attack_N", "301")
    message = refused(own, "--eid", "5")
    assert "3, 6, 8" in message and "5" in message
    assert "--eid 3,last: " in refused(own, "--eid", "3,last")
    assert "has digits; leave it out" in refused(own, "--dataset", "mnist")
    assert "aimed" in refused(own, "--attack_target", "next", attack_method="pgd")
    assert "10 classes" in refused(own, "--attack_target", "10")
    with pytest.raises(UserError, match="which run"):
        of_command_line([], DDN)
    assert not (own / "eval-tiny").exists()  # and nothing was left behind


def test_a_checkpoint_cut_short_anywhere_is_named_before_anything_is_attacked(own, refused):
    path = read.archive_path(own, 6)
    content = path.read_bytes()
    for length in (0, 10, 100, len(content) // 2, len(content) - 30, len(content) - 1):
        path.unlink()  # the current checkpoint may be the same file
        path.write_bytes(content[:length])
        message = refused(own, "--eid", "all")
        assert path.name in message and "damaged" in message
    assert not (own / "eval-tiny").exists()


def test_a_directory_of_seeds_says_where_the_runs_are(own, tmp_path, refused):
    shutil.copytree(own, tmp_path / "seeds" / "seed-3")
    shutil.copy(own / "flags.json", tmp_path / "seeds")
    shutil.copy(own / "about.json", tmp_path / "seeds")
    assert "seed-3" in refused(tmp_path / "seeds")


def test_an_attacks_directory_cannot_be_attacked(own, refused):
    attack(own)
    said = refused(own / "eval-tiny" / "latest")
    assert "left by the task attack, without networks; give a training run's directory" in said


def test_the_recorded_command_names_the_run_that_latest_was(own, monkeypatch):
    (own.parent / "latest").symlink_to(own.name)
    monkeypatch.chdir(own.parent)
    monkeypatch.setattr(sys, "argv", ["eval-tiny.py", "latest", "--eid", "latest/none", "latest run"])
    _, path = attack(own)
    command = results.read_about(path)["command"]
    assert command == f"eval-tiny.py {own.name} --eid latest/none 'latest run'"


def test_a_run_without_checkpoints_and_other_data_are_refused(own, refused):
    about = json.loads((own / "about.json").read_text())
    (own / "about.json").write_text(json.dumps(about | {"data": about["data"] | {"fingerprint": 1}}))
    assert "other data or labels" in refused(own)
    (own / "about.json").write_text(json.dumps(about))
    (own / "checkpoint.npz").unlink()
    shutil.rmtree(own / "archive")
    assert "no checkpoint" in refused(own)


@soak
def test_a_killed_attack_resumes_to_the_same_res(own):
    name = "eval-final-mnist-l2-ddn"
    script = [sys.executable, ROOT / f"{name}.py"]
    words = ["--attack_N", "120", "--attack_B", "8", "--attack_K", "300", "--eid", "8", "--gpu", "-1"]
    process = subprocess.Popen([*script, own, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def done():
        files = list((own / name).glob("2*/eid-000008.npy"))
        return int(np.load(files[0], mmap_mode="r")["done"].sum()) if files else 0

    while process.poll() is None and done() < 16:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = done()
    assert 16 <= before < 120
    path = (own / name / "latest").resolve()
    subprocess.run([*script, "--resume", path], check=True, stdout=subprocess.DEVNULL)
    resumed = results.load(path)
    whole, _ = attack(own, "--attack_B", "8", "--attack_N", "120", attack_K=300, attack_init_eps=1.0)
    for key, value in whole[8].items():
        np.testing.assert_array_equal(resumed[8][key], value, err_msg=key)


def test_a_resumed_attack_keeps_to_its_run_and_epochs(own, monkeypatch):
    """Whatever the flag that named the run, `latest` or seen from another folder, names by now."""
    stopping = prepare(own, "--eid", "last")
    calls = []

    def update(fraction):
        calls.append(fraction)
        if len(calls) > 2:  # its directory is there
            raise Stopped(2)

    stopping = Core(stopping.context.flags, "eval-tiny", update)
    with pytest.raises(Stopped):
        stopping.run()
    path = (own / "eval-tiny" / "latest").resolve()
    stored = json.loads((path / "flags.json").read_text())
    assert stored["eid"] == [8]
    (path / "flags.json").write_text(json.dumps(stored | {"load_dir": "/nowhere"}))
    Core(of_command_line(["--resume", str(path)], DDN), "eval-tiny").run()
    np.testing.assert_array_equal(results.load(path)[8]["images"], attack(own)[0][8]["images"])


def test_the_last_epoch_is_attacked_even_if_the_run_has_left_it_behind(own, monkeypatch):
    (own / "archive" / "eid-000008.npz").unlink(missing_ok=True)
    prepared = prepare(own, "--eid", "3,8")
    real = attack_run.AttackRun.attack_all

    def attack_all(self, workers):
        (own / "checkpoint.npz").unlink(missing_ok=True)  # as if the run had saved another epoch there
        return real(self, workers)

    monkeypatch.setattr(attack_run.AttackRun, "attack_all", attack_all)
    assert set(results.load(prepared.run())) == {3, 8}


def test_images_of_the_class_to_reach_are_not_counted(run):
    res, _ = attack(run, "--attack_target", "3")
    assert (res[8]["labels"] != 3).all() and (res[8]["certified"] <= np.sqrt(res[8]["errors"])).all()


@pytest.mark.parametrize("method", ["cw", "pgd", "bim", "deepfool", "ddn", "fmn"])
def test_every_attack_works_on_every_kind_of_network(coloured, method):
    """Three channels, batch norm, average pooling, normalized inputs and biases everywhere."""
    steps = {"cw": ["--attack_K", "100", "--attack_search_steps", "4", "--attack_initial_const", "1"]}
    words = steps.get(method, ["--attack_K", "20"])
    res, _ = attack(coloured, *words, attack_method=method, attack_K=None)
    (found,) = res.values()
    stored = flags.complete(results.read_flags(coloured))
    dataset = loading.load(stored["dataset"])
    model = build_network(stored["model"], dataset, 0)
    model.set_weights([array for _, array in results.load_weights(coloured)])
    (x, y), _ = dataset
    x = x[:N].astype(np.float32) / 255
    wrong = model.logits(found["images"]).numpy().argmax(1) != y[:N]
    np.testing.assert_array_equal(found["success"], wrong)
    assert wrong.mean() > 0.9 and found["images"].min() >= 0 and found["images"].max() <= 1
    np.testing.assert_array_equal(found["images"][~wrong], x[~wrong])
    if method == "pgd":
        assert np.isin(found["errors"], [*stored["attack_eps_list"], 1.0]).all()
    else:
        true = ((found["images"].astype(np.float64) - x) ** 2).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(found["errors"][wrong], true[wrong], rtol=1e-6, atol=1e-12)
        assert (found["certified"] <= np.sqrt(found["errors"])).all() and found["certified"].max() > 0


def test_an_example_that_is_not_misclassified_is_not_stored(run):
    res, _ = attack(run, attack_method="deepfool", attack_K=1)
    images = loading.load("digits", None, 300)[0][0][:N].astype(np.float32) / 16
    missed = ~res[8]["success"]
    assert missed.any() and np.isinf(res[8]["errors"][missed]).all()
    np.testing.assert_array_equal(res[8]["images"][missed], images[missed])


def test_a_disk_without_room_for_the_results_is_reported_at_the_start(own, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        attack(own)
    assert not [path.name for path in (own / "eval-tiny" / "latest").iterdir() if "npy" in path.name]


def test_settings_of_another_method_are_refused(run):
    with pytest.raises(UserError, match="--attack_E: ddn has no such setting"):
        prepare(run, "--attack_E", "5")
    prepare(run, "--attack_K", "5", "--seed", "3", "--attack_eps_list", "0.5")


def test_resuming_requires_the_same_attack_and_undamaged_records(own):
    _, path = attack(own)
    with pytest.raises(UserError, match="eval-tiny"):
        Core(of_command_line(["--resume", str(path)], DDN), "eval-other").run()
    (path / "res").unlink()
    (path / "eid-000008.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(UserError, match="damaged"):
        Core(of_command_line(["--resume", str(path)], DDN), "eval-tiny").run()


def test_every_eval_script_is_a_whole_set_of_flags(run):
    import runpy

    scripts = sorted(ROOT.glob("eval-final-*.py"))
    assert len(scripts) == 18
    for script in scripts:
        chosen = runpy.run_path(str(script))["flags"]
        full = of_command_line([str(run)], chosen)
        assert full["task"] == "attack" and full["dataset"] == "digits" and full["eid"] == [10000]
        assert full["attack_set"] == ("test" if "-test-" in script.stem else "train")
