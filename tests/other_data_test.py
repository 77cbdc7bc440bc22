"""Data of one's own: warnings, conversions, fingerprints, moved files (`data`, `engine.context`)."""

import re
import shutil

import numpy as np
import pytest
from builders import pixels

import export
from core import Core
from data import loading
from engine.context import Context
from storage import read
from support.errors import UserError


def test_pixels_far_below_their_range_cause_a_warning(tmp_path, logged):
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
def test_classes_without_an_example_cause_a_warning(tmp_path, logged, labels, says):
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
def test_missing_parts_of_a_data_file_are_reported_with_a_remedy(tmp_path, change, says):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 4
    path = pixels(tmp_path / "set.npz", x, y, **change(x, y))
    with pytest.raises(UserError) as error:
        loading.load(path)
    assert says in str(error.value) and "None" not in str(error.value)


def test_data_of_a_single_class_is_refused_from_every_source(tmp_path):
    for flags in ({"train_N": 1}, {"train_N": 1, "subset_seed": 3}):
        with pytest.raises(UserError, match="all 1 training examples are of class"):
            loading.load("digits", **flags)
    np.savez(tmp_path / "labels.npz", labels=np.full(1500, 3))
    with pytest.raises(UserError, match="all labels are 3"):
        Context({"dataset": "digits", "random_labels": str(tmp_path / "labels.npz")}).dataset  # noqa: B018


def test_other_levels_or_shapes_change_the_fingerprint(tmp_path, tiny_flags):
    path = pixels(tmp_path / "set.npz", n_classes=10)
    flags = tiny_flags | {"dataset": path, "train_N": "all", "B": 20, "E": 1, "log_frame0": 3.0}
    run = Core(flags).run()
    content = dict(np.load(path))
    for change in ({"levels": 255}, {}):  # the default
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
    assert export.main([str(run), "--to", "npz", "--dataset", "moved.npz"]) == 0
    pixels(tmp_path / "other.npz", n_classes=9)
    with pytest.raises(UserError, match="other data or labels"):
        Core({"resume": str(run), "E": 3, "dataset": str(tmp_path / "other.npz")}).run()
