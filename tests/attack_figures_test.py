"""Figures of attacks (`reporting.attacks`)."""

import numpy as np
import pytest
from builders import an_attack, curves, work_dir

import figures
from catalogue.attacks import METHODS
from reporting import attacks, runs
from reporting.tables import Entry


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


def test_robust_accuracy_curves_extend_to_the_panels_edge_even_without_examples(tmp_path):
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
    run = runs.Run(tmp_path, {"task": "attack", "attack_method": "ddn", "attack_target": None}, {})
    eps, robust = attacks.robust_accuracy(run, res)
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


def test_attacks_in_l1_and_l_infinity_are_drawn_by_their_distances(tmp_path):
    for name, norm in (("fmn-l1", "l1"), ("fmn-linf", "linf")):
        res = {
            "errors": np.array([1.0, 2.0, np.inf]), "success": np.array([True, True, False]),
            "clean_correct": np.ones(3, bool), "labels": np.zeros(3), "certified": np.zeros(3),
        }  # fmt: skip
        path = work_dir(tmp_path / name, {"task": "attack", "attack_method": name}, {4: res})
        _, robust = figures.build([path])[f"attack_{norm}"].axes
        assert curves(robust)[0][:3].tolist() == [[0, 100], [1, pytest.approx(200 / 3)], [2, pytest.approx(100 / 3)]]


def test_two_epochs_are_compared_on_the_same_images():
    """Each image moves by 0.1: the difference is certain, though the images themselves differ by far more."""
    first = np.random.default_rng(0).uniform(1, 3, 400)
    for quantile, (difference, low, high) in attacks.paired(first, first + 0.1).items():
        assert low == pytest.approx(0.1) and high == pytest.approx(0.1) and difference == pytest.approx(0.1), quantile
    noise = np.random.default_rng(1).normal(0, 0.3, 400)
    difference, low, high = attacks.paired(first, first + noise)[0.5]
    assert low < 0 < high and low <= difference <= high


def test_the_interval_covers_the_true_difference_of_medians_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(attacks, "RESAMPLES", 200)
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        first = rng.normal(2, 0.5, 150)
        second = first + rng.normal(0.1, 0.2, 150)  # both medians are known
        _, low, high = attacks.paired(first, second, seed)[0.5]
        covered += low <= 0.1 <= high
    assert 85 <= covered <= 100


def test_the_report_compares_each_attacked_epoch_with_the_one_before_and_the_last_with_the_first(tmp_path):
    path = an_attack(tmp_path / "ddn", {1: [1.0, 2.0], 5: [1.5, 1.5], 9: [np.inf, 2.5]}, attack_set="test")
    (run,) = figures.read([path])
    (table,) = attacks.paired_table([Entry(1, run)])
    assert [row[0][1] for row in table.rows] == [
        *(" epoch 5 less epoch 1", " epoch 9 less epoch 5", " epoch 9 less epoch 1")
    ]
    assert [row[-1].text for row in table.rows] == ["50.00%", "100.00%", "100.00%"]
    assert table.rows[0][1][0].text == "+0.5000"  # of the nearest
