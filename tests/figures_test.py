"""Figures: what is drawn is what was measured, readable in print, and mistakes are one line."""

import importlib
import itertools
import json
import math
import shutil
import sys

import matplotlib
import numpy as np
import pytest
from conftest import soak
from scipy import ndimage

import figures
import flags
import launch
import results
from bench import figures as bench
from bench.figures import made_up
from catalogue.attacks import METHODS
from core import Core
from reporting import attacks, drawing, flatness, kinds, paper, runs, style, training
from reporting.landscape import smoothed
from support.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A made-up run of 120 epochs, its last loss 1e-800."""
    return made_up(tmp_path_factory.mktemp("runs") / "run", 120)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("runs") / "run", 10_000)


@pytest.fixture(scope="module")
def long_drawn(long_run):
    return figures.build([long_run])


@pytest.fixture(scope="module")
def drawn(run):
    """{name: Figure} of the run."""
    return figures.build([run])


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    return figures.draw([run], tmp_path_factory.mktemp("drawn"))


def loss_margin(directories):
    """That figure of training runs, without the time that the others take."""
    labelled = runs.label(figures.read(directories))
    with matplotlib.rc_context(style.STYLE):
        figure = training.loss_margin(labelled)
        style.finish(figure)
    return figure


def curves(axes):
    """Its curves' points, without the lines that only mark a value."""
    return [line.get_xydata() for line in axes.lines if line.get_transform() == axes.transData]


def work_dir(path, flat, res, **files):
    """A working directory with these results."""
    path.mkdir(parents=True)
    written = results.WorkDir(path)
    written.write_json("flags.json", flags.complete({"dataset": "digits"} | flat))
    if res is not None:
        written.write_res(res)
    return path


def an_attack(path, distances, clean_correct=None, success=None, method="ddn", **flat):
    """An attack's directory: {eid: distances of its images (for pgd its smallest eps)}."""
    res = {}
    for eid, found in distances.items():
        found = np.asarray(found, np.float64)
        everything = np.ones(len(found), bool)
        res[eid] = {
            "errors": found if method == "pgd" else found**2,
            "success": everything if success is None else np.array(success),
            "clean_correct": everything if clean_correct is None else np.array(clean_correct),
        }
    return work_dir(path, {"task": "attack", "attack_method": method} | flat, res)


# Training: the curves are the numbers


def test_the_curve_at_an_epoch_is_that_epochs_log_loss_over_ln_10(run, drawn):
    raw = results.load(run)["raw"]
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


def test_both_margins_are_drawn_against_epoch_and_against_log_loss(run, drawn):
    raw = results.load(run)["raw"]
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


def test_accuracies_norms_lr_and_attempts_are_those_of_the_run(run, drawn):
    raw = results.load(run)["raw"]

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


def test_epochs_without_all_stats_are_left_out_of_the_other_curves_only(run, tmp_path):
    raw = results.load(run)["raw"]
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


def test_a_run_still_under_way_is_drawn_from_its_journal(run, tmp_path):
    path = work_dir(tmp_path / "run", {}, None)
    written = results.WorkDir(path)
    for info in list(results.load(run)["raw"].values())[:7]:
        written.append(info)
    (points,) = curves(loss_margin([path]).axes[0])
    assert len(points) == 7


def test_axes_of_many_decades_have_plain_ticks(long_drawn):
    figure = long_drawn["margins"]
    against_epoch, against_loss = ([text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes[2:])
    assert [style.power_of_ten(e) for e in (-6, -2, 0, 3, 5)] == ["10⁻⁶", "0.01", "1", "1000", "10⁵"]
    assert {"1", "10", "100", "1000"} < set(against_epoch)
    assert {"0", "−1", "−10", "−100", "−300"} < set(against_loss)


def test_the_axes_of_margins_name_their_keys_in_res(drawn):
    shown = [axes.get_ylabel() for axes in (drawn["loss_margin"].axes[1], *drawn["margins"].axes[::2])]
    for name, words in zip(("q_bar_min", "q_bar_min", "q_bar2_min"), shown, strict=True):
        assert f"{name} = " in words


def test_what_reads_like_a_formula_in_a_name_is_only_a_name(run, tmp_path):
    path = work_dir(tmp_path / "run", {"dataset": "/data/$x^{_$.npz"}, results.load(run))
    figure = loss_margin([path])
    assert figure.get_suptitle().startswith("$x^{_$, ")


# Several runs


def test_runs_are_overlaid_and_the_legend_says_in_which_flags_they_differ(tmp_path):
    paths = [
        made_up(tmp_path / "a", 20),
        made_up(tmp_path / "b", 20, lr=0.01, gpu=-1),
        made_up(tmp_path / "c", 20, lr=0.01, model={"bias_mode": "ALL"}, checkpoint_every=3.0),
    ]
    figure = loss_margin(paths)
    assert len(curves(figure.axes[0])) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "loss-based lr, bias in first layer",
        "lr 0.01, bias in first layer",
        "lr 0.01, bias in all layers",
    ]
    assert legend.get_title().get_text() == "digits"


def lr(first):
    return {"lr": ("loss-based-v1", first)}


@pytest.mark.parametrize(
    "made, says",
    [
        ({"run-0": {"seed": 0}, "run-1": {"seed": 1}}, ["seed 0", "seed 1"]),
        ({"run-0": {"E": 20}, "run-1": {"E": 30}}, ["E 20", "E 30"]),
        ({"run-0": {"attack_abort": "image", "lr": 0.1}, "run-1": {"lr": 0.2}}, ["lr 0.1", "lr 0.2"]),
        ({"run-0": {}, "run-1": {"random_labels": "default"}}, ["natural labels", "random labels"]),
        (
            {"run-0": lr(0.1), "run-1": lr(0.2)},
            ["loss-based lr, lr loss-based-v1,0.1", "loss-based lr, lr loss-based-v1,0.2"],
        ),
        (
            {"a": lr(0.1), "b": lr(0.1), "c": lr(0.2)},
            [f"loss-based lr, lr loss-based-v1,{rest}" for rest in ("0.1, a", "0.1, b", "0.2")],
        ),
        ({"run-0": {}, "run-1": {}}, ["run-0", "run-1"]),
        (
            {f"logs/{of}/1/seed-{seed}": {"seed": seed} for of in "ab" for seed in (0, 1)},
            ["seed 0, a", "seed 1, a", "seed 0, b", "seed 1, b"],
        ),
        (
            {
                "cw": {"task": "attack", "attack_search_steps": 9, "attack_initial_const": 0.001},
                "ddn": {"task": "attack", "attack_method": "ddn", "attack_K": 1000},
            },
            ["cw, search_steps 9, initial_const 0.001", "ddn, K 1000"],
        ),
        ({"run-0": {"task": "attack"}, "run-1": {"task": "attack", "attack_K": 10}}, ["default K", "K 10"]),
        ({"only": {}}, [""]),
    ],
)  # fmt: skip
def test_labels_are_short_and_never_the_same(tmp_path, made, says):
    paths = [work_dir(tmp_path / name, own, None) for name, own in made.items()]
    labelled = runs.label([kinds._run(path) for path in paths])
    assert [run.label for run in labelled] == says


def test_runs_that_differ_in_many_flags_are_named_after_their_experiments(tmp_path):
    mlp = {"model": {"description": "MLP", "bias_mode": "ALL"}, "lr": 0.01, "B": 64}
    made = {"cnn": {}, "mlp/3": mlp | {"seed": 3}, "mlp/4": mlp | {"seed": 4}}
    paths = [work_dir(tmp_path / name, own, None) for name, own in made.items()]
    for path, name in zip(paths, ("exper-cnn", "train_mlp", "train_mlp"), strict=True):
        results.WorkDir(path).write_json("about.json", {"experiment": name})
    labelled = runs.label([kinds._run(path) for path in paths])
    assert [run.label for run in labelled] == ["exper-cnn", "train_mlp, seed 3", "train_mlp, seed 4"]
    of_one = runs.label([run for run in labelled if run.experiment == "train_mlp"])
    assert [run.label for run in of_one] == ["seed 3", "seed 4"]


def test_an_architecture_has_its_name_and_another_its_layers():
    description = flags.complete({"model": {"description": "VGG16_BN"}})["model"]["description"]
    assert runs.network(json.loads(json.dumps(description))) == "VGG16_BN"
    assert runs.network([["C", 8, [3, 3]], ["P"], ["F", 10, {"act": False}]]) == "C8 P F10"


def test_a_run_of_several_seeds_is_a_curve_a_seed(run, tmp_path):
    whole = work_dir(tmp_path / "whole", {"task": "train_seeds", "seeds": (3, 5)}, None)
    for seed in (3, 5):
        work_dir(whole / f"seed-{seed}", {"seed": seed}, results.load(run))
    # One of the seeds given by itself as well is still one run.
    figure = loss_margin([whole, whole / "seed-3"])
    assert len(curves(figure.axes[0])) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 3", "seed 5"]


def test_kinds_can_be_mixed_and_a_directory_given_twice_counts_once(run, tmp_path):
    attack = an_attack(tmp_path / "attack", {3: [0.5, 0.7, 0.9]})
    built = figures.build([run, attack, run])
    assert {"loss_margin", "attack_l2"} < set(built)
    assert len(curves(built["loss_margin"].axes[0])) == 1


# Attacks


def test_robust_accuracy_falls_at_each_distance_and_starts_at_the_clean_accuracy(tmp_path):
    attack = an_attack(
        tmp_path / "attack",
        {10: [0.5, 0.2, 0.9, 0.4, np.inf], 300: [0.6, 0.3, 1.0, 0.5, np.inf]},
        clean_correct=[True, True, True, False, True],
        success=[True, True, True, True, False],
    )
    figure = figures.build([attack])["attack_l2"]
    first, last = curves(figure.axes[1])
    np.testing.assert_allclose(first[:-1], [[0, 80], [0.2, 60], [0.5, 40], [0.9, 20]])
    np.testing.assert_allclose(last[:-1, 0], [0, 0.3, 0.6, 1.0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["epoch 10", "epoch 300"]


def test_a_curve_of_robust_accuracy_goes_on_to_the_panels_edge_also_when_nothing_was_found(tmp_path):
    some = an_attack(tmp_path / "some", {10: [0.2, 0.4], 20: [2.0, 3.0]})
    none = an_attack(tmp_path / "none", {10: [np.inf] * 4}, success=[False] * 4)
    for attack, heights in ((some, [0, 0]), (none, [100])):
        axes = figures.build([attack])["attack_l2"].axes[1]
        for points, height in zip(curves(axes), heights, strict=True):
            assert points[-1].tolist() == [axes.get_xlim()[1], height] and points[0].tolist() == [0, 100]


def test_robust_accuracy_agrees_with_the_attacks_own_summary(tmp_path):
    from attacks import measurement

    rng = np.random.default_rng(0)
    n = 200
    distance, right, found = rng.gamma(4, 0.3, n), rng.random(n) < 0.9, rng.random(n) < 0.8
    records = {
        "error": np.where(found, distance**2, np.inf),
        "clean_correct": right,
        "success": found,
        "certified": np.zeros(n),
    }

    class Records(dict):
        def __len__(self):
            return n

    eps_list = (0.5, 1.0, 1.5, 2.0)
    said = measurement.summary(Records(records), eps_list, METHODS["ddn"])["robust_acc"]
    res = {"errors": records["error"], "clean_correct": right, "success": found}
    eps, robust = attacks.robust_accuracy(res, METHODS["ddn"])
    for e in eps_list:
        assert robust[np.searchsorted(eps, e, side="right") - 1] == pytest.approx(100 * said[str(e)])


def test_the_histogram_counts_every_attacked_image_that_was_classified_right(tmp_path):
    distances = np.linspace(0.1, 1.0, 400)
    attack = an_attack(tmp_path / "attack", {5: distances}, clean_correct=np.arange(400) >= 100)
    (stairs,) = figures.build([attack])["attack_l2"].axes[0].patches
    data = stairs.get_data()
    assert (data.values * np.diff(data.edges)).sum() == pytest.approx(1, abs=0.01)
    assert data.values[data.edges[1:] < distances[100]].sum() == 0


def test_an_l_infinity_attack_is_drawn_over_its_list_of_eps(tmp_path):
    attack = an_attack(
        tmp_path / "attack",
        {10: [0.1, 0.1, 0.2, 1.0]},
        success=[True, True, True, False],
        method="pgd",
        attack_eps_list=(0.1, 0.2, 0.3),
    )
    fallen, robust = (curves(axes)[0] for axes in figures.build([attack])["attack_grid"].axes)
    np.testing.assert_allclose(fallen, [[0.1, 50], [0.2, 25], [0.3, 0]])
    np.testing.assert_allclose(robust, [[0, 100], [0.1, 50], [0.2, 25], [0.3, 25]])


def test_many_epochs_have_curves_from_dark_to_light_and_a_short_legend(tmp_path):
    attack = an_attack(tmp_path / "attack", {eid: [0.1 * eid, 0.2] for eid in range(1, 31)})
    figure = figures.build([attack])["attack_l2"]
    lines = figure.axes[1].lines
    brightness = [sum(line.get_color()[:3]) for line in lines]
    assert len(lines) == 30 and brightness == sorted(brightness)
    assert len(figure.legends[0].get_texts()) <= 8


# Flatness


def a_radius(path, names, published=None, eids=None, **flat):
    """A radius's directory, of networks with these names: the k-th one's mean is k + 3."""
    networks = {
        name: {"I": 0.01, "radii": [k + 2, k + 4], "profiles": [[0.01, 0.02], [0.01, 0.06]], "mean": k + 3}
        | {"norm": 2.0, "mean_by_norm": (k + 3) / 2}
        for k, name in enumerate(names)
    }
    raw = {
        "networks": networks,
        "row": {"published": published, "mean": 3.0, "sd": 1.0, "by_norm_mean": 1.5, "by_norm_sd": 0.5},
    }
    return measured_as(work_dir(path, {"task": "measure_radius"} | flat, {"flags": {}, "raw": raw}), names, eids)


def measured_as(path, names, eids=None):
    """The same directory, which says that its networks were measured at these epochs (else all at one)."""
    measured = dict(zip(names, eids or [9] * len(names), strict=True))
    results.WorkDir(path).write_json("about.json", {"measured": measured})
    return path


def a_curvature(path, names, eids=None):
    found = {"eigenvalues": [3.0, 2.0], "trace": 9.0, "parameters": 9, "log_frame": -1.0, "log_loss": -2.0}
    found["trace_error"] = 0.9
    res = {"flags": {}, "raw": dict.fromkeys(names, found)}
    return measured_as(work_dir(path, {"task": "measure_curvature"}, res), names, eids)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """{script: directory} of what is measured on three tiny networks."""
    tmp_path = tmp_path_factory.mktemp("flat")
    common = {
        "dataset": "digits",
        "train_N": 300,
        "gpu": -1,
        "logs_dir": str(tmp_path),
        "model": {"description": [["F", 16], ["F", 10, {"act": False}]], "bias_mode": "ALL"},
    }
    run = Core(
        common | {"task": "train_seeds", "seeds": (0, 1, 2), "E": 3, "lr": 0.05, "train_mode": "NORMAL"}, "train"
    ).run()
    options = {"load_dir": str(run), "eid": "last", "gpu": -1}
    return {"train_seeds": run} | {
        task: Core(options | {"task": task} | more, task).run()
        for task, more in (
            ("measure_radius", {"directions": 3, "step": 0.5}),
            ("make_points", {"grid": 9}),
            (
                "measure_curvature",
                {
                    "eigenvalues": 2,
                    "probes": 3,
                    "density": True,
                    "density_probes": 2,
                    "density_steps": 6,
                    "layer": (1,),
                },
            ),
            ("measure_sharpness", {"rho": (0.01, 0.1)}),
        )
    }


def test_a_spectrum_is_drawn_for_each_operator_and_integrates_to_one(measured):
    raw = results.load(measured["measure_curvature"])["raw"]["seed 0"]
    axes = figures.build([measured["measure_curvature"]])["spectrum"].axes
    assert [a.get_title() for a in axes if a.lines] == ["Hessian", "Gauss-Newton part", "block of layer 1"]
    found = raw["density"]["hessian"]
    at, height = smoothed(np.asarray(found["values"]), np.asarray(found["weights"]))
    assert np.trapezoid(height, at) == pytest.approx(1, abs=0.01)


def test_sharpness_is_drawn_against_rho_for_each_kind_of_ball(measured):
    axes = figures.build([measured["measure_sharpness"]])["sharpness"].axes
    assert [a.get_xlabel() for a in axes] == [
        f"ρ, relative to the norm of {what}" for what in ("all weights", "each layer")
    ]
    found = results.load(measured["measure_sharpness"])["raw"]["seed 0"]["sharpness"]["norm"]
    worst = axes[0].lines[0]
    np.testing.assert_allclose(worst.get_xdata(), found["rho"])
    np.testing.assert_allclose(worst.get_ydata(), np.array(found["worst"]) / np.log(10))


def test_the_plane_of_a_run_shows_its_path_and_what_it_explains(tmp_path):
    Z = np.add.outer(np.arange(4.0), np.arange(5.0)) * -500
    raw = {"x": np.arange(5.0) - 2, "y": np.arange(4.0) - 1, "log_loss": Z, "plane": "pca", "network": "epoch 9"}
    raw |= {"path_eids": [3, 6], "path": np.array([[2.0, 1.0], [1.0, 0.0]]), "explained": np.array([0.9, 0.06])}
    path = measured_as(work_dir(tmp_path / "run", {"task": "make_surface"}, {"flags": {}, "raw": raw}), ["epoch 9"])
    chart, cuts, _ = figures.build([path])["plane"].axes
    assert chart.get_xlabel() == "first component, 90.0 %" and chart.get_ylabel() == "second component, 6.0 %"
    np.testing.assert_array_equal(chart.lines[0].get_xydata(), [[2, 1], [1, 0], [0, 0]])
    np.testing.assert_allclose(cuts.lines[0].get_ydata(), Z[1] / np.log(10))
    np.testing.assert_allclose(cuts.lines[1].get_ydata(), Z[:, 2] / np.log(10))


def test_attacks_in_l1_and_l_infinity_are_drawn_by_their_distances(tmp_path):
    for name, norm in (("fmn-l1", "l1"), ("fmn-linf", "linf")):
        res = {
            "errors": np.array([1.0, 2.0, np.inf]), "success": np.array([True, True, False]),
            "clean_correct": np.ones(3, bool), "labels": np.zeros(3), "certified": np.zeros(3),
        }  # fmt: skip
        path = work_dir(tmp_path / name, {"task": "attack", "attack_method": name}, {4: res})
        _, robust = figures.build([path])[f"attack_{norm}"].axes
        assert curves(robust)[0][:3].tolist() == [[0, 100], [1, pytest.approx(200 / 3)], [2, pytest.approx(100 / 3)]]


def test_radii_stand_against_the_losses_of_their_networks(measured):
    (axes,) = figures.build([measured["measure_radius"]])["radius_loss"].axes
    networks = results.load(measured["measure_radius"])["raw"]["networks"].values()
    points = axes.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, [[found["I"], found["mean"]] for found in networks])
    bars = axes.containers[0].lines[2][0].get_segments()
    errors = [np.std(found["radii"], ddof=1) / np.sqrt(len(found["radii"])) for found in networks]
    np.testing.assert_allclose([(end - start)[1] / 2 for start, end in bars], errors)


def test_profiles_are_the_losses_along_each_direction_up_to_the_radius(measured):
    (axes,) = figures.build([measured["measure_radius"]])["profiles"].axes
    networks = results.load(measured["measure_radius"])["raw"]["networks"]
    ends = sorted(points[-1, 0] for points in curves(axes) if len(points) > 1)
    assert ends == sorted(radius for found in networks.values() for radius in found["radii"])
    first = next(points for points in curves(axes) if len(points) > 1)
    found = networks["seed 0"]
    np.testing.assert_allclose(first[:, 1] + found["I"], found["profiles"][0])


def test_radii_show_each_networks_mean(measured):
    (axes,) = figures.build([measured["measure_radius"]])["radii"].axes
    networks = results.load(measured["measure_radius"])["raw"]["networks"]
    means = [points[0, 1] for points in curves(axes)]
    assert means == [found["mean"] for found in networks.values()]


def test_the_radii_say_which_colour_is_which_network_and_what_was_published_once(tmp_path):
    names = ["seed 0", "seed 1", "seed 2"]
    top = a_radius(tmp_path / "top", names, params="top")
    others = [
        a_radius(tmp_path / f"all-{directions}", names, (13.98, 0.17), directions=directions)
        for directions in (10, 20)
    ]
    figure = figures.build([top, *others])["radii"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*names, "published, mean ± sd"]
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_label() == "seed 1"]
    assert len(colours) == 3 and len(set(colours)) == 1


def test_networks_that_are_epochs_stand_at_their_numbers(tmp_path):
    eids = [10, 100, 1000]
    names = [f"epoch {eid}" for eid in eids]
    (radii,) = figures.build([a_radius(tmp_path / "radius", names, eids=eids)])["radii"].axes
    assert [points.tolist() for points in curves(radii)] == [[[10, 3], [100, 4], [1000, 5]]]
    left, _ = figures.build([a_curvature(tmp_path / "curvature", names, eids)])["curvature"].axes
    assert curves(left)[0][:, 0].tolist() == [10, 100, 1000]
    assert radii.get_xlabel() == left.get_xlabel() == "epoch"


@pytest.mark.parametrize("name", ["epoch {}", "seed {}", "seed {} epoch 100"])
def test_thirty_networks_can_be_read(tmp_path, name):
    names = [name.format(k) for k in range(1, 31)]
    eids = list(range(1, 31)) if name == "epoch {}" else None
    measured = (make(tmp_path / make.__name__, names, eids=eids) for make in (a_radius, a_curvature))
    built = figures.build(measured)
    for figure in built.values():
        assert_nothing_overlaps(figure)
    legend = [text.get_text() for text in built["profiles"].legends[0].get_texts()]
    assert len(legend) == 8 and legend[::7] == [names[0], names[-1]]


def test_a_surface_is_cut_and_a_loss_that_is_no_number_is_at_the_cut():
    X, Y = np.meshgrid(np.linspace(-0.4, 1.3, 6), np.linspace(-0.4, 1.3, 6))
    Z = X**2 + 9 * Y**2
    Z[0, 0], Z[3, 3] = np.nan, np.inf
    axes = style.blank(3, 3, "").add_subplot(projection="3d")
    figures.plot_surface(axes, X, Y, Z, flatness.SURFACE_VIEWS["mnist", True])
    low, high = axes.zz_dataLim.intervalx
    assert high == 3.5 and low == pytest.approx(np.nanmin(Z)) and (axes.elev, axes.azim) == (65, 225)


def test_a_surface_stands_beside_its_map_with_the_three_networks_on_it(measured):
    side, chart, _ = figures.build([measured["make_points"]])["surface"].axes
    ends = side.collections[0].get_clim()
    assert ends == tuple(chart.collections[0].levels[[0, -1]])  # one colour is one loss in both
    assert (side.elev, side.azim) == flatness.SURFACE_VIEWS["mnist", False]
    assert sorted(points[0].tolist() for points in curves(chart)) == [[0, 0], [0, 1], [1, 0]]
    assert [text.get_text() for text in chart.texts] == ["seed 0", "seed 1", "seed 2"]
    assert all(c.get_rasterized() for c in side.collections)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("trace", [2.0, 0.0, -1.0])
def test_a_trace_that_is_uncertain_or_not_positive_is_drawn_without_a_warning(tmp_path, trace):
    path = a_curvature(tmp_path / "run", ["epoch 3"])
    res = results.load(path)
    res["raw"]["epoch 3"] |= {"trace": trace, "trace_error": 5.7}
    results.WorkDir(path).write_res(res)
    (figure,) = figures.build([path]).values()
    segments = [s for c in figure.axes[0].collections for s in c.get_segments() if len(s)]
    bars = [high - low for (_, low), (_, high) in segments]
    if trace > 0:
        np.testing.assert_allclose(bars, [np.log10(1 + 5.7 / trace) + 2])  # down to a hundredth
    else:
        assert not bars  # on an axis of decades it has no place


def test_eigenvalues_are_drawn_in_the_true_losss_units(measured):
    left, _ = figures.build([measured["measure_curvature"]])["curvature"].axes
    raw = results.load(measured["measure_curvature"])["raw"]
    largest = curves(left)[0][:, 1]
    expected = [math.log10(found["eigenvalues"][0]) + found["log_frame"] / math.log(10) for found in raw.values()]
    np.testing.assert_allclose(largest, expected)


# Long curves


def test_ten_thousand_epochs_keep_their_extremes_and_ends_when_thinned(long_run, long_drawn):
    raw = results.load(long_run)["raw"]
    for axes, name in zip(long_drawn["accuracy"].axes, ("acc", "test_acc"), strict=True):
        (points,) = curves(axes)
        values = 100 * np.array([raw[e]["stats"][name] for e in raw])
        assert len(points) < 5000
        assert points[[0, -1], 0].tolist() == [1, 10_000]
        assert points[:, 1].min() == values.min() and points[:, 1].max() == values.max()
        assert (points[:, 1] == values[points[:, 0].astype(int) - 1]).all()


def test_a_thinned_curve_looks_as_the_whole_one():
    rng = np.random.default_rng(0)
    pictures = []
    for treat in (lambda figure: None, style.thin):
        figure, axes = style.panels(1, 1, "")
        axes.plot(np.arange(20_000), np.cumsum(rng.standard_normal(20_000)), **style.cycle(1)[0])
        treat(figure)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba(), int))
        rng = np.random.default_rng(0)
    assert len(axes.lines[0].get_xdata()) < 5000
    whole, thinned = pictures
    assert (abs(whole - thinned).max(axis=2) > 40).mean() < 0.005
    inked = [picture.min(axis=2) < 128 for picture in (whole, thinned)]
    for these, those in (inked, inked[::-1]):  # no ink is more than a pixel from where it was
        assert not (these & ~ndimage.binary_dilation(those, np.ones((3, 3)))).any()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_thinning_keeps_the_extremes_of_every_column(scale):
    rng = np.random.default_rng(1)
    x = np.arange(1, 5001)
    place = (np.log(x) if scale == "log" else x) / 7
    y = rng.standard_normal(len(x))
    y[2000] = math.nan
    kept = style.visible(np.floor(place), y)
    assert (np.diff(kept) > 0).all() and kept[0] == 0 and kept[-1] == len(x) - 1
    for column in np.unique(np.floor(place)):
        own = np.flatnonzero(np.floor(place) == column)
        mine = np.intersect1d(own, kept)
        assert np.nanmax(y[mine]) == np.nanmax(y[own]) and np.nanmin(y[mine]) == np.nanmin(y[own])
        assert {own[0], own[-1]} <= set(mine)


# For print


def test_pdfs_embed_their_fonts_and_none_is_type_3(files):
    for _, path in files.values():
        content = path.read_bytes()
        descriptors = content.count(b"/Type /FontDescriptor")
        assert descriptors and content.count(b"/FontFile2 ") == descriptors
        assert b"/Type3" not in content and content.count(b"/Subtype /CIDFontType2") == descriptors


def test_letters_are_at_least_7_points_where_a_panel_is_a_column_wide(drawn):
    from matplotlib.text import Text

    for name, figure in drawn.items():
        texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
        assert texts and min(t.get_fontsize() for t in texts) >= 7, name
        assert figure.get_figwidth() <= 2 * style.PANEL[0]


def assert_nothing_overlaps(figure):
    """No tick label lies on its neighbour, and no legend on a panel or beyond the page."""
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    for axes in figure.axes:
        for axis, start, end in ((axes.xaxis, "x0", "x1"), (axes.yaxis, "y0", "y1")):
            low, high = sorted(axis.get_view_interval())
            boxes = [
                tick.label1.get_window_extent()
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_text() and tick.label1.get_visible()
            ]
            boxes.sort(key=lambda box: getattr(box, start))
            for before, after in itertools.pairwise(boxes):
                assert getattr(before, end) <= getattr(after, start)


def test_no_tick_label_lies_on_its_neighbour_and_no_legend_on_a_panel(drawn, tmp_path):
    paths = [made_up(tmp_path / f"run-{k}", 30, lr=0.01 * (k + 1)) for k in range(6)]
    for figure in [*drawn.values(), *figures.build(paths).values()]:
        assert_nothing_overlaps(figure)


def test_a_long_legend_stays_on_the_page_and_leaves_the_panels_their_size(tmp_path):
    plain = an_attack(tmp_path / "ddn", {eid: [0.1 * eid, 0.2] for eid in range(1, 31)})
    other = an_attack(
        tmp_path / "cw", {10: [0.5, 0.7]}, method="cw", attack_K=10_000, attack_search_steps=9,
        attack_initial_const=0.001, attack_confidence=0.25, attack_set="test", attack_lr=0.01,
        attack_N=1000, dataset=f"/data/{'x' * 120}.npz",
    )  # fmt: skip
    heights = []
    for directories in ([plain], [plain, other]):
        figure = figures.build(directories)["attack_l2"]
        assert_nothing_overlaps(figure)
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.8 * heights[0]


def test_the_palette_stays_distinct_to_the_colour_blind_and_the_dashes_to_all():
    from matplotlib.colors import to_rgb

    # Machado, Oliveira and Fernandes (2009): full protanopia and deuteranopia, on linear RGB.
    blind = {
        "none": np.eye(3),
        "protanopia": [
            [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
        ],
    }  # fmt: skip
    rgb = np.array([to_rgb(colour) for colour in style.COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for kind, matrix in blind.items():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1) ** (1 / 2.4)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 10 * np.eye(len(seen))
        assert distance.min() > 0.12, kind
        assert distance[0, 1] > 0.5, kind  # the two of the paper's comparison
    looks = [(look["color"], str(look["linestyle"])) for look in style.cycle(35)]
    assert len(set(looks)) == 35


# The command, and its mistakes


def test_the_command_draws_into_the_directory_the_same_files_from_the_same_results(run, files, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    assert figures.main([str(own)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and sorted(out.split()) == sorted(map(str, (own / "figures").iterdir()))
    assert set(files) == {"loss_margin", "margins", "accuracy", "norms", "direction", "steps"}
    for path in itertools.chain(*files.values()):
        assert path.read_bytes() == (own / "figures" / path.name).read_bytes()
        assert 3000 < path.stat().st_size < 300_000
    assert len(list((own / "figures").iterdir())) == 2 * len(files)


def test_several_directories_are_drawn_where_the_user_is_and_not_over_the_first_ones(run, tmp_path, monkeypatch):
    own = shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "make_figures", lambda given: {"margins": style.blank(1, 1, "")})
    assert figures.main([str(own), str(run)]) == 0
    assert (tmp_path / "figures" / "margins.png").is_file() and not (own / "figures").exists()
    assert figures.main([str(own), str(own / ".")]) == 0
    assert (own / "figures" / "margins.png").is_file()


def spoiled(tmp_path, run, name):
    if name == "no epochs":
        return work_dir(tmp_path / "run", {}, None)
    if name == "unfinished attack":
        return work_dir(tmp_path / "run", {"task": "attack"}, None)
    if name == "peek":
        return work_dir(tmp_path / "run", {"task": "train_peek"}, {"flags": {}, "raw": {1: {}}})
    own = shutil.copytree(run, tmp_path / "run")
    match name:
        case "cut res":
            (own / "res").write_bytes((own / "res").read_bytes()[:1000])
        case "other res":
            results.WorkDir(own).write_res({"flags": {}, "raw": {1: {"eid": 1}}})
        case "no stats" | "empty stats":
            res = results.load(own)
            res["raw"][7]["stats"] = None if name == "no stats" else {}
            results.WorkDir(own).write_res(res)
        case "list":
            results.WorkDir(own).write_res([1, 2])
        case "flags":
            (own / "flags.json").write_text("{")
        case "flags list":
            (own / "flags.json").write_text("[1, 2]")
    return own


@pytest.mark.parametrize(
    "name, says",
    [
        ("no epochs", "nothing to draw yet: no epoch"),
        ("unfinished attack", "--resume"),
        ("peek", "for the task train_peek"),
        ("cut res", "not a pickle"),
        ("other res", "missing or invalid: log_frame, lr, stats, time"),
        ("no stats", "res: damaged, or not a result of the task train (missing or invalid: stats"),
        ("empty stats", "res: damaged, or not a result of the task train (missing or invalid: stats"),
        ("list", "damaged"),
        ("flags", "flags.json: damaged"),
        ("flags list", "flags.json: damaged: not a JSON object"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_exit_2_and_no_file(run, tmp_path, capsys, name, says):
    path = spoiled(tmp_path, run, name)
    assert figures.main([str(run), str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and says in said[0] and str(path) in said[0]
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line_are_one_line_and_exit_2(run, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for words, says in (
        ([], "DIRECTORY"),
        ([str(tmp_path / "nowhere")], "no such directory"),
        ([str(tmp_path)], "not a working directory"),
        ([str(run), "--ouy", "x"], "--ouy"),
        ([str(run), "--out", str(tmp_path / "file")], "cannot write figures into"),
    ):
        assert figures.main(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ") and says in line


@pytest.mark.parametrize("place", ["file", "file/below", "closed/below/further"])
def test_a_place_that_cannot_be_written_is_noticed_before_anything_is_drawn(run, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "closed").mkdir()
    temporary = drawing.tempfile.TemporaryFile

    def refuses(dir):  # for one whom no permission stops, as root
        if dir == tmp_path / "closed":
            raise PermissionError(13, "Permission denied")
        return temporary(dir=dir)

    monkeypatch.setattr(drawing.tempfile, "TemporaryFile", refuses)
    monkeypatch.setattr(drawing, "make_figures", lambda given: pytest.fail("drawn"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"cannot write figures into .*: (Not a dir|Permission)"):
        figures.draw([run], tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_while_rendering_leaves_no_file_and_the_older_ones_alone(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "margins.png").write_bytes(b"older")

    def fails(figure, suffix):
        if suffix == "pdf":
            raise RuntimeError("no ink")
        return b"picture"

    monkeypatch.setattr(drawing, "make_figures", lambda given: {"accuracy": None, "margins": None})
    monkeypatch.setattr(drawing, "_rendered", fails)
    with pytest.raises(RuntimeError):
        figures.draw([run], out)
    assert [path.name for path in out.iterdir()] == ["margins.png"]
    assert (out / "margins.png").read_bytes() == b"older"


# At the end of a run


def test_a_run_ends_with_its_figures_and_an_attack_too(tiny_flags, tmp_path, monkeypatch, capsys):
    def script(main, name, flags, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        with pytest.raises(SystemExit) as done:
            main(f"{name}.py", flags)
        out, err = capsys.readouterr()
        assert done.value.code == 0 and err == "" and "figures in " in out.splitlines()[-1]

    script(launch.main, "exper-tiny", tiny_flags, "--E", "3")
    own = (tmp_path / "logs" / "exper-tiny" / "latest").resolve()
    assert len(list((own / "figures").glob("*.png"))) == 6
    assert "figures in " in (own / "stdout").read_text()
    attack = importlib.import_module("eval-final-mnist-l2-ddn").flags
    words = [str(own), "--eid", "last", "--attack_N", "20", "--gpu", "-1", "--attack_K", "10"]
    script(launch.main, "eval-ddn", attack, *words)
    assert (own / "eval-ddn" / "latest" / "figures" / "attack_l2.png").is_file()


def test_a_failure_to_draw_is_a_warning_and_loses_nothing(run, tmp_path, monkeypatch, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    before = (own / "res").read_bytes()

    def fails(*arguments):
        raise RuntimeError("no ink")

    monkeypatch.setattr(drawing, "draw", fails)
    launch.draw_figures(own)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("warning: no figures (RuntimeError: no ink)") and "python figures.py" in line
    assert (own / "res").read_bytes() == before


def test_what_has_no_figures_is_passed_over_in_silence(tmp_path, capsys):
    launch.draw_figures(work_dir(tmp_path / "peek", {"task": "train_peek"}, None))
    (tmp_path / "labels.npz").write_bytes(b"")
    launch.draw_figures(tmp_path / "labels.npz")
    assert capsys.readouterr().err == ""


def test_every_kind_of_measurement_is_drawn_at_the_end(measured):
    for task in set(measured) - {"train_seeds"}:
        launch.draw_figures(measured[task])
        assert list((measured[task] / "figures").glob("*.pdf")), task


@soak
def test_the_bench_prints_seconds_and_draws_every_figure(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["bench", "--epochs", "50", "--json", str(tmp_path / "j")])
    bench.main()  # with figures.py in a process of its own
    out, err = capfd.readouterr()
    assert out.startswith("6 figures as PNG and PDF: ") and err == ""
    assert json.loads((tmp_path / "j").read_text())["processor"] > 0


def test_unknown_kinds_are_named(tmp_path):
    with pytest.raises(UserError, match="there are no figures for the task train_peek"):
        figures.read([work_dir(tmp_path / "run", {"task": "train_peek"}, None)])


def test_the_margins_stand_in_their_band_beside_the_smoothed_ones(tmp_path):
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


def paper_run(path, lr, bias, dataset):
    return made_up(path, 30, dataset=dataset, **{"lr": lr, "model.bias_mode": bias})


def test_the_papers_figures_are_drawn_in_its_form_and_what_they_lack_is_said(tmp_path, capsys):
    loss_based = ("loss-based-v1", 0.1, 1.1, 1.05)
    runs_ = [
        paper_run(tmp_path / "a", 0.01, "FIRST_LAYER", "mnist"),
        paper_run(tmp_path / "b", 0.01, "ALL", "mnist"),
        paper_run(tmp_path / "c", loss_based, "FIRST_LAYER", "mnist"),
        paper_run(tmp_path / "d", loss_based, "NONE", "cifar10"),
        an_attack(tmp_path / "e", {30: [0.1, 0.2, 0.3]}, attack_set="train"),
    ]
    assert figures.main([*map(str, runs_), "--paper", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    drawn = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert drawn == {f"paper-figure-{k}" for k in (1, 3, 6, 7, 8)}
    assert "figure 1: no run with bias at loss-based lr" in said
    assert "figure 5: not drawn: no training run on CIFAR-10 with constant lr" in said
    assert "figure 6: no run with bias at loss-based lr" in said
    assert "figure 8: no L2 attack on the test set" in said
    made, _ = paper.make_figures(figures.read(runs_))
    stats = [info["stats"] for info in results.load(runs_[1])["raw"].values()]
    panel = made["paper-figure-1"].axes[1]  # constant lr: the margin over the product of norms
    with_bias = [line for line in panel.lines if line.get_label() == "with bias"]
    np.testing.assert_array_equal(with_bias[0].get_ydata(), [s["q_bar2_min"] for s in stats])


def test_of_runs_without_any_of_the_papers_figures_that_is_said(tmp_path, capsys):
    path = a_curvature(tmp_path / "c", ["seed 0"])
    assert figures.main([str(path), "--paper", "--out", str(tmp_path / "out")]) == 2
    assert "none of the paper's figures can be drawn" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
