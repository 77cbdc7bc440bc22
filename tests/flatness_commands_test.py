"""The flatness experiments as commands: the whole chain, resuming, and users' mistakes."""

import importlib
import json
import os
import shutil

import numpy as np
import pytest
from builders import soak
from commands_test import assert_one_line, command

import flags as flag_table
import launch
import results
from core import Core
from flatness import published, radius
from flatness.run import spread
from storage import workdir
from support.errors import Stopped, UserError

LAST = ["F", 10, {"act": False}]
SMALL_VGG = [["C", 8, [3, 3], {"bn": True}], ["P"], ["C", 8, [3, 3], {"bn": True}], *([["P"]] * 4), LAST]


def run(script, tmp_path, model=None, **flags):
    """A script's task in this process; returns the working directory."""
    script_flags = importlib.import_module(script).flags
    flags = script_flags | {"logs_dir": str(tmp_path / "logs"), "gpu": -1} | flags
    if model:
        flags["model"] = flags["model"] | model
    return Core(flags, script).run()


def load(path):
    return results.load(path)["raw"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """train_mnist on digits, by ./run.sh, and all that measures it; {name: working directory}."""
    tmp_path = tmp_path_factory.mktemp("chain")
    words = ["--dataset", "digits", "--E", "5", "--logs_dir", str(tmp_path / "logs"), "--gpu", "-1"]
    done = command("run.sh", "train_mnist", *words, "--figures", "false")
    assert done.returncode == 0, done.stderr
    paths = {"train_mnist": (tmp_path / "logs" / "train_mnist" / "latest").resolve()}
    for name, flags in (
        ("measure_radius_mnist", {"directions": 2}),
        ("measure_radius_mnist_top", {"directions": 2}),
        ("make_points_mnist", {"grid": 6}),
    ):
        paths[name] = run(name, tmp_path, dataset="digits", **flags)
    return paths


def test_the_chain_goes_from_training_to_a_table_and_a_surface(chain, tmp_path):
    assert sorted(load(chain["train_mnist"])) == [0, 1, 2]
    assert all(info["eid"] == 5 for info in load(chain["train_mnist"]).values())
    assert load(chain["measure_radius_mnist"])["row"]["text"].startswith("digits, all params: ")
    arrays = [np.load(chain["make_points_mnist"] / f"{name}.npy") for name in "XYZ"]
    assert all(a.shape == (6, 6) for a in arrays) and np.isfinite(arrays[2]).all()
    for name, array in zip("XYZ", arrays, strict=True):
        assert (load(chain["make_points_mnist"])[name] == array).all()


def test_res_has_every_direction_the_profile_the_loss_and_the_row(chain):
    for name, step, params in (("measure_radius_mnist", 1.0, "all"), ("measure_radius_mnist_top", 0.2, "top")):
        raw = load(chain[name])
        assert sorted(raw["networks"]) == ["seed 0", "seed 1", "seed 2"]
        for found in raw["networks"].values():
            assert len(found["radii"]) == len(found["profiles"]) == 2
            for r, profile, end in zip(found["radii"], found["profiles"], found["ends"], strict=True):
                assert len(profile) == round(r / step) + 1 and profile[0] == found["I"]
                assert max(abs(np.array(profile) - found["I"])) < 0.05 <= abs(end - found["I"])
            assert found["mean"] == np.mean(found["radii"])
            assert found["mean_by_norm"] == pytest.approx(found["mean"] / found["norm"])
        assert raw["row"]["mean"] == np.mean([found["mean"] for found in raw["networks"].values()])
        assert results.read_flags(chain[name])["params"] == params


def test_the_plain_methods_give_the_same_table_and_surface(chain, tmp_path):
    source = {"load_dir": str(chain["train_mnist"])}
    plain = load(run("measure_radius_mnist", tmp_path, **source, method="plain", directions=2))
    for name, found in load(chain["measure_radius_mnist"])["networks"].items():
        assert found["radii"] == plain["networks"][name]["radii"]
    Z = load(run("make_points_mnist", tmp_path, **source, method="plain", grid=6))["Z"]
    np.testing.assert_allclose(load(chain["make_points_mnist"])["Z"], Z, rtol=1e-5)


def test_random_labels_are_made_once_and_their_runs_are_found_by_random(tmp_path):
    labels = str(tmp_path / "labels.npz")
    run("make_random_labels", tmp_path, dataset="digits", random_labels=labels)
    before = os.stat(labels).st_mtime_ns
    run("make_random_labels", tmp_path, dataset="digits", random_labels=labels)
    with pytest.raises(UserError, match=r"1500.* but digits has 200 training examples here"):
        run("make_random_labels", tmp_path, dataset="digits", random_labels=labels, train_N=200)
    assert os.stat(labels).st_mtime_ns == before
    trained = run("train_mnist_random", tmp_path, dataset="digits", random_labels=labels, E=1, seeds=(7,))
    measured = run("measure_radius_mnist", tmp_path, random=True, directions=1)
    assert measured.is_relative_to(trained)
    assert load(measured)["row"]["text"].startswith("digits, all params, random labels: ")
    measuring = Core({"task": "measure_radius", "load_dir": str(trained), "eid": "last"}, "m")
    with np.load(labels) as arrays:
        assert (measuring.context.dataset[0][1] == arrays["labels"]).all()
    np.savez(labels, labels=np.arange(1500, dtype=np.int32) % 10)
    with pytest.raises(UserError, match="other data or labels"):
        run("measure_radius_mnist", tmp_path, random=True, directions=1)


def copied(chain, tmp_path):
    return shutil.copytree(chain["train_mnist"], tmp_path / "copy", symlinks=True)


def test_measuring_two_of_three_seeds_is_a_one_line_error(chain, tmp_path):
    path = copied(chain, tmp_path)
    shutil.rmtree(path / "seed-2")
    for script in ("make_points_mnist", "measure_radius_mnist"):
        done = command("run.sh", script, str(path), "--gpu", "-1")
        assert_one_line(done, 2, "seed 2 has 0 of its 5 epochs", f"./run.sh train_mnist --resume {path}")


def test_networks_of_different_shapes_are_one_clear_line(chain, tmp_path):
    path = copied(chain, tmp_path)
    weights, state = results.load_checkpoint(path / "seed-1")
    workdir.WorkDir(path / "seed-1").save([(name, w[..., :8]) for name, w in weights], state)
    with pytest.raises(UserError, match=rf"{path}/seed-1: holds another network .*\(64, 800\).*\(64, 8\)"):
        run("make_points_mnist", tmp_path, load_dir=str(path))


def test_random_labels_of_another_length_than_the_data_are_a_one_line_error(tmp_path):
    labels = tmp_path / "labels.npz"
    np.savez(labels, labels=np.zeros(1499, np.int32))
    with pytest.raises(UserError, match=rf"^{labels}: .*\[1499\].*1500 training examples.*make_random_labels"):
        run("train_mnist_random", tmp_path, dataset="digits", random_labels=str(labels))
    assert not (tmp_path / "logs").exists()


def test_a_seed_that_is_not_trained_to_the_end_is_refused_and_resuming_finishes_it(tmp_path):
    small = {"dataset": "digits", "seeds": (4, 5), "train_N": 300}
    path = run("train_mnist", tmp_path, **small, E=1)
    flags = json.loads((path / "flags.json").read_text()) | {"E": 2}
    (path / "flags.json").write_text(json.dumps(flags))
    with pytest.raises(UserError, match="seed 4 has 1 of its 2 epochs"):
        run("measure_radius_mnist", tmp_path)
    run("train_mnist", tmp_path, **small, E=2, resume=str(path))
    straight = run("train_mnist", tmp_path, **small, E=2)
    for seed in small["seeds"]:
        for (_, a), (_, b) in zip(*(results.load_weights(p / f"seed-{seed}") for p in (path, straight)), strict=True):
            assert (a == b).all()


def test_seeds_trained_for_different_numbers_of_epochs_are_not_averaged(tmp_path):
    small = {"dataset": "digits", "seeds": (4, 5), "train_N": 300}
    path = run("train_mnist", tmp_path, **small, E=1, archive=1)
    seed = results.read_flags(path / "seed-4") | {"resume": str(path / "seed-4"), "E": 2}
    Core(seed, "train_mnist").run()
    with pytest.raises(UserError, match="seed 4 has 2 epochs, not 1"):
        run("measure_radius_mnist", tmp_path)
    raw = load(run("measure_radius_mnist", tmp_path, eid=[1], directions=1))
    assert list(raw["networks"]) == ["seed 4 epoch 1", "seed 5 epoch 1"]


def test_a_resumed_measurement_ignores_epochs_trained_since(tiny_flags, tmp_path):
    trained = Core(tiny_flags, "exper").run()
    measured = run("measure_radius", tmp_path, load_dir=str(trained), directions=1, step=0.2)
    Core(tiny_flags | {"resume": str(trained), "E": 5}, "exper").run()
    with pytest.raises(UserError, match="then epoch 4, now epoch 5; measure it again"):
        run("measure_radius", tmp_path, resume=str(measured), directions=1, step=0.2)


def test_a_resumed_measurement_measures_the_run_it_lies_in(chain, tmp_path):
    """Not what its flag load_dir, typed as .../latest or as seen from another folder, names by now."""
    measured = chain["measure_radius_mnist"]
    stored = results.read_flags(measured) | {"load_dir": str(tmp_path / "nowhere"), "resume": str(measured)}
    assert Core(stored, "measure_radius_mnist").context.f.load_dir == str(chain["train_mnist"])


def flags_of(script, **flags):
    return flag_table.complete(importlib.import_module(script).flags | flags)


@pytest.mark.parametrize("name", ["train_mnist", "train_mnist_random", "train_cifar", "train_cifar_random"])
def test_the_training_scripts_are_the_papers(name):
    assert published.is_papers_training(flags_of(name))
    for change in (
        *({"E": 5}, {"dataset": "digits"}, {"train_N": 200}, {"lr": 0.1}, {"drop_last": True}),
        *(
            {"seeds": (7, 8, 9)},
            {"seeds": (0, 1)},
            {"augment": "none", "B": 65},
            {"train_mode": "USE_FRAME", "stats_every": 1},
        ),
    ):
        assert not published.is_papers_training(flags_of(name, **change)), change


def test_the_published_radius_is_shown_for_the_papers_own_experiment_only():
    trained, top = flags_of("train_mnist"), flags_of("measure_radius_mnist_top")
    measured = flags_of("measure_radius_mnist")
    assert published.published_radius(trained, measured) == (13.9833, 0.1670)
    assert published.published_radius(trained | {"gpu": -1, "seeds": tuple(range(10))}, top) == (2.34, 0.1393)
    cifar = flags_of("train_cifar_random")
    assert published.published_radius(cifar, flags_of("measure_radius_cifar_top")) == (4.8333, 0.0471)
    for change in ({"threshold": 0.5}, {"normalize": "layer"}, {"eid": [1]}, {"radius_step": 0.2}):
        assert published.published_radius(trained, measured | change) is None
    assert published.published_radius(trained | {"drop_last": True}, measured) is None


@pytest.mark.parametrize(
    "script, words, says",
    [
        ("train_mnist", ["digits"], "unexpected word 'digits'"),
        ("measure_radius_mnist", ["run", "--train_N", "1000"], "--train_N: comes from the run"),
        ("make_points_mnist", ["--model.description", "MLP"], "--model.description: comes from the run"),
    ],
)
def test_flags_that_would_have_no_effect_are_refused(script, words, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [script, *words])
    with pytest.raises(SystemExit) as ended:
        launch.main(f"{script}.py", importlib.import_module(script).flags)
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_no_run_to_measure_another_data_set_or_no_networks_are_refused(chain, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no run of train_mnist_random .* \./run\.sh train_mnist_random"):
        run("measure_radius_mnist", tmp_path, random=True)
    with pytest.raises(UserError, match="has digits; leave it out"):
        run("measure_radius_mnist", tmp_path, load_dir=str(chain["train_mnist"]), dataset="mnist")
    with pytest.raises(UserError, match="give a training run's directory"):
        run("measure_radius_mnist", tmp_path, load_dir=str(chain["measure_radius_mnist"]))
    monkeypatch.setattr(radius, "MAX_STEPS", 1)
    with pytest.raises(UserError, match="1 steps of 1e-06"):
        run("measure_radius_mnist", tmp_path, load_dir=str(chain["train_mnist"]), radius_step=1e-6)


def test_a_stopped_measurement_resumes_where_it_was(chain, tmp_path, monkeypatch):
    source = {"load_dir": str(chain["train_mnist"]), "directions": 2}
    whole = load(chain["measure_radius_mnist"])
    real, walked = radius.FastWalks.walk, []

    def walk(self, *args):
        if len(walked) == 3:
            raise Stopped(2)
        walked.append(1)
        return real(self, *args)

    monkeypatch.setattr(radius.FastWalks, "walk", walk)
    with pytest.raises(Stopped):
        run("measure_radius_mnist", tmp_path, **source)
    path = (chain["train_mnist"] / "measure_radius_mnist" / "latest").resolve()
    with open(path / "journal.jsonl", "a") as file:
        file.write('{"part": 3, "radi')  # as a kill may leave it
    walked.clear()
    walked.append(0)
    walked.append(0)  # three more, and no more, may be walked
    monkeypatch.setattr(radius.FastWalks, "walk", lambda self, *args: walked.append(1) or real(self, *args))
    run("measure_radius_mnist", tmp_path, **source, resume=str(path))
    assert len(walked) == 2 + 3
    assert load(path) == whole


def test_runs_of_the_margin_paper_are_measured_epoch_by_epoch(tiny_flags, tmp_path):
    path = Core(tiny_flags | {"archive": 2}, "exper").run()
    raw = load(run("measure_radius", tmp_path, load_dir=str(path), eid=[2, 4], directions=2, step=0.2))
    assert list(raw["networks"]) == ["epoch 2", "epoch 4"]
    means = [found["mean"] for found in raw["networks"].values()]
    assert raw["row"]["text"].endswith(f": {means[0]:.4f} at epoch 2, {means[1]:.4f} at epoch 4")
    layerwise = run("measure_radius", tmp_path, load_dir=str(path), directions=1, step=0.2, normalize="layer")
    assert list(load(layerwise)["networks"]) == ["epoch 4"]
    found = load(run("measure_curvature", tmp_path, load_dir=str(path), eid="all", eigenvalues=2, probes=2))
    assert list(found) == ["epoch 2", "epoch 4"]
    for part in found.values():
        assert len(part["eigenvalues"]) == 2 and part["eigenvalues"][0] >= part["eigenvalues"][1]


@soak
def test_the_cifar_chain_runs_on_a_small_part_of_the_data(real_data, tmp_path):
    small = {"data_dir": real_data, "train_N": 200, "B": 50, "E": 2, "model": {"description": SMALL_VGG}}
    labels = str(tmp_path / "labels.npz")
    run("make_random_labels", tmp_path, dataset="cifar10", data_dir=real_data, train_N=200, random_labels=labels)
    for script, more in (("train_cifar", {}), ("train_cifar_random", {"random_labels": labels})):
        random = bool(more)
        trained = run(script, tmp_path, **small, **more)
        for name in ("measure_radius_cifar", "measure_radius_cifar_top"):
            row = load(run(name, tmp_path, random=random, directions=1))["row"]
            assert row["mean"] >= 0 and row["published"] is None  # two epochs are not the paper's experiment
        points = run("make_points_cifar_random" if random else "make_points_cifar", tmp_path, grid=3)
        assert points.is_relative_to(trained) and np.load(points / "Z.npy").shape == (3, 3)


@soak
def test_the_same_seed_trains_the_same_network_crops_and_all(real_data, tmp_path):
    small = {"data_dir": real_data, "train_N": 100, "B": 50, "E": 1, "model": {"description": SMALL_VGG}}
    a, b, plain = (
        results.load_weights(run("train_cifar", tmp_path, **small, seeds=(3,), augment=augment) / "seed-3")
        for augment in ("crop-flip", "crop-flip", "none")
    )
    assert all((x == y).all() for (_, x), (_, y) in zip(a, b, strict=True))
    assert any((x != y).any() for (_, x), (_, y) in zip(a, plain, strict=True))


def test_a_rows_range_leaves_out_losses_that_are_not_finite():
    row = np.array([np.nan, 0.5, 2.0, np.inf])
    assert [spread(part) for part in (row, row[1:3], row[:1])] == [
        "from 0.5 to 2, 2 not finite",
        "from 0.5 to 2",
        "without a finite one",
    ]
