"""Core: the training loop's decisions, resuming, peeking, against a plain rewrite of the loop."""

import copy
import json
import math
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import recompute
from builders import TINY, pixels, soak

import results
from core import Core
from engine.compute import choose_parts
from engine.context import Context, logs_dir
from models import lr_scheduler, margins, network
from models.architectures import CNN, MLP, VGG16
from storage import read
from support.device import cores
from support.errors import Stopped, TrainingDiverged, UserError
from support.files import ROOT
from support.screen import log
from training import attempt as attempts
from training.run import Training

TIMES = ("time", "train_time", "eval_time")


def without_times(raw):
    """The infos without what a clock measured."""
    raw = copy.deepcopy(raw)
    for info in raw.values():
        for place in (info, info["stats"]):
            for key in TIMES:
                place.pop(key, None)
    return raw


def assert_same_weights(a, b):
    for (name, x), (_, y) in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def plain_training(context):
    """The loop, no short cuts: all stats of every attempt, no early rejection, weights kept as copies."""
    f, model = context.f, context.model
    scheduler = lr_scheduler.build(f.lr, f.train_mode)
    log_frame = math.log(math.log(10)) if f.train_mode == "USE_FRAME" else 0.0
    _, lr = scheduler.get()
    decisions = []
    for eid in range(1, f.E + 1):
        saved = model.get_weights()
        attempt = 0
        while True:
            attempt += 1
            order = attempts.permutation(context, eid, attempt)[: len(context.dataset[0][0]) // f.B * f.B]
            batches = order.reshape(-1, f.B).astype(np.int32)
            ok, losses = model.train_epoch(*context.train_set, batches, lr, log_frame, f.loss_ub)
            stats = attempts.stats(context, log_frame)[0] if ok else None
            info = {"eid": eid, "lr": lr, "log_frame": log_frame, "stats": stats}
            command, next_lr = scheduler.get(info)
            decisions.append((eid, attempt, lr, command, float(losses.mean())))
            lr = next_lr
            if command == "go":
                break
            model.set_weights([array for _, array in saved])
        if f.train_mode == "USE_FRAME":
            log_frame += math.log(stats["loss"])
    return decisions, stats, model.get_weights()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_mode": "NORMAL"},
        {"lr": ("aggressive", 0.2, 2)},
        {"lr": ("aggressive-v3", 0.5, 2.0, 2.0), "train_mode": "NORMAL"},
        {"lr": ("const-lr-and-loss-based-lr", 0.4, 4.0, 2.0), "E": 40},
        {"lr": 0.05},
    ],
    ids=str,
)
def test_early_rejection_makes_the_decisions_of_the_plain_algorithm(tiny_flags, changes, monkeypatch):
    flags = tiny_flags | {"E": 12} | changes
    decisions, stats, weights = plain_training(Context(flags))

    seen, attempt = [], attempts.attempt

    def noting(context, weights, eid, number, lr, **rest):
        outcome = attempt(context, weights, eid, number, lr, **rest)
        seen.append((eid, number, lr, outcome.info["rt_loss"]))
        return outcome

    monkeypatch.setattr(attempts, "attempt", noting)
    path = Core(flags).run()
    raw = results.load(path)["raw"]
    assert seen == [(eid, number, lr, rt) for eid, number, lr, _, rt in decisions]
    assert {k: raw[flags["E"]]["stats"][k] for k in stats} == stats
    assert_same_weights(results.load_weights(path), weights)
    if not isinstance(flags["lr"], float):
        assert any(command == "back" for *_, command, _ in decisions), "nothing was rejected: tests nothing"


@pytest.mark.parametrize("left_over", [pytest.param(20, marks=soak), 1])
def test_without_drop_last_an_epoch_ends_with_a_step_on_the_examples_left_over(tiny_flags, left_over):
    flags = tiny_flags | {"B": 70, "train_N": 280 + left_over, "lr": 0.05, "train_mode": "NORMAL", "E": 1}
    flags["include_all_rt_loss_in_res"] = True
    keeping, dropping = Core(flags | {"drop_last": False}), Core(flags)
    losses = results.load(keeping.run())["raw"][1]["all_rt_loss"]
    assert len(losses) == 5
    assert losses[:4] == results.load(dropping.run())["raw"][1]["all_rt_loss"]
    (x, y), _ = keeping.context.dataset
    batch = attempts.permutation(keeping.context, 1, 1)[-left_over:]
    model = dropping.context.model
    assert losses[4] == pytest.approx(float(model.step(x[batch], y[batch], 0.05, 0.0)), rel=1e-6)
    for one, other in zip(keeping.context.model.weights, model.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_stats_are_complete_plain_and_what_brute_force_gives(tiny_flags):
    core = Core(tiny_flags | {"include_all_rt_loss_in_res": True})
    res = results.load(core.run())
    assert set(res) == {"flags", "raw"} and list(res["raw"]) == [1, 2, 3, 4]
    info = res["raw"][4]
    assert set(info) == {"eid", "lr", "log_frame", "rt_loss", "all_rt_loss", "stats", "time"}
    assert len(info["all_rt_loss"]) == 6 and np.mean(info["all_rt_loss"]) == info["rt_loss"]
    stats = info["stats"]
    names = ["loss", "acc", "test_loss", "test_acc", "rho", "norm_prod", "rhoL", "q_min", "q_max", "q_bar_min"]
    names += ["q_bar2_min", "log_loss", "log_frame", "train_time", "eval_time", "attempts"]
    names += ["smoothed_q_bar", "smoothed_q_bar2", "balance", "angle_to_last_epoch"]
    names += [f"rho_{k}" for k in range(3)] + [f"n_supp_{k}" for k in range(1, 8)]
    assert set(stats) == set(names)
    assert all(type(value) in (int, float) for value in stats.values())

    context = core.context
    (x, y), (x_test, y_test) = context.dataset
    for part, labels, prefix in ((x, y, ""), (x_test, y_test, "test_")):
        z = context.model.logits(context.model.pixels(part)).numpy().astype(np.float64)
        d = np.array([[v - row[k] for j, v in enumerate(row) if j != k] for row, k in zip(z, labels, strict=True)])
        loss = np.log1p(np.exp(d).sum(axis=1)).mean()
        frame = math.exp(info["log_frame"]) if not prefix else 1.0
        assert stats[prefix + "loss"] == pytest.approx(loss / frame, rel=1e-5)
        assert stats[prefix + "acc"] == pytest.approx((z.argmax(axis=1) == labels).mean())
        if not prefix:
            assert stats["log_loss"] == pytest.approx(math.log(loss), abs=1e-5)
            assert stats["q_min"] == pytest.approx((-d.max(axis=1)).min(), rel=1e-4)
    norms = [
        math.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in tensors))
        for tensors in context.model.counted_weights()
    ]
    assert [stats[f"rho_{k}"] for k in range(3)] == pytest.approx(norms, rel=1e-12)
    assert stats["q_bar2_min"] == pytest.approx(stats["q_min"] / math.prod(norms), rel=1e-12)
    assert stats["q_bar_min"] == pytest.approx(stats["q_min"] / sum(n * n for n in norms) ** 1.5, rel=1e-12)


def test_the_frame_follows_the_loss(tiny_flags):
    raw = results.load(Core(tiny_flags | {"E": 6}).run())["raw"]
    for eid in range(1, 6):
        expected = raw[eid]["log_frame"] + math.log(raw[eid]["stats"]["loss"])
        assert raw[eid + 1]["log_frame"] == expected
        assert raw[eid]["stats"]["log_loss"] == pytest.approx(expected, abs=1e-9)


def test_a_loss_below_what_float64_holds_still_falls(tiny_flags):
    """Scaling a trained homogeneous network's weights scales its logits: a true loss below 1e-400."""
    core = Core(tiny_flags | {"E": 40, "lr": ("loss-based-v1", 0.1)})
    path = core.run()
    assert results.load(path)["raw"][40]["stats"]["acc"] == 1.0
    model = core.context.model
    for v in model.weights[2:]:
        v.assign(v * 100.0)
    start, _ = attempts.stats(core.context, 0.0)
    assert start["log_loss"] < -400 * math.log(10) and start["loss"] == 0.0
    progress = Training(core.context.changed(log_frame0=start["log_loss"], lr=("loss-based-v1", 1e-6)))
    progress.weights = model.snapshot()
    for _ in range(3):
        info = progress.epoch()
        assert info["stats"]["loss"] <= 1.0
    assert info["stats"]["log_loss"] < start["log_loss"] and math.isfinite(info["stats"]["log_loss"])


def test_batches_cover_whole_batches_of_the_set_once(tiny_flags):
    core = Core(tiny_flags | {"train_N": 299})
    seen = []
    model = core.context.model
    train_epoch = model.train_epoch
    model.train_epoch = lambda x, y, batches, *rest: seen.append(batches) or train_epoch(x, y, batches, *rest)
    core.run()
    assert seen[0].shape == (5, 50) and len(set(seen[0].ravel())) == 250
    assert not np.array_equal(seen[0], seen[1])


def test_same_seed_same_run_and_another_seed_another(tiny_flags):
    first, second, other = (Core(tiny_flags | {"seed": seed, "log_frame0": 2.0}).run() for seed in (5, 5, 6))
    assert without_times(results.load(first)["raw"]) == without_times(results.load(second)["raw"])
    assert_same_weights(results.load_weights(first), results.load_weights(second))
    assert results.load(first)["raw"][1]["rt_loss"] != results.load(other)["raw"][1]["rt_loss"]


def test_res_loads_with_plain_pickle_where_there_is_no_tensorflow(tiny_flags):
    path = Core(tiny_flags).run()
    code = (
        "import pickle, sys; sys.modules['tensorflow'] = None\n"
        f"res = pickle.load(open({str(path / 'res')!r}, 'rb'))\n"
        "print(sorted(res), res['raw'][4]['stats']['attempts'] >= 1)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "['flags', 'raw'] True\n", out.stderr


def test_archived_epochs_have_the_weights_of_their_epochs(tiny_flags):
    path = Core(tiny_flags | {"archive": 2, "E": 5}).run()
    assert results.stored_eids(path) == [2, 4, 5]
    short = Core(tiny_flags | {"E": 4}).run()
    assert_same_weights(results.load_weights(path, 4), results.load_weights(short))


def test_a_diverging_run_ends_with_what_to_do_and_keeps_its_epochs(tiny_flags):
    core = Core(tiny_flags | {"lr": 1e6, "loss_ub": 5})
    with pytest.raises(TrainingDiverged, match="lower --lr"):
        core.run()
    (path,) = (ROOT / tiny_flags["logs_dir"] / "unnamed").glob("2*")
    assert results.load(path)["raw"] == {}


def test_an_lr_below_its_bound_ends_the_run(tiny_flags):
    with pytest.raises(TrainingDiverged, match=r"below lr_lb=0\.01"):
        Core(tiny_flags | {"lr": ("loss-based-v1", 0.5, 1.1, 2.0), "lr_lb": 0.01, "loss_ub": 1e-9}).run()


# Resuming


@pytest.mark.parametrize(
    "changes", [{}, {"archive": ("logloss", 2)}, {"lr": 0.05}, {"train_mode": "NORMAL"}], ids=str
)
@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tiny_flags, changes, stop_at):
    flags = tiny_flags | {"E": 9} | changes
    whole = Core(flags).run()
    path = Core(flags | {"E": stop_at}).run()
    Core(flags | {"resume": str(path)}).run()
    assert without_times(results.read_journal(path)) == without_times(results.read_journal(whole))
    assert without_times(results.load(path)["raw"]) == without_times(results.load(whole)["raw"])
    assert results.stored_eids(path) == sorted({*results.stored_eids(whole)})
    assert_same_weights(results.load_weights(path), results.load_weights(whole))


def test_a_run_stopped_within_an_epoch_resumes_to_the_uninterrupted_run(tiny_flags, monkeypatch):
    """As a signal does it, between two batches: the weights of the half epoch must not stay."""
    whole = Core(tiny_flags).run()
    monkeypatch.setattr(network, "TURN_FLOPS", 1)
    ticks = []

    def update(fraction):
        if len(ticks) == 16:
            raise Stopped(signal.SIGINT)

    core = Core(tiny_flags, update=update)
    train_epoch = core.context.model.train_epoch

    def counting(*args):
        *others, tick = args
        return train_epoch(*others, lambda done: (ticks.append(done), tick(done)))

    core.context.model.train_epoch = counting
    with pytest.raises(Stopped):
        core.run()
    assert ticks[-1] > 0, "the signal was to come within an epoch"
    path = (logs_dir(core.context) / core.context.name / "latest").resolve()
    Core(tiny_flags | {"resume": str(path)}).run()
    assert without_times(results.read_journal(path)) == without_times(results.read_journal(whole))
    assert_same_weights(results.load_weights(path), results.load_weights(whole))


def test_epochs_after_the_last_checkpoint_are_repeated_identically(tiny_flags):
    """As after SIGKILL: the journal has more epochs than the checkpoint, and a torn line."""
    flags = tiny_flags | {"E": 8, "archive": 3}
    whole = Core(flags).run()
    path = Core(flags).run()
    (path / "checkpoint.npz").write_bytes(read.archive_path(path, 3).read_bytes())
    read.archive_path(path, 6).unlink()
    with open(path / "journal.jsonl", "ab") as file:
        file.write(b'{"eid": 9, "l')
    Core(flags | {"resume": str(path)}).run()
    assert without_times(results.read_journal(path)) == without_times(results.read_journal(whole))
    assert_same_weights(results.load_weights(path, 6), results.load_weights(whole, 6))


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_directory(tiny_flags):
    whole, path = Core(tiny_flags).run(), Core(tiny_flags).run()
    (path / "checkpoint.npz").unlink()
    (path / "res").unlink()
    assert Core(tiny_flags | {"resume": str(path)}).run() == path
    assert without_times(results.load(path)["raw"]) == without_times(results.load(whole)["raw"])


def test_resuming_refuses_other_data_another_experiment_and_a_cut_journal(tiny_flags, tmp_path):
    path = Core(tiny_flags, "one").run()
    resume = {"resume": str(path)}
    with pytest.raises(UserError, match="a run of one, not of two"):
        Core(tiny_flags | resume, "two").run()
    with pytest.raises(UserError, match=r"--train_N 299: the run to resume has 300"):
        Core(tiny_flags | resume | {"train_N": 299}, "one").run()
    with pytest.raises(UserError, match=r"--model.description .*: the run to resume has"):
        Core(tiny_flags | resume | {"model": {"description": TINY[2:]}}, "one").run()
    (path / "journal.jsonl").write_text("")
    with pytest.raises(UserError, match="cannot be resumed"):
        Core(tiny_flags | resume, "one").run()
    with pytest.raises(UserError, match="not a working directory"):
        Core(tiny_flags | {"resume": str(tmp_path)}, "one").run()


# Peeking


def test_peeking_restores_each_epoch_and_trains_on_at_fixed_lr_and_frame(tiny_flags):
    path = Core(tiny_flags | {"archive": 2, "E": 6}).run()
    raw = results.load(path)["raw"]
    peek = {"task": "train_peek", "load_dir": str(path), "eid": [2, 6], "E": 3, "lr": 0.02, "log_frame0": -1.5}
    core = Core(tiny_flags | peek)
    peeked = results.load(core.run())["raw"]
    assert list(peeked) == [2, 6]
    for eid, part in peeked.items():
        for key in ("log_loss", "rho", "q_min", "test_loss", "acc"):
            assert part["stats"][key] == raw[eid]["stats"][key]
        assert part["q"].shape == (300,) and part["q"].min() == raw[eid]["stats"]["q_min"]
        assert [info["eid"] for info in part["epochs"]] == [eid + 1, eid + 2, eid + 3]
        for info in part["epochs"]:
            assert (info["lr"], info["log_frame"]) == (0.02, -1.5)
            assert info["q"].min() == info["stats"]["q_min"]
    # By hand: three epochs from the stored weights.
    context = core.context
    context.model.set_weights(context.stored_weights(path, 2))
    for eid in (3, 4, 5):
        batches = attempts.permutation(context, eid, 1).reshape(6, 50)
        context.model.train_epoch(*context.train_set, batches, 0.02, -1.5, 600.0)
    logits = context.model.evaluate(*context.train_set)[2]
    q = margins.margins(margins.gaps(logits, context.dataset[0][1]))
    np.testing.assert_array_equal(q, peeked[2]["epochs"][-1]["q"])


def test_peeking_names_missing_flags(tiny_flags):
    path = Core(tiny_flags).run()
    peek = tiny_flags | {"task": "train_peek", "lr": 0.1}
    with pytest.raises(UserError, match="needs --load_dir"):
        Core(peek).run()
    with pytest.raises(UserError, match="needs a fixed --lr"):
        Core(peek | {"lr": "loss-based-v1", "load_dir": str(path)}).run()
    with pytest.raises(UserError, match=r"--eid 3: not stored .* stored are 4"):
        Core(peek | {"load_dir": str(path), "eid": 3}).run()
    peeked = Core(peek | {"load_dir": str(path), "eid": 4, "E": 1}).run()
    with pytest.raises(UserError, match="a peek cannot be resumed"):
        Core({"resume": str(peeked)}).run()


def test_peeking_at_a_run_on_other_data_is_refused(tiny_flags, tmp_path):
    path = pixels(tmp_path / "set.npz", n_classes=10)
    run = Core(tiny_flags | {"dataset": path, "train_N": "all", "B": 20, "E": 1, "log_frame0": 3.0}).run()
    pixels(tmp_path / "set.npz", n_classes=9)
    with pytest.raises(UserError, match="other data or labels"):
        Core({"task": "train_peek", "load_dir": str(run), "eid": 1, "lr": 0.1, "E": 1, "B": 20}).run()


def test_epochs_are_chosen_among_the_stored(tiny_flags):
    path = Core(tiny_flags | {"archive": 2, "E": 5}).run()
    assert [results.choose_eids(path, wanted) for wanted in ("all", "last", [2, 4])] == [[2, 4, 5], [5], [2, 4]]


# What does not fit


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"B": 301}, "--B 301: larger than the training set of 300"),
        ({"dataset": "nope"}, "--dataset nope"),
        ({"model": {"description": None}}, "this experiment has none"),
        ({"model": {"description": [["F", 9]]}}, "has 9 units, but digits has 10 classes"),
        ({"model": {"description": [["P"]] * 4 + [["F", 10]]}}, "too small"),
        ({"gpus": 1}, "no flag is named gpus"),
        ({"parts": 51}, "--parts 51: a batch has 50 examples"),
        ({"parts": 2, "model": {"description": [["F", 10, {"bn": True}]]}}, "batch norm needs whole"),
    ],
)
def test_flags_that_do_not_fit_the_data_are_refused_before_anything_is_made(tiny_flags, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        Core(tiny_flags | changes).run()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "description, device, parts",
    [
        (CNN, "CPU", min(cores(), 3)),  # at least 32 of the 100 examples a part
        (VGG16, "CPU", 1),
        (MLP, "CPU", 1),
        ([["F", 10, {"bn": True}]], "CPU", 1),
        (CNN, "GPU 0", 1),
    ],
)
def test_small_convolutional_networks_have_one_part_per_core_on_the_cpu(description, device, parts):
    shape = (32, 32, 3) if description is VGG16 else (8, 8, 1)
    assert choose_parts("auto", description, shape, 100, device, cores()) == parts


def test_a_resumed_run_keeps_its_parts_and_says_what_a_new_one_would_use(tiny_flags, caplog, monkeypatch):
    path = Core(tiny_flags | {"E": 1, "threads": 2, "B": 100}).run()
    about = results.read_about(path)
    assert about["threads"] == {"threads": 2, "parts": 2}
    (path / "about.json").write_text(json.dumps(about | {"threads": {"threads": 2, "parts": 1}}))
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", "margin")
    flags = json.loads((path / "flags.json").read_text()) | {"threads": "auto"}
    (path / "flags.json").write_text(json.dumps(flags))
    monkeypatch.setattr("engine.compute.cores", lambda: 2)
    core = Core({"resume": str(path), "E": 2})
    core.run()
    assert core.context.compute.parts == 1
    assert "batches are cut into 1 parts, as when the run began; a new run would use 2" in caplog.text


def test_about_json_records_what_a_reader_of_the_run_needs(tiny_flags):
    about = results.read_about(Core(tiny_flags, "exper").run())
    assert about["experiment"] == "exper" and about["data"]["train"] == 300
    assert set(about["versions"]) >= {"python", "tensorflow", "numpy"}


def test_stdout_and_pickle_in_the_working_directory_record_the_run(tiny_flags):
    path = Core(tiny_flags).run()
    assert {p.name for p in path.iterdir()} >= {"flags.json", "about.json", "journal.jsonl", "res", "checkpoint.npz"}
    with open(path / "res", "rb") as file:
        assert pickle.load(file)["flags"]["B"] == 50
    assert json.loads((path / "journal.jsonl").read_text().splitlines()[0])["eid"] == 1


def test_an_independent_forward_pass_and_mpmath_give_what_was_recorded(tiny_flags):
    description = [["C", 4, [3, 2]], ["A"], ["C", 4, [3, 3]], ["P"], ["F", 16], ["F", 10, {"act": False}]]
    path = Core(
        tiny_flags | {"E": 12, "log_frame0": 3.0, "model": tiny_flags["model"] | {"description": description}}
    ).run()
    recorded = results.load(path)["raw"][12]["stats"]
    for name, value in recompute.recomputed(str(path), 12).items():
        assert recorded[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
