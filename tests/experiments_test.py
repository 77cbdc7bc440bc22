"""Every experiment script, as it is, for a moment on its own data."""

import json
import runpy

import numpy as np
import pytest
from commands_test import command
from conftest import ROOT

import flags
import results
from core import Core


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("exper-quick-*.py")))
def test_quick_experiments_run_as_they_are_for_two_epochs(tmp_path, name):
    done = command("run.sh", name, "--E", "2", "--figures", "false", "--logs_dir", str(tmp_path / "logs"))
    parameters = 128 if "linear" in name else 291648
    assert done.returncode == 0 and f"parameters: {parameters}\n" in done.stdout
    assert json.loads(((tmp_path / "logs" / name / "latest") / "flags.json").read_text())["E"] == 2


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("exper-final-*.py")))
def test_final_experiments_run_on_their_own_data(tmp_path, name, real_data):
    script = runpy.run_path(str(ROOT / f"{name}.py"))
    words = ["--data_dir", real_data, "--train_N", "100", "--E", "1", "--gpu", "-1", "--log_frame0", "3"]
    given = flags.command_line([*words, "--logs_dir", str(tmp_path / "logs")], script["flags"])
    raw = results.load(Core(given, name).run())["raw"]
    assert list(raw) == [1] and np.isfinite(raw[1]["stats"]["q_bar_min"])
