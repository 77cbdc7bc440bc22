"""Directories of earlier versions (`storage.migrate`)."""

import math

import numpy as np
import pytest

import flags as flag_table
import results
from models import margins
from storage import workdir


def test_a_deep_relu2_network_whose_powers_leave_float64_has_no_smoothed_margin_and_raises_nothing():
    rho_k = [50.0] + [1.0] * 7
    norms = {"rho": 51.0, "rhoL": 51.0**129, "norm_prod": 1e200} | {f"rho_{k}": r for k, r in enumerate(rho_k)}
    found = margins.smoothed_stats(-20.0, 100, norms, [2 ** (7 - k) for k in range(8)])  # of order 255
    assert math.isnan(found["smoothed_q_bar"]) and math.isnan(found["smoothed_q_bar2"])
    assert 0 < found["balance"] < 1


@pytest.mark.parametrize("n_layers", [2, 3, 4])
def test_an_older_run_with_relu2_has_no_smoothed_margin_over_a_norm_of_another_order(n_layers, tmp_path):
    rho_k = [2.0, 3.0, 1.5, 0.7][:n_layers]
    stats = margins.norms([[np.array([r])] for r in rho_k], "relu2") | {"log_loss": -20.0}
    path = tmp_path / "run"
    path.mkdir()
    written = workdir.WorkDir(path)
    layers = [["F", 5]] * (n_layers - 1) + [["F", 5, {"act": False}]]
    model = {"description": layers, "act_type": "relu2"}
    written.write_json("flags.json", flag_table.complete({"dataset": "digits", "model": model}))
    written.write_json("about.json", {"data": {"train": 100}})
    written.write_res({"flags": {}, "raw": {1: {"eid": 1, "stats": stats}}})
    found = results.load(path)["raw"][1]["stats"]
    g = margins.smoothed_margin(-20.0, 100)
    assert found["smoothed_q_bar2"] == pytest.approx(g / stats["norm_prod"])
    assert math.isnan(found["smoothed_q_bar"]) == (n_layers > 2)
