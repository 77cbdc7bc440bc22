"""Several runs in one figure, and the labels that distinguish them (`reporting.runs`)."""

import json

import pytest
from builders import an_attack, curves, loss_margin, work_dir

import figures
import flags
import results
from bench.figures import made_up
from reporting import kinds, runs
from storage import workdir


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
        workdir.WorkDir(path).write_json("about.json", {"experiment": name})
    labelled = runs.label([kinds._run(path) for path in paths])
    assert [run.label for run in labelled] == ["exper-cnn", "train_mlp, seed 3", "train_mlp, seed 4"]
    of_one = runs.label([run for run in labelled if run.experiment == "train_mlp"])
    assert [run.label for run in of_one] == ["seed 3", "seed 4"]


def test_an_architecture_has_its_name_and_another_its_layers():
    description = flags.complete({"model": {"description": "VGG16_BN"}})["model"]["description"]
    assert runs.network(json.loads(json.dumps(description))) == "VGG16_BN"
    assert runs.network([["C", 8, [3, 3]], ["P"], ["F", 10, {"act": False}]]) == "C8 P F10"


def test_a_run_of_several_seeds_is_a_curve_a_seed(made_up_run, tmp_path):
    whole = work_dir(tmp_path / "whole", {"task": "train_seeds", "seeds": (3, 5)}, None)
    for seed in (3, 5):
        work_dir(whole / f"seed-{seed}", {"seed": seed}, results.load(made_up_run))
    # One of the seeds given by itself as well is still one run.
    figure = loss_margin([whole, whole / "seed-3"])
    assert len(curves(figure.axes[0])) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 3", "seed 5"]


def test_kinds_can_be_mixed_and_a_directory_given_twice_counts_once(made_up_run, tmp_path):
    attack = an_attack(tmp_path / "attack", {3: [0.5, 0.7, 0.9]})
    built = figures.build([made_up_run, attack, made_up_run])
    assert {"loss_margin", "attack_l2"} < set(built)
    assert len(curves(built["loss_margin"].axes[0])) == 1
