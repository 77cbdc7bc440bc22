"""The notebooks run from top to bottom on fresh results, and carry no outputs in git."""

import importlib
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from builders import TINY
from nbclient import NotebookClient

from core import Core
from data import loading
from storage.run_flags import of_command_line
from support.files import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OURS = ("LOGS", "RUN", "OTHER", "ATTACK", "POINTS", "RADIUS")


def execute(name, **environment):
    """Run a notebook; returns all that it printed, and how many pictures it showed."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    env = {name: value for name, value in os.environ.items() if name not in OURS}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    client.execute(env=env | {name: str(value) for name, value in environment.items()})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], outputs
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    return printed, sum("image/png" in o.get("data", {}) for o in outputs)


def quick(tmp_path, name, **more):
    """A fresh run of a quick experiment, a few epochs on a tiny network."""
    script = importlib.import_module(name).flags
    small = {"E": 4, "train_N": 300, "B": 50, "gpu": -1, "logs_dir": str(tmp_path / "logs")}
    model = script["model"] | {"description": TINY}
    return Core(script | small | {"model": model} | more, name).run()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a quick run, another with a constant lr, an attack on the first)."""
    tmp_path = tmp_path_factory.mktemp("runs")
    run = quick(tmp_path, "exper-quick-digits-cnn-loss-based-lr")
    other = quick(tmp_path, "exper-quick-digits-cnn-const-lr-1")
    words = [str(run), "--eid", "last", "--attack_N", "30", "--attack_K", "20", "--gpu", "-1"]
    given = of_command_line(words, importlib.import_module("eval-final-mnist-l2-ddn").flags)
    return run, other, Core(given, "eval-final-mnist-l2-ddn").run()


def test_results_runs_from_top_to_bottom_and_finds_the_latest_runs_by_itself(runs):
    run, _, _ = runs
    printed, pictures = execute("results.ipynb", LOGS=run.parents[1], RUN=run)
    assert "4 epochs with lr" in printed and "q_bar2_min" in printed
    by_hand, recorded = (line.split(":")[1].split() for line in printed.splitlines()[-2:])
    assert "L2 of these:" in printed and by_hand == recorded
    assert printed.count("epoch 4: q_bar_min") == 2
    assert pictures == 2 + 1 + 3 + 3  # of the run, by hand, two runs, the attack with its examples


def test_linf_attacks_report_eps_and_images_by_their_levels(tmp_path):
    (x, y), (x_test, y_test) = loading.load("digits")
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test, "levels": 20}
    np.savez(tmp_path / "dark.npz", **arrays)  # its pixels are 16 at most
    run = quick(tmp_path, "exper-quick-digits-cnn-const-lr-1", dataset=str(tmp_path / "dark.npz"))
    words = [str(run), "--eid", "last", "--gpu", "-1", "--attack_N", "30", "--attack_K", "20"]
    words += ["--attack_E", "1", "--attack_eps_list", "0.125,0.25,0.5"]
    given = of_command_line(words, importlib.import_module("eval-final-mnist-inf").flags)
    Core(given, "eval-final-mnist-inf").run()
    # A relative path, and an attack that is below the run and not below the logs.
    where = {"PWD": tmp_path, "RUN": run.relative_to(tmp_path), "LOGS": tmp_path / "none", "OTHER": ""}
    printed, pictures = execute("results.ipynb", **where)
    sizes, recorded = (line.split(":")[1].split() for line in printed.splitlines()[-2:])
    assert "eps of these:" in printed and "L2" not in printed and pictures == 3 + 2
    assert sizes and set(recorded) <= {"0.125", "0.250", "0.500"}
    assert all(float(size) <= float(eps) for size, eps in zip(sizes, recorded, strict=True))


def test_results_needs_neither_a_second_run_nor_an_attack(runs):
    _, other, _ = runs
    printed, pictures = execute("results.ipynb", RUN=other, OTHER="", ATTACK="")
    assert "no second run" in printed and "no attack" in printed and pictures == 3


def test_testing_draws_the_surfaces_and_the_radii_of_a_fresh_run(tmp_path):
    common = {"dataset": "digits", "train_N": 300, "gpu": -1, "logs_dir": str(tmp_path)}
    script = importlib.import_module("train_mnist").flags
    run = Core(script | common | {"E": 1}, "train_mnist").run()
    for name, more in (("make_points_mnist", {"grid": 6}), ("measure_radius_mnist", {"directions": 2})):
        script = importlib.import_module(name).flags
        Core(script | {"load_dir": str(run), "gpu": -1} | more, name).run()
    printed, pictures = execute("testing.ipynb", LOGS=tmp_path)
    assert "digits, all params" in printed and pictures == 1 + 1 + 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_output_and_no_count_is_in_git(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not [c for c in code if c.outputs or c.execution_count is not None]
    assert str(Path.home()) not in path.read_text() and "widgets" not in notebook.metadata


def test_there_are_the_two_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["results.ipynb", "testing.ipynb"]
