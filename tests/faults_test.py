"""Faults: two processes at once, flipped bits, files that are not what they claim, flags that lie."""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from commands_test import ENV, QUICK, assert_one_line, command
from conftest import ROOT

import datasets
import results
import safe_pickle
from core import Core
from errors import UserError


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
    with results.locked(own):
        done = command("run.sh", QUICK, "--resume", str(own), "--E", "9", "--figures", "false")
    assert_one_line(done, 2, f"{own}: is being written by process {os.getpid()} on ", "wait for its end")
    assert (own / "journal.jsonl").read_bytes() == before
    done = command("run.sh", QUICK, "--resume", str(own), "--E", "7", "--figures", "false")
    assert done.returncode == 0 and len(results.read_journal(own)) == 7


def test_of_many_started_at_once_one_runs_and_no_epoch_is_written_twice(own):
    words = [str(ROOT / "run.sh"), QUICK, "--resume", str(own), "--E", "60", "--figures", "false"]
    started = [
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENV)
        for _ in range(4)
    ]
    ends = [(process.communicate(timeout=200)[1], process.returncode) for process in started]
    assert {status for _, status in ends} <= {0, 2} and any(status == 0 for _, status in ends)
    assert all("is being written by" in said for said, status in ends if status == 2)
    assert list(results.read_journal(own)) == list(range(1, 61))


def test_a_lock_ends_with_its_owner(own):
    code = f"import results, os\nwith results.locked({str(own)!r} and __import__('pathlib').Path({str(own)!r})):"
    subprocess.run([sys.executable, "-c", code + " os._exit(9)"], cwd=ROOT)
    with results.locked(own):
        pass


@pytest.mark.parametrize("change", ["missing", "twice", "swapped"])
def test_epochs_that_are_not_continuous_are_noticed(own, change):
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


def test_plain_pickle_reads_res_and_older_files_without_checksums_load_and_that_is_said_once(
    own, caplog, monkeypatch
):
    with open(own / "res", "rb") as file:
        res = pickle.load(file)
    assert res == results.load(own)
    (own / "res").write_bytes(pickle.dumps(res, protocol=5))
    lines = [json.loads(line) for line in (own / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        del line["crc32"]
    (own / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(results, "_noted", [])
    monkeypatch.setattr(results.log, "propagate", True)
    caplog.set_level("INFO", "margin")
    assert results.load(own) == res and len(results.read_journal(own)) == 6
    assert len([m for m in caplog.messages if "without checksums" in m]) == 1


# Data and flags that lie


@pytest.mark.parametrize("label", [2**32 + 3, 2**63 + 3, 2**31 + 3, -(2**32) + 3])
def test_labels_do_not_wrap(tmp_path, label):
    x, y = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 10
    bad = np.array([label], np.uint64 if label > 2**62 else np.int64)
    y = np.concatenate([y[:19].astype(bad.dtype), bad])
    np.savez(tmp_path / "bad.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(UserError, match=r"bad\.npz: y_train has labels from .* expected 0 to 65535"):
        datasets.load(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize(
    "words", [["--E", "2"], ["--data_dir", "/nowhere"], ["--E", "2", "--logs_dir", "/elsewhere"]]
)
def test_resuming_changes_nothing_before_the_run_goes_on(own, words):
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
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_array_is_an_error_and_no_signal(content, tmp_path):
    (tmp_path / "p").write_bytes(content)
    code = (
        "import safe_pickle, sys\n"
        "try: value = safe_pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "except Exception as error: print('refused', type(error).__name__)\n"
        "else: print('loaded', repr(value)[:80])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith("refused"), (done.returncode, done.stdout, done.stderr)


def test_nothing_is_nested_deeper_than_a_results_file_needs():
    with pytest.raises(pickle.UnpicklingError, match="nested deeper"):
        safe_pickle.loads(b"(" * 500 + b"l" * 500 + b".")


def test_a_header_of_a_terabyte_is_a_damaged_file_and_takes_no_memory(tmp_path):
    array = np.zeros(3)
    np.savez(tmp_path / "x.npz", x_train=array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue() + b"0" * 24)
    with pytest.raises(UserError, match=r"x\.npz: not an \.npz of plain arrays: damaged or truncated .*bytes"):
        datasets.load(str(tmp_path / "x.npz"))
