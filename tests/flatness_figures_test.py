"""Figures of flatness measurements (`reporting.flatness`, `reporting.landscape`)."""

import math

import numpy as np
import pytest
from builders import a_curvature, a_radius, assert_nothing_overlaps, curves, measured_as, work_dir

import figures
import launch
import results
from reporting import flatness, style
from reporting.landscape import smoothed
from storage import workdir


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


def test_radii_are_drawn_against_the_losses_of_their_networks(measured):
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


def test_a_surface_is_clipped_and_nan_losses_lie_at_the_clip():
    X, Y = np.meshgrid(np.linspace(-0.4, 1.3, 6), np.linspace(-0.4, 1.3, 6))
    Z = X**2 + 9 * Y**2
    Z[0, 0], Z[3, 3] = np.nan, np.inf
    axes = style.blank(3, 3, "").add_subplot(projection="3d")
    figures.plot_surface(axes, X, Y, Z, flatness.SURFACE_VIEWS["mnist", True])
    low, high = axes.zz_dataLim.intervalx
    assert high == 3.5 and low == pytest.approx(np.nanmin(Z)) and (axes.elev, axes.azim) == (65, 225)


def test_a_surface_is_shown_next_to_its_map_with_the_three_networks(measured):
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
    workdir.WorkDir(path).write_res(res)
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


def test_every_kind_of_measurement_is_drawn_at_the_end(measured):
    for task in set(measured) - {"train_seeds"}:
        launch.draw_figures(measured[task])
        assert list((measured[task] / "figures").glob("*.pdf")), task
