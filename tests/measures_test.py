"""What an epoch records: the registry describes all of it, and --measure adds to it without changing the run."""

import math

import numpy as np
import pytest
from builders import tiny_run_flags
from core_test import assert_same_weights, without_times

import figures
import results
from catalogue.measures import INFO, describe
from core import Core
from training import measures

ASKED = ("margin_quantiles", "gradient_norm")
KEYS = {"q_1pct", "q_10pct", "q_50pct", "gradient_norm"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a loss-based run, the same with --measure): their working directories."""
    model = {"description": [["F", 16], ["F", 10, {"act": False}]], "init": {"weight": "he_normal"}}
    flags = tiny_run_flags(tmp_path_factory.mktemp("logs"), E=8, archive=5, model=model)
    return Core(flags).run(), Core(flags | {"measure": ASKED, "measure_every": 3}).run()


def test_every_number_of_an_epoch_is_described(runs):
    info = results.load(runs[1])["raw"][3]
    for key in info["stats"]:
        meaning, unit, _ = describe(key)
        assert meaning and unit and "{" not in meaning, key
    assert set(info) <= {*INFO, "stats"}
    assert describe("nothing") == ("", "", "")


def test_what_is_asked_for_is_recorded_at_every_nth_epoch_and_the_last_of_a_loss_based_run(runs):
    raw = results.load(runs[1])["raw"]
    assert [eid for eid in raw if set(raw[eid]["stats"]) >= KEYS] == [3, 6, 8]
    assert not [eid for eid in raw if eid not in (3, 6, 8) and KEYS & set(raw[eid]["stats"])]


def test_measuring_changes_nothing_of_the_run(runs):
    plain, measured = (without_times(results.load(path)["raw"]) for path in runs)
    for info in measured.values():
        for key in KEYS:
            info["stats"].pop(key, None)
    assert plain == measured
    assert_same_weights(*(results.load_weights(path) for path in runs))


def test_at_archived_epochs_it_is_recorded_there_only(tiny_flags):
    flags = tiny_flags | {"E": 5, "archive": 2, "measure": "margin_quantiles", "measure_every": "archived"}
    raw = results.load(Core(flags).run())["raw"]
    assert [eid for eid in raw if "q_50pct" in raw[eid]["stats"]] == [2, 4]


def test_the_numbers_are_what_brute_force_gives(tiny_flags):
    core = Core(tiny_flags | {"E": 2, "measure": ASKED, "measure_every": 1})
    stats = results.load(core.run())["raw"][2]["stats"]
    (x, y), _ = core.context.dataset
    model = core.context.model
    logits = model.logits(model.pixels(x)).numpy().astype(np.float64)
    others = np.where(np.arange(10) == y[:, None], -np.inf, logits)
    q = np.sort(logits[np.arange(len(y)), y] - others.max(axis=1))
    assert stats["q_50pct"] == pytest.approx((q[149] + q[150]) / 2, rel=1e-4)
    # Along its own direction, the gradient's norm is the loss's slope (central difference, in the frame).
    frame = math.exp(stats["log_loss"] - stats["log_frame"])  # the gradient is in the frame of its loss
    gradient = [frame * g for g in measures.Evaluation(core.context, stats["log_frame"]).gradient]
    norm = stats["gradient_norm"]
    assert norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradient)), rel=1e-12)
    before, losses = model.snapshot(), []
    for h in (-1e-3, 1e-3):
        model.set_weights([w.numpy() + h * g / norm for w, g in zip(before, gradient, strict=True)])
        losses.append(measures.Evaluation(core.context, stats["log_frame"]).loss)
    assert (losses[1] - losses[0]) / 2e-3 == pytest.approx(norm, rel=1e-2)


def test_a_run_with_measures_has_a_panel_for_each(runs):
    drawn = figures.build([runs[1]])
    names = [axes.get_ylabel().split(",")[0] for axes in drawn["measures"].axes if axes.lines]
    assert set(names) == KEYS
    assert "measures" not in figures.build([runs[0]])
