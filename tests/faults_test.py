"""Faults: two processes at once, flipped bits, files that are not what they claim, flags that lie."""

import errno
import io
import json
import os
import pickle
import random
import runpy
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from builders import soak
from commands_test import ENV, QUICK, SCRIPT, SMALL, command
from results_test import READERS

import figures
import flags as flag_table
import launch
import results
from attacks import measurement
from core import Core
from data import labels, loading
from engine.context import Context
from storage import workdir
from storage.run_flags import of_command_line
from support import checksums, device, safe_pickle
from support.errors import UserError
from support.files import ROOT
from training import attempt as attempts
from training.run import Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The working directory of a tiny run of 6 epochs."""
    model = {"description": [["F", 16], ["F", 10, {"act": False}]], "init": {"weight": "he_normal"}}
    flags = {"dataset": "digits", "train_N": 300, "B": 50, "E": 6, "gpu": -1, "archive": 3, "model": model}
    return Core(flags | {"logs_dir": str(tmp_path_factory.mktemp("logs"))}, QUICK).run()


@pytest.fixture
def own(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


# Two at once


def test_a_second_process_on_one_directory_is_refused_and_names_the_first(own):
    before = (own / "journal.jsonl").read_bytes()
    said = rf"^{own}: process {os.getpid()} on .* is writing there; wait until it ends"
    with workdir.locked(own), pytest.raises(UserError, match=said):
        Core(of_command_line(["--resume", str(own), "--E", "9"], SCRIPT), QUICK).run()
    assert (own / "journal.jsonl").read_bytes() == before


@soak
def test_of_many_simultaneous_starts_one_runs_and_no_epoch_is_written_twice(own):
    words = [str(ROOT / "run.sh"), QUICK, "--resume", str(own), "--E", "30", "--figures", "false"]
    started = [
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENV)
        for _ in range(20 if os.environ.get("SOAK") else 3)
    ]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in started]
    assert {status for _, status in ends} <= {0, 2} and any(status == 0 for _, status in ends)
    assert all("is writing there" in said for said, status in ends if status == 2)
    assert list(results.read_journal(own)) == list(range(1, 31))


def test_a_lock_ends_with_its_owner(own):
    code = "import os, sys, pathlib\nfrom storage import workdir\n"
    code += "with workdir.locked(pathlib.Path(sys.argv[1])): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(own)], cwd=ROOT)
    with workdir.locked(own):
        pass


@pytest.mark.parametrize("change", ["missing", "twice", "swapped"])
def test_a_journal_with_gaps_is_detected(own, change):
    lines = (own / "journal.jsonl").read_bytes().splitlines(keepends=True)
    changed = {"missing": lines[:2] + lines[3:], "twice": lines[:3] + lines[2:], "swapped": lines[::-1]}[change]
    (own / "journal.jsonl").write_bytes(b"".join(changed))
    with pytest.raises(UserError, match=r"journal\.jsonl: line \d is of epoch \d, not of epoch \d"):
        results.read_journal(own)


# Flipped bits


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", ["res", "journal.jsonl", "checkpoint.npz"])
def test_no_flipped_bit_passes_as_another_value(own, name):
    content, rng = (own / name).read_bytes(), random.Random(0)

    def read():
        if name == "checkpoint.npz":
            weights, state = results.load_checkpoint(own)
            return [(key, array.tobytes()) for key, array in weights], state
        return results.load(own)["raw"] if name == "res" else results.read_journal(own)

    whole, noticed = read(), 0
    for _ in range(200):
        (own / name).unlink()
        (own / name).write_bytes(flipped(content, rng.randrange(8 * len(content))))
        try:
            assert read() == whole  # it hit what no value depends on
        except UserError as error:
            noticed += 1
            assert str(own / name) in str(error) and "\n" not in str(error)
    assert noticed > 150


def make_older(path):
    """Let a directory be of format 0, which knew no checksums."""
    about = results.read_about(path)
    del about["format"]
    (path / "about.json").write_text(json.dumps(about))


@pytest.mark.parametrize("name", ["res", "journal.jsonl"])
def test_since_format_1_a_missing_checksum_is_damage(own, name):
    content = (own / name).read_bytes()
    (own / name).write_bytes(content.rsplit(b', "crc32"', 1)[0] + b"}\n" if name != "res" else content[:-72])
    with pytest.raises(UserError, match="damaged"):
        results.load(own) if name == "res" else results.read_journal(own)


def test_a_newer_format_is_refused(own):
    about = results.read_about(own) | {"format": 99}
    (own / "about.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="format 99; this version reads up to 1"):
        results.load(own)


def test_plain_pickle_reads_res_and_older_files_load_with_one_warning(own, monkeypatch):
    with open(own / "res", "rb") as file:
        res = pickle.load(file)
    make_older(own)
    np.testing.assert_equal(res, results.load(own))
    (own / "res").write_bytes(pickle.dumps(res, protocol=5))
    lines = [json.loads(line) for line in (own / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        del line["crc32"]
    (own / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = []
    checksums.note_without_checksums.cache_clear()
    monkeypatch.setattr(checksums.log, "warning", said.append)
    np.testing.assert_equal(results.load(own), res)
    assert len(results.read_journal(own)) == 6
    assert len(said) == 1 and "have no checksums" in said[0]


def test_no_flipped_bit_passes_in_an_attacks_records(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "eid-000003.npy"
    records = measurement.open_records(path, 6, (4, 4, 1))
    found = {
        "image": rng.random((4, 4, 4, 1), np.float32),
        "error": rng.random(4),
        "success": np.ones(4, bool),
        "clean_correct": np.ones(4, bool),
        "certified": rng.random(4),
    }
    measurement.store(records, 0, found)
    whole, content, draw = np.array(records), path.read_bytes(), random.Random(0)
    del records
    noticed = 0
    for _ in range(300):
        path.write_bytes(flipped(content, draw.randrange(8 * len(content))))
        try:
            read = measurement.open_records(path, 6, (4, 4, 1))
        except UserError as error:
            noticed += 1
            assert str(path) in str(error)
        else:  # in what is not done yet, or done again
            done = read["done"]
            assert all((read[name][done] == whole[name][done]).all() for name in found)
    assert noticed > 150


# Data and flags that lie


@pytest.mark.parametrize("label", [2**32 + 3, 2**63 + 3, 2**31 + 3, -(2**32) + 3])
def test_labels_do_not_wrap(tmp_path, label):
    x, y = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 10
    bad = np.array([label], np.uint64 if label > 2**62 else np.int64)
    y = np.concatenate([y[:19].astype(bad.dtype), bad])
    np.savez(tmp_path / "bad.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(UserError, match=r"bad\.npz: y_train has labels from .* expected 0 to 65535"):
        loading.load(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--E", "2"], marks=soak),
        ["--data_dir", "/nowhere"],
        pytest.param(["--E", "2", "--logs_dir", "/elsewhere"], marks=soak),
    ],
)
def test_resuming_changes_nothing_before_the_run_continues(own, words):
    before = {p.name: p.read_bytes() for p in own.iterdir() if p.is_file() and p.name not in ("stdout", "lock")}
    done = command("run.sh", QUICK, "--resume", str(own), "--figures", "false", *words)
    assert done.returncode in (0, 2), done.stderr
    after = {p.name: p.read_bytes() for p in own.iterdir() if p.is_file() and p.name not in ("stdout", "lock")}
    assert after == before


HOSTILE = [
    b"cnumpy\nndarray\n((I1\ntS'O'\nS'AAAAAAAA'\ntR.",
    b"cnumpy\ndtype\n(S'O'\nI00\nI01\ntR.",
    b"cnumpy\ndtype\n(S'f8'\nI00\nI01\ntR(I3\nS'<'\nNNNI1000000\nI-1\nI0\ntb.",
    b"cnumpy\ndtype\n(S'V8'\nI00\nI01\ntR(I3\nS'|'\nN(S'a'\nt(dI8\nI1\nI63\ntb.",
    b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\nI00\nI01\ntRS'AAAAAAAA'\ntR.",
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'O'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'O'\ntR"
    b"I00\nS'AAAAAAAA'\ntb.",
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.",
    b"]r\xff\xff\xff\x7f.",  # a table for 2^31 memoized objects
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_array_is_an_error_and_no_signal(content, tmp_path):
    (tmp_path / "p").write_bytes(content)
    code = (
        "from support import safe_pickle; import sys\n"
        "try: value = safe_pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "except Exception as error: print('refused', type(error).__name__)\n"
        "else: print('loaded', repr(value)[:80])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.startswith("refused"), (done.returncode, done.stdout, done.stderr)


def test_nothing_is_nested_deeper_than_a_results_file_needs():
    with pytest.raises(pickle.UnpicklingError, match="nested deeper"):
        safe_pickle.loads(b"(" * 500 + b"l" * 500 + b".")


def test_lists_that_share_lists_take_no_endless_time():
    shared: list = []
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(pickle.UnpicklingError, match="more parts than its size allows"):
        safe_pickle.loads(pickle.dumps(shared))
    flags = {"lr": [0.1] * 3}  # as a `res` may share its flags
    assert safe_pickle.loads(pickle.dumps([flags] * 500)) == [flags] * 500


def test_a_header_of_a_terabyte_is_a_damaged_file_and_takes_no_memory(tmp_path):
    array = np.zeros(3)
    np.savez(tmp_path / "x.npz", x_train=array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue() + b"0" * 24)
    with pytest.raises(UserError, match=r"x\.npz: not an \.npz of plain arrays: damaged or truncated .*bytes"):
        loading.load(str(tmp_path / "x.npz"))


# The command line


@pytest.mark.parametrize(
    "words, says",
    [
        (["--lr=--"], "--lr: expected one value"),
        (["--lr", "1" + 400 * "0"], "--lr "),
        (["--E", "1" + 400 * "0"], "--E 1000"),
        (["--loss_ub", "1" + 400 * "0"], "--loss_ub 1000"),
        (["--loss_ub", "9" * 5000], "--loss_ub"),
        (["--lr", "{}"], "--lr {}"),
        (["--lr", "0.1", "--log_frame0", "1000"], "--log_frame0 1000: expected auto, or a number above -1e6 and"),
        (["--log_frame0", "1e308"], "--log_frame0"),
        (["--archive", "logloss,1e999"], "--archive"),
        (["--model.description", "[['F',1999999999]]"], "--model.description: the layers have"),
        (["--model.input_mean", "1,2,3"], "--model.input_mean has 3 numbers for images of 1 channels"),
        (["--logs_dir", "bad\udcff"], "--logs_dir"),
        (["--dataset", "a\nb"], "--dataset a\\nb"),
        (["--attack_K", "5"], "--attack_K: the task train does not read it (only attack)"),
        (["--seeds", "1,2"], "--seeds: the task train does not read it (only train_seeds)"),
        (["--directions", "5"], "--directions: the task train does not read it"),
        (["--task", "train_seeds"], "--task train_seeds needs --seeds"),
        (["--task", "measure_curvature", "--eigenvalues", "99999999"], "--eigenvalues 99999999: expected a whole"),
        (["--task", "make_points", "--grid", "99999999"], "--grid 99999999: expected a whole number"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_a_mistyped_command_line_is_a_one_line_error(words, says, tmp_path, monkeypatch, capsys):
    flags = runpy.run_path(str(ROOT / f"{QUICK}.py"))["flags"]
    monkeypatch.setattr(sys, "argv", [QUICK, *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        launch.main(f"{QUICK}.py", flags | {"logs_dir": str(tmp_path / "logs"), "gpu": -1})
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and said.startswith("error: "), said[:300]
    assert says in said
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--model.bias_mode", "NONE"], "model.bias_mode", "NONE"),
        (["--augment", "none"], "augment", "none"),
        (["--log_frame0", "-1e2"], "log_frame0", -100.0),
        (["--log_frame0", "-.5"], "log_frame0", -0.5),
    ],
)
def test_none_and_negative_numbers_can_be_given(words, name, value):
    assert flag_table.flatten(of_command_line(words, {"dataset": "digits"}))[name] == value


@pytest.mark.parametrize("flag", ["attack_abort", "attack_normalize_output"])
def test_an_attack_can_be_given_none(own, flag):
    words = [str(own), "--eid", "last", f"--{flag}", "none"]
    got = of_command_line(words, {"task": "attack", "attack_method": "cw"})
    assert got[flag] == "none"
    words = [str(own), "--eid", "last", "--normalize", "none"]
    assert of_command_line(words, {"task": "measure_radius"})["normalize"] == "none"


# Peeking


def test_peeking_takes_network_and_data_from_the_run(own):
    peek = {"task": "train_peek", "load_dir": str(own), "eid": "last", "E": 1, "lr": 1e-3, "gpu": -1}
    stats = results.load(Core(peek).run())["raw"][6]["stats"]
    assert stats["q_min"] == results.load(own)["raw"][6]["stats"]["q_min"]
    for wrong in ({"model": {"act_type": "relu2"}}, {"train_N": 500}, {"dataset": "mnist"}):
        with pytest.raises(UserError, match=rf"--.*: the run {own} has .*; leave it out"):
            Core(peek | wrong)
    with pytest.raises(UserError, match="--train_N 500: the run"):
        words = ["--task", "train_peek", "--load_dir", str(own), "--train_N", "500", "--lr", "0.1"]
        of_command_line(words, {"dataset": "digits"})


# Files that are none


@pytest.mark.parametrize("kind", ["directory", "loop", "pipe"])
@pytest.mark.parametrize("name", READERS)
def test_irregular_files_are_one_line_errors_and_nothing_blocks(own, name, kind):
    path = own / name
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        os.mkfifo(path)
    with pytest.raises(UserError) as error:
        READERS[name](own)
    assert str(path) in str(error.value) and "damaged" not in str(error.value)


def read_labels(path):
    return labels.with_labels_of(loading.load("digits", train_N=40), path)


OTHERS = {
    "archive/eid-000003.npz": lambda path: results.load_weights(path.parent.parent, 3),
    "summary.json": lambda path: results.read_summary(path.parent),
    "eid-000003.npy": lambda path: measurement.open_records(path, 6, (4, 4, 1)),
    "data.npz": lambda path: loading.load(str(path)),
    "labels.npz": read_labels,
    "cifar-10-python.tar.gz": lambda path: loading.load("cifar10", data_dir=str(path.parent)),
    "train-images-idx3-ubyte": lambda path: loading.load("mnist", data_dir=str(path.parent)),
    "data_batch_1": lambda path: loading.load("cifar10", data_dir=str(path.parent)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_read_error_names_the_file_and_does_not_report_damage(own, monkeypatch, name):
    beside = ["t10k-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte", "test_batch"]
    for other in [
        name,
        *(beside + [f"data_batch_{k}" for k in range(1, 6)] if "batch" in name or "idx" in name else []),
    ]:
        (own / other).touch()
    read, memory_map = type(own).read_bytes, np.lib.format.open_memmap

    def failing(real):
        def run(path, *args):
            if str(path) == str(own / name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, *args)

        return run

    monkeypatch.setattr(type(own), "read_bytes", failing(read))
    monkeypatch.setattr(np.lib.format, "open_memmap", failing(memory_map))
    with pytest.raises(UserError) as error:
        OTHERS[name](own / name)
    assert str(own / name) in str(error.value) and "Input/output error" in str(error.value)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("path", ["x" * 300, "loop/run", "a\0b"])
def test_an_inaccessible_directory_is_a_one_line_error(tmp_path, path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="expected a working directory"):
        results.check_run(tmp_path / path)


# Output


@pytest.mark.parametrize("output", [pytest.param("full", marks=soak), pytest.param("closed", marks=soak), "broken"])
def test_a_run_continues_without_a_stdout_and_its_log_file_is_complete(tmp_path, output):
    words = [ROOT / "run.sh", QUICK, *SMALL, "--E", "5", "--logs_dir", tmp_path / "logs"]
    shell = {"full": '"$@" >/dev/full', "closed": '"$@" >&-', "broken": '"$@" | true; exit ${PIPESTATUS[0]}'}[output]
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *map(str, words)], capture_output=True, text=True, env=ENV, timeout=200
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 1
    path = (tmp_path / "logs" / QUICK / "latest").resolve()
    assert len(results.load(path)["raw"]) == 5
    assert len([line for line in (path / "stdout").read_text().splitlines() if line.startswith("epoch #")]) == 5


REDIRECTED = ["| true", pytest.param(">/dev/full", marks=soak), pytest.param(">&-", marks=soak)]


@pytest.mark.parametrize("redirected", REDIRECTED)
def test_an_attack_continues_without_a_stdout(own, redirected):
    words = [ROOT / "eval.sh", "eval-final-mnist-l2-ddn", own, "--eid", "last", "--attack_N", "20", "--attack_K", "5"]
    words += ["--gpu", "-1", "--figures", "false"]
    script = f'"$@" {redirected}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *map(str, words)], capture_output=True, text=True, env=ENV, timeout=200
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1
    path = (own / "eval-final-mnist-l2-ddn" / "latest").resolve()
    assert len(results.load(path)[6]["errors"]) == 20 and "done: results in" in (path / "stdout").read_text()


@pytest.mark.parametrize("program", [pytest.param("figures.py", marks=soak), "report.py"])
@pytest.mark.parametrize("redirected", REDIRECTED)
def test_figures_and_report_end_without_a_traceback_when_nobody_reads(own, program, redirected):
    script = f'"$@" {redirected}; exit 0'
    words = [sys.executable, str(ROOT / program), str(own)]
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1, done.stderr


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_network_of_zeros_is_trained_and_drawn(tiny_flags):
    model = {"description": [["F", 10, {"act": False}]], "init": {"weight": "zeros"}}
    path = Core(tiny_flags | {"model": model, "lr": 0.01, "E": 2}).run()
    assert figures.build([path])


# The last bits, and the far end


def test_threads_and_parts_are_recorded_and_a_resumed_run_takes_those_it_began_with(tiny_flags):
    path = Core(tiny_flags | {"E": 1, "threads": 3, "parts": 2, "B": 100}).run()
    assert results.read_about(path)["threads"] == {"threads": 3, "parts": 2}
    assert "3 threads, batches in 2 parts" in (path / "stdout").read_text()
    resumed = Core(tiny_flags | {"E": 1, "resume": str(path), "B": 100}).context
    assert (resumed.compute.threads, resumed.compute.parts) == (3, 2)


def test_a_task_that_asks_for_other_threads_than_the_process_has_logs_a_note(tiny_flags, caplog, monkeypatch):
    monkeypatch.setattr(device, "_pools", [(1, 7)])
    monkeypatch.setattr(device.log, "propagate", True)
    caplog.set_level("INFO", "margin")
    _ = Core(tiny_flags | {"threads": 2}).context.model
    assert [m for m in caplog.messages if "set 1 concurrent ops on 7 threads" in m and "asks for 2 on 2" in m]


def test_more_parts_than_threads_still_leave_each_op_a_thread(monkeypatch):
    monkeypatch.setattr(device, "_pools", [(0, 0)])
    noted = []
    monkeypatch.setattr(device.log, "info", lambda message, *numbers: noted.append(numbers))
    device.set_threads(2, 8)
    device.set_threads(2, 2)
    assert [numbers[2:] for numbers in noted] == [(2, 1), (2, 1)]


def test_training_continues_at_a_true_loss_of_1e_minus_5000(tiny_flags):
    core = Core(tiny_flags | {"E": 40})
    core.run()
    model, q_min = core.context.model, results.load(core.run())["raw"][40]["stats"]["q_min"]
    assert q_min > 0
    model.weights[-1].assign(model.weights[-1] * (5000 * np.log(10) / q_min + 10))
    start, _ = attempts.stats(core.context, 0.0)
    assert start["log_loss"] < -5000 * np.log(10)
    progress = Training(core.context.changed(log_frame0=start["log_loss"], lr=("loss-based-v1", 1e-9)))
    progress.weights = model.snapshot()
    infos = [progress.epoch() for _ in range(3)]
    assert all(np.isfinite(list(info["stats"].values())).all() for info in infos)
    assert infos[-1]["stats"]["log_loss"] <= start["log_loss"]


@pytest.mark.parametrize("stats_every", [1, 3])
def test_non_finite_values_end_the_attempt_and_are_never_recorded(tiny_flags, monkeypatch, stats_every):
    flags = tiny_flags | {"E": 2, "lr": 0.05, "train_mode": "NORMAL", "stats_every": stats_every}
    context, made = Context(flags), []
    train_epoch = context.model.train_epoch

    def spoiling(*args):
        result = train_epoch(*args)
        if not made:
            context.model.weights[0].assign(context.model.weights[0] * np.nan)
        made.append(1)
        return result

    monkeypatch.setattr(context.model, "train_epoch", spoiling)
    info = Training(context).epoch()
    assert info["stats"]["attempts"] == 2 and np.isfinite(info["stats"]["loss"])
