"""Every experiment script, as it is, for a moment on its own data."""

import runpy

import numpy as np
import pytest
from builders import soak

import results
from core import Core
from storage.run_flags import of_command_line
from support.files import ROOT

PARAMETERS = {"exper-quick-separable-linear": 128, "exper-quick-digits-cnn": 291648}
PARAMETERS["exper-quick-digits-optimizers"] = 9 * 8 + 8 + 9 * 8 * 16 + 16 * 2 * 2 * 10


def one_epoch(name, tmp_path, *words):
    """The working directory of a script's first epoch."""
    script = runpy.run_path(str(ROOT / f"{name}.py"))
    words = [*words, "--E", "1", "--gpu", "-1", "--logs_dir", str(tmp_path / "logs")]
    path = Core(of_command_line(words, script["flags"]), name).run()
    raw = results.load(path)["raw"]
    assert list(raw) == [1] and np.isfinite(raw[1]["stats"]["q_bar_min"])
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("exper-quick-*.py")))
def test_quick_experiments_run_as_they_are(tmp_path, name):
    expected = next(count for start, count in PARAMETERS.items() if name.startswith(start))
    weights = results.load_weights(one_epoch(name, tmp_path), 1)
    assert sum(w.size for _, w in weights) == expected


FINAL = sorted(path.stem for path in ROOT.glob("exper-final-*.py"))
RARELY = [name for name in FINAL if "vgg" in name and name != "exper-final-cifar-biased-vgg-loss-based-lr"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=soak if name in RARELY else ()) for name in FINAL])
def test_final_experiments_run_on_their_own_data(tmp_path, name, real_data):
    one_epoch(name, tmp_path, "--data_dir", real_data, "--train_N", "100", "--test_N", "100", "--log_frame0", "3")
