"""Figures of training runs: the curves are the recorded numbers (`reporting.training`)."""

import math

import numpy as np
import pytest
from builders import curves, loss_margin, work_dir

import figures
import results
from bench.figures import made_up
from flags import complete
from flags.table import flatten
from reporting import style, training
from reporting.page import spoken
from reporting.runs import Run
from reporting.tables import Entry
from storage import workdir


def test_the_curve_at_an_epoch_is_that_epochs_log_loss_over_ln_10(made_up_run, drawn):
    raw = results.load(made_up_run)["raw"]
    left, right = drawn["loss_margin"].axes
    (loss,), (margin,) = curves(left), curves(right)
    assert loss[:, 0].tolist() == margin[:, 0].tolist() == list(range(1, 121))
    np.testing.assert_allclose(loss[:, 1], [raw[e]["stats"]["log_loss"] / math.log(10) for e in raw])
    assert margin[:, 1].tolist() == [raw[e]["stats"]["q_bar_min"] for e in raw]


def test_a_loss_of_1e_minus_800_is_a_point_on_the_axis(drawn):
    axes = drawn["loss_margin"].axes[0]
    (loss,) = curves(axes)
    low, high = axes.get_ylim()
    assert loss[-1, 1] == pytest.approx(-800, abs=1) and low < loss[-1, 1] < high


def test_both_margins_are_drawn_against_epoch_and_against_log_loss(made_up_run, drawn):
    raw = results.load(made_up_run)["raw"]
    axes = np.reshape(drawn["margins"].axes, (2, 2))
    for row, name in zip(axes, ("q_bar_min", "q_bar2_min"), strict=True):
        against_epoch, against_loss = curves(row[0])[0], curves(row[1])[0]
        for points in (against_epoch, against_loss):
            assert points[:, 1].tolist() == [raw[e]["stats"][name] for e in raw]
        assert against_epoch[-1, 0] == 120
        assert against_loss[-1, 0] == pytest.approx(raw[120]["stats"]["log_loss"] / math.log(10))


def test_the_margins_axis_shows_its_rise_from_zero_and_not_the_depth_before(drawn):
    axes = drawn["loss_margin"].axes[1]
    (margin,) = curves(axes)
    low, high = axes.get_ylim()
    assert margin[0, 1] < 0 < margin[-1, 1] < high and -0.1 * high < low < 0


def test_accuracies_norms_lr_and_attempts_are_those_of_the_run(made_up_run, drawn):
    raw = results.load(made_up_run)["raw"]

    def column(name):
        return [raw[e]["stats"][name] for e in raw]

    training, test = (curves(axes)[0][:, 1] for axes in drawn["accuracy"].axes)
    np.testing.assert_allclose(training, 100 * np.array(column("acc")))
    np.testing.assert_allclose(test, 100 * np.array(column("test_acc")))
    for layer, points in enumerate(curves(drawn["norms"].axes[0])):
        assert points[:, 1].tolist() == column(f"rho_{layer}")
    relative, true, attempts, _ = (curves(axes)[0] for axes in drawn["steps"].axes)
    assert relative[:, 1].tolist() == [raw[e]["lr"] for e in raw]
    last = raw[120]
    assert true[-1, 1] == pytest.approx(math.log10(last["lr"]) - last["log_frame"] / math.log(10))
    in_the_middle = np.mean([raw[e]["stats"]["attempts"] for e in (59, 60)])
    assert attempts[59, 1] == pytest.approx(in_the_middle)  # 120 epochs: a running mean of 2


def test_epochs_without_all_stats_are_left_out_of_the_other_curves_only(made_up_run, tmp_path):
    raw = results.load(made_up_run)["raw"]
    for eid, info in raw.items():
        if eid % 10:
            info["stats"] = {name: info["stats"][name] for name in ("loss", "log_loss", "attempts")}
    work_dir(tmp_path / "sparse", {}, {"flags": {}, "raw": raw})
    loss, margin = (curves(axes)[0] for axes in loss_margin([tmp_path / "sparse"]).axes)
    assert len(loss) == 120 and margin[:, 0].tolist() == list(range(10, 121, 10))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_of_an_epoch_or_two_and_never_fitted_is_drawn(drawn, tmp_path, epochs):
    assert set(figures.build([made_up(tmp_path / "run", epochs, reach=0.1)])) == set(drawn)


def test_a_curve_of_a_single_point_can_be_seen(drawn, tmp_path):
    for name, figure in figures.build([made_up(tmp_path / "run", 1, reach=0.1)]).items():
        for axes in (panel for panel in figure.axes if panel.axison):
            assert any(len(line.get_xdata()) == 1 and line.get_marker() == "o" for line in axes.lines), name
            ticks = [text.get_text() for text in axes.get_xticklabels()]
            assert all(len(tick) <= 5 for tick in ticks), ticks
    assert not any(line.get_marker() == "o" for f in drawn.values() for a in f.axes for line in a.lines)


def test_a_curve_that_lies_below_the_margins_axis_is_named_there(tmp_path):
    well = made_up(tmp_path / "a" / "run", 50, reach=8)
    badly = made_up(tmp_path / "b" / "run", 50, reach=0.1, lr=0.01)
    figure = loss_margin([well, badly])
    (said,) = [text.get_text() for text in figure.axes[1].texts]
    assert said.startswith("below what is shown: lr 0.01")
    assert not figure.axes[0].texts and not loss_margin([well]).axes[1].texts


def test_a_run_still_under_way_is_drawn_from_its_journal(made_up_run, tmp_path):
    path = work_dir(tmp_path / "run", {}, None)
    written = workdir.WorkDir(path)
    for info in list(results.load(made_up_run)["raw"].values())[:7]:
        written.append(info)
    (points,) = curves(loss_margin([path]).axes[0])
    assert len(points) == 7


def test_axes_of_many_decades_have_plain_ticks(long_drawn):
    figure = long_drawn["margins"]
    against_epoch, against_loss = ([text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes[2:])
    assert [style.in_powers(v, False) for v in (1e-6, 5e-7, 1.0, 2e3, 1e5)] == [
        "10⁻⁶",
        "5×10⁻⁷",
        "10⁰",
        "2×10³",
        "10⁵",
    ]
    assert [style.in_powers(v, True) for v in (0.001, 0.05, 1.0, 2000.0, 1e4)] == [
        "0.001",
        "0.05",
        "1",
        "2000",
        "10000",
    ]
    assert {"1", "10", "100", "1000", "10000"} <= set(against_epoch)
    assert {"0", "−1", "−10", "−100", "−300"} < set(against_loss)


def test_the_axes_of_margins_are_formulas_that_matplotlib_parses_and_a_screen_reader_says(drawn):
    labels = [axes.yaxis.label for axes in (drawn["loss_margin"].axes[1], *drawn["margins"].axes[::2])]
    formulas = (r"\rho^L", r"\rho^L", r"\rho_1 \cdots \rho_L")
    for label, formula in zip(labels, formulas, strict=True):
        assert formula in label.get_text() and label.get_parse_math()
        assert spoken(label.get_text()).startswith("normalized margin q_min / ")
    for text in style.FORMULAS:
        style.blank(1, 1, "").text(0, 0, text, parse_math=True).get_window_extent()  # an error in a formula raises


def test_curves_that_coincide_are_named_below_the_panel(tmp_path):
    res = results.load(made_up(tmp_path / "made", 30))
    a, b = (work_dir(tmp_path / name, {"lr": lr}, res) for name, lr in (("a", 0.01), ("b", 0.02)))
    figure = figures.build([a, b])["loss_margin"]
    assert figure.axes[0].get_xlabel() == "epoch\n(the curves of lr 0.01 and lr 0.02 coincide)"
    (own,) = figures.build([a])["loss_margin"].axes[:1]
    assert own.get_xlabel() == "epoch"


def test_what_reads_like_a_formula_in_a_name_is_only_a_name(made_up_run, tmp_path):
    path = work_dir(tmp_path / "run", {"dataset": "/data/$x^{_$.npz"}, results.load(made_up_run))
    figure = loss_margin([path])
    assert figure.get_suptitle().startswith("$x^{_$, ")


def test_the_smoothed_margins_lie_in_their_band(tmp_path):
    path = made_up(tmp_path / "run", 120)
    n, n_classes = (results.read_about(path)["data"][key] for key in ("train", "classes"))
    stats = [info["stats"] for info in results.load(path)["raw"].values()]
    drawn = figures.build([path])["margins"]
    panel = drawn.axes[0]
    shown = [line.get_ydata() for line in panel.lines if line.get_linewidth() == 0.5]
    expected = [s["smoothed_q_bar"] for s in stats if math.isfinite(s["smoothed_q_bar"])]
    np.testing.assert_array_equal(shown[0], expected)
    (band,) = panel.collections
    lowest = [
        (s["q_min"] - math.log(n * (n_classes - 1)) - n * math.exp(s["log_loss"])) / s["rhoL"]
        for s in stats
        if math.isfinite(s["smoothed_q_bar"])
    ]
    corners = band.get_paths()[0].vertices
    assert min(lowest) == pytest.approx(corners[:, 1].min(), rel=1e-9)


def compared(tmp_path, **margins):
    """Report entries of runs, {name: [(log10 loss, margin in L2, in L-infinity, in the spectral norm), ...]}."""
    entries = []
    for k, (name, epochs) in enumerate(margins.items()):
        raw = {}
        for eid, (log10_loss, l2, linf, spectral) in enumerate(epochs, 1):
            stats = {"log_loss": log10_loss * math.log(10), "q_bar_min": l2}
            stats |= {"q_bar_linf": linf, "q_bar_spectral": spectral} if linf else {}
            raw[eid] = {"eid": eid, "stats": stats}
        entries.append(Entry(k, Run(tmp_path, flatten(complete({"dataset": "digits"})), raw, label=name)))
    return entries


def test_margins_by_norm_are_compared_at_the_lowest_loss_that_all_runs_reach(tmp_path):
    sign = [(-1, -0.1, -1.0, -0.1), (-5, 0.1, 1.5, 0.2), (-6, 0.3, 0, 0), (-8, 0.4, 2.0, 0.3)]
    muon = [(-1, 0.1, 0.2, 0.2), (-6.5, 0.8, 0.5, 0.6)]
    other = [(-9, 0.5, 0, 0)]  # without --measure norm_margins
    entries = compared(tmp_path, sign=sign, muon=muon, other=other)
    (table,) = training.norm_margin_table(entries)
    assert [row[1].text for row in table.rows] == ["4", "2"]
    assert [["".join(getattr(c, "text", c) for c in cell) for cell in row[3:]] for row in table.rows] == [
        ["0.4 (50%)", "2 (100%)", "0.3 (50%)"],
        ["0.8 (100%)", "0.5 (25%)", "0.6 (100%)"],
    ]
    assert training.norm_margin_table(compared(tmp_path, other=other)) == []


def test_the_figure_of_margins_by_norm_has_a_panel_for_each_norm_against_the_loss(tmp_path):
    sign = [(-1, -0.1, -1.0, -0.1), (-5, 0.1, 1.5, 0.2), (-8, 0.4, 2.0, 0.3)]
    figure = training.norm_margins([entry.run for entry in compared(tmp_path, sign=sign, other=[(-9, 0.5, 0, 0)])])
    panels = [[line.get_xydata() for line in panel.lines if line.get_label() == "sign"] for panel in figure.axes]
    assert [len(panel) for panel in panels] == [1, 1, 1]
    for panel, column in zip(panels, (1, 2, 3), strict=True):
        np.testing.assert_allclose(panel[0], [(epoch[0], epoch[column]) for epoch in sign])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_course_of_a_margin_is_what_counting_gives(seed):
    values = np.exp(np.cumsum(np.random.default_rng(seed).normal(0.01, 0.05, 321)))
    found = training.course(values)
    falls = [values[k + 1] / values[k] - 1 for k in range(320)]
    assert (found["steps"], found["dips"]) == (320, sum(f < 0 for f in falls))
    assert found["worst_dip"] == pytest.approx(-min(falls))
    windows = [values[k + 50] / values[k] - 1 for k in range(0, 271, 50)]
    assert (found["windows"], found["window_dips"]) == (6, sum(w < 0 for w in windows))
    assert found["drawdown"] == pytest.approx(max(1 - values[k] / values[: k + 1].max() for k in range(321)))
    rising = training.course(np.arange(1.0, 60))
    assert (rising["dips"], rising["worst_dip"], rising["drawdown"]) == (0, 0, 0)
