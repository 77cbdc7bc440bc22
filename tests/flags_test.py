"""Flags: one form for scripts, command line and flags.json; mistakes named with what was meant."""

import json
import math
import os
import sys

import numpy as np
import pytest

import flags
from flags.command_line import command_line
from models.architectures import CNN, VGG16
from storage.run_flags import of_command_line, resolve
from support.errors import UserError
from support.files import ROOT

HALF_CNN = [["C", 16, [5, 5]], ["P"], ["C", 32, [3, 3]], ["P"], ["F", 512], ["F", 10, {"act": False}]]
SCRIPT = {"dataset": "digits", "model": {"description": CNN}, "lr": 0.01}


def parse(*words):
    return of_command_line(list(words), SCRIPT)


def test_missing_flags_have_their_defaults():
    full = parse()
    assert full["B"] == 100 and full["E"] == 10000 and full["lr"] == 0.01
    assert full["log_frame0"] == "auto"
    assert full["model"]["init"]["weight"] == "glorot_uniform"


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--B", "50"], "B", 50),
        (["--B=50"], "B", 50),
        (["--lr", "0.1"], "lr", 0.1),
        (["--lr", "1"], "lr", 1.0),
        (["--lr", "('loss-based-v1', 0.1, 2**(1/5), 2**(1/10))"], "lr", ("loss-based-v1", 0.1, 2**0.2, 2**0.1)),
        (["--lr", "loss-based-v1,0.1"], "lr", ("loss-based-v1", 0.1)),
        (["--lr", "loss-based-v1"], "lr", "loss-based-v1"),
        (["--log_frame0", "log(log(10))"], "log_frame0", math.log(math.log(10))),
        (["--log_frame0", "-3.5"], "log_frame0", -3.5),
        (["--archive", "idle"], "archive", "idle"),
        (["--archive", "50"], "archive", 50),
        (["--archive", "logloss,10**5"], "archive", ("logloss", 10**5)),
        (["--archive", "('two-phase-const-epoch', 100, 1000)"], "archive", ("two-phase-const-epoch", 100, 1000)),
        (["--gpu", "-1"], "gpu", -1),
        (["--tf32"], "tf32", True),
        (["--tf32", "false"], "tf32", False),
        (["--early_reject", "False"], "early_reject", False),
        (["--task", "train_peek", "--eid", "last"], "eid", "last"),
        (["--task", "train_peek", "--eid", "30,10"], "eid", [10, 30]),
        (["--task", "train_peek", "--eid", "10000"], "eid", [10000]),
        (["--train_N", "500"], "train_N", 500),
        (["--train_N", "all"], "train_N", "all"),
        (["--data_dir", "2024"], "data_dir", os.path.abspath("2024")),
        (["--model.bias_mode", "ALL"], "model.bias_mode", "ALL"),
        (["--model.init.weight", "he_uniform"], "model.init.weight", "he_uniform"),
        (["--model.init.weight_normalized"], "model.init.weight_normalized", True),
        (["--model.description", "VGG16"], "model.description", VGG16),
        (["--lr", "aggressive-v3,0.1,2**(1/5),log(3)"], "lr", ("aggressive-v3", 0.1, 2 ** (1 / 5), math.log(3))),
        (["--model.description", "CNN/2"], "model.description", HALF_CNN),
        (["--model.description", "[['F', 10]]"], "model.description", [["F", 10]]),
        (["--loss_ub", "1e3"], "loss_ub", 1000.0),
    ],
)
def test_the_command_line_gives_typed_values(words, name, value):
    got = flags.flatten(parse(*words))[name]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "words, says",
    [
        (["--b", "5"], "did you mean --B?"),
        (["--datset", "mnist"], "did you mean --dataset"),
        (["--model.bias_mod", "ALL"], "did you mean --model.bias_mode"),
        (["--model.bias_mode", "FIRST"], "did you mean FIRST_LAYER"),
        (["--model.act_type", "rel"], "did you mean relu"),
        (["--model.description", "CNM"], "did you mean CNN"),
        (["--model.description", "VGG16/3"], "divided by 2, 4, 8 or 16"),
        (["--train_mode", "USE_FRAMES"], "did you mean USE_FRAME"),
        (["--lr", "loss-basd-v1,0.1"], "did you mean loss-based-v1"),
        (["--B", "0"], "--B 0: expected a whole number, at least 1"),
        (["--B", "2.5"], "whole number"),
        (["--B", "many"], "whole number"),
        (["--E", "-3"], "whole number"),
        (["--E"], "expected one argument"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "('aggressive',)"], "--lr"),
        (["--loss_ub", "0"], "above 0"),
        (["--loss_ub", "1e301"], "above 0 and at most 1e+300"),
        (["--lr", "decay,0.1,2000"], "power must be at most 10"),
        (["--lr", "decay"], ": missing 1 required positional argument: 'lr'"),
        (["--archive", "sometimes"], "--archive sometimes: expected 'idle'"),
        (["--eid", "first"], "--eid first"),
        (["--eid", "0"], "--eid"),
        (["--tf32", "perhaps"], "true or false"),
        (["--opt", "adamw"], "expected one of gd"),
        (["--seed", "-1"], "--seed"),
        (["--model.description", "[['Z']]"], "layer 0"),
        (["--lr", "__import__('os').system('true')"], "--lr"),
        (["50"], "unexpected word '50'"),
        (["--lr", "const-lr-and-loss-based-lr,0.1", "--train_mode", "NORMAL"], "needs train_mode USE_FRAME"),
    ],
)
def test_a_mistake_is_refused_with_one_line_that_helps(words, says):
    with pytest.raises(UserError) as error:
        parse(*words)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_flags_survive_json():
    full = parse("--lr", "loss-based-v1,0.1,1.5,1.2", "--archive", "logloss,10")
    assert flags.complete(json.loads(json.dumps(full))) == full


def test_numbers_as_powers_do_not_hang():
    assert flags.from_text("9**9**9**9") == "9**9**9**9"


def experiments():
    return sorted(path.stem for path in ROOT.glob("exper-*.py"))


def script_flags(name):
    import runpy

    return flags.complete(runpy.run_path(str(ROOT / f"{name}.py"), run_name="not main")["flags"])


LOSS_BASED = ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10))
TABLE = {
    "exper-final-mnist-cnn-loss-based-lr": ("mnist", CNN, "FIRST_LAYER", LOSS_BASED, ("logloss", 10**5), 600),
    "exper-final-mnist-cnn-loss-based-lr-archive-less": (
        *("mnist", CNN, "FIRST_LAYER", LOSS_BASED),
        *(("two-phase-const-epoch", 100, 1000), 600),
    ),
    "exper-final-mnist-cnn-const-lr-1": ("mnist", CNN, "FIRST_LAYER", 0.01, ("logloss", 10), 600),
    "exper-final-mnist-biased-cnn-loss-based-lr": ("mnist", CNN, "ALL", LOSS_BASED, ("logloss", 10**5), 600),
    "exper-final-mnist-biased-cnn-const-lr-1": ("mnist", CNN, "ALL", 0.01, ("logloss", 10), 600),
    "exper-final-cifar-vgg-loss-based-lr": ("cifar10", VGG16, "FIRST_LAYER", LOSS_BASED, 50, 500),
    "exper-final-cifar-vgg-loss-based-lr-archive-less": (
        *("cifar10", VGG16, "FIRST_LAYER", LOSS_BASED),
        *(("two-phase-const-epoch", 100, 1000), 500),
    ),
    "exper-final-cifar-vgg-const-lr-1": (
        *("cifar10", VGG16, "FIRST_LAYER", 0.1),
        *(("two-phase-const-epoch", 50, 500), 500),
    ),
    "exper-final-cifar-biased-vgg-loss-based-lr": ("cifar10", VGG16, "ALL", LOSS_BASED, 50, 500),
    "exper-final-cifar-biased-vgg-const-lr-1": (
        *("cifar10", VGG16, "ALL", 0.1),
        *(("two-phase-const-epoch", 50, 500), 500),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_experiment_has_the_papers_flags(name):
    got = script_flags(name)
    dataset, description, bias_mode, lr, archive, loss_ub = TABLE[name]
    assert (got["dataset"], got["model"]["description"], got["model"]["bias_mode"]) == (
        dataset,
        description,
        bias_mode,
    )
    assert (got["lr"], got["archive"], got["loss_ub"]) == (lr, archive, loss_ub)
    assert (got["E"], got["B"], got["train_mode"], got["opt"]) == (10000, 100, "USE_FRAME", "gd")
    assert got["model"]["init"] | {"weight": "he_normal", "bias": "zeros"} == got["model"]["init"]


def test_the_experiments_are_those_of_the_table_and_the_quick_ones():
    quick = {"exper-quick-digits-cnn-loss-based-lr", "exper-quick-digits-cnn-const-lr-1"}
    assert set(experiments()) == set(TABLE) | quick | {
        "exper-quick-separable-linear",
        "exper-quick-digits-optimizers",
    }
    assert {script_flags(name)["E"] for name in quick} == {300}


def test_older_names_of_flags_still_work_everywhere():
    words = ["--load_dir", "x", "--random", "--step", "0.2", "--source", "train_cifar"]
    got = command_line(words, {"task": "measure_radius"})
    assert (got["on_random_labels"], got["radius_step"], got["measured_experiment"]) == (True, 0.2, "train_cifar")
    assert flags.complete({"attack": [3, 1]})["attack_indices"] == (1, 3)
    for both in ({"radius_step": 0.1, "step": 0.2}, {"step": 0.2, "radius_step": 0.1}):
        with pytest.raises(UserError, match="--step is another name of --radius_step: give one of them"):
            flags.complete(both)


def test_a_typed_flag_replaces_a_scripts_under_either_name():
    for name in ("step", "radius_step"):
        for typed in ("step", "radius_step"):
            assert resolve({"task": "train", name: 1.0}, {typed: 0.2})["radius_step"] == 0.2


def test_numbers_of_numpy_and_paths_are_taken_as_pythons(tmp_path):
    given = {"lr": np.logspace(-2, -1, 2)[0], "E": np.int64(3), "dataset": tmp_path / "x.npz", "logs_dir": tmp_path}
    found = flags.complete(given | {"seeds": np.arange(2), "model": {"description": [["F", np.int64(10)]]}})
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(flags.complete(found)))
    assert (type(found["lr"]), found["E"], found["seeds"], found["logs_dir"]) == (float, 3, (0, 1), str(tmp_path))


@pytest.mark.parametrize("wrong", [{"model": "CNN"}, {"model": None}, {"model": {"init": "he_normal"}}])
def test_a_word_where_a_dict_is_expected_is_explained(wrong):
    with pytest.raises(UserError, match="expected a dict of the flags model"):
        flags.complete(wrong)


@pytest.mark.parametrize("name", ["random_labels", "init_from", "logs_dir"])
def test_none_unsets_a_path(name):
    assert resolve({"task": "train"}, command_line([f"--{name}", "none"], {"task": "train"}))[name] is None


def test_reading_flags_and_results_needs_no_tensorflow():
    import subprocess

    code = "import flags, results, data.labels, engine.context, core, launch, figures, report, sys"
    code += "; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
