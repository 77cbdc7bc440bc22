"""The reference trajectories, repeated (tests/golden.py)."""

import json
import sys

import golden
import pytest

from support.files import ROOT

# The reference updates all weights of a step at once in the first three, as this program does. The last one is of
# the published code as it is: its in-place update lets a lower layer's gradient read a weight that the same step has
# changed already. That file's wide tolerance shows how much the difference makes.
FILES = [
    "digits_const_lr_simultaneous.json",
    "digits_loss_based_lr_simultaneous.json",
    "digits_small_lr_simultaneous.json",
    "digits_const_lr.json",
]


@pytest.mark.parametrize("name", FILES)
def test_a_reference_trajectory_is_repeated_within_its_tolerance(name):
    file = json.loads((ROOT / "tests" / "golden" / name).read_text())
    assert golden.compare(file, golden.tolerances(file))


def test_tolerances_are_read_from_the_file():
    file = json.loads((ROOT / "tests" / "golden" / FILES[0]).read_text())
    assert golden.tolerances(file) == {"loss": 5e-4, "rho": 1e-6, "q_min": 5e-3}


def test_beyond_tolerance_is_exit_1_and_a_missing_file_is_exit_2(tmp_path, monkeypatch, capsys):
    file, path = json.loads((ROOT / "tests" / "golden" / FILES[1]).read_text()), tmp_path / "golden.json"
    path.write_text(json.dumps(file | {"attempts": file["attempts"][:2]}))
    monkeypatch.setattr(sys, "argv", ["golden.py", str(path), "--rtol_loss", "1e-12"])
    assert golden.main() == 1 and "BEYOND TOLERANCE: loss" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["golden.py", "nowhere.json"])
    assert golden.main() == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_trajectory_that_diverges_from_the_reference_is_detected():
    file = json.loads((ROOT / "tests" / "golden" / FILES[1]).read_text())
    file["attempts"][1]["eid"] = 1
    assert not golden.compare(file, golden.tolerances(file))
