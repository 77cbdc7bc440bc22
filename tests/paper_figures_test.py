"""The paper's figures (`reporting.paper`)."""

import numpy as np
from builders import a_curvature, an_attack

import figures
import results
from bench.figures import made_up
from reporting import paper


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


def test_a_scheduler_by_its_name_alone_is_loss_based_and_another_has_no_row(tmp_path):
    named = paper_run(tmp_path / "a", "loss-based-v1", "FIRST_LAYER", "mnist")
    decaying = paper_run(tmp_path / "b", ("decay", 0.1), "FIRST_LAYER", "mnist")
    made, _ = paper.make_figures(figures.read([named, decaying]))
    assert [panel.get_title() for panel in made["paper-figure-1"].axes] == ["loss-based lr"] * 2
    assert len(made["paper-figure-1"].axes[0].lines) == 1


def test_runs_without_any_of_the_papers_figures_are_a_one_line_error(tmp_path, capsys):
    path = a_curvature(tmp_path / "c", ["seed 0"])
    assert figures.main([str(path), "--paper", "--out", str(tmp_path / "out")]) == 2
    assert "none of the paper's figures can be drawn" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
