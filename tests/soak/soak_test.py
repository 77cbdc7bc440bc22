"""The campaign against faults: kills, failing disks, mutated files, hostile pickles, random command lines.

`./test.sh --soak` runs it whole; `./test.sh` runs a small part. Each test prints how many cases it
tried. What it would catch: a traceback, a signal, a message without the file's name, a result that differs.
"""

import errno
import os
import pathlib
import pickle
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands_test import ENV, QUICK, SMALL, command
from core_test import assert_same_weights, without_times

import flags as flag_table
import launch
import results
from attacks import measurement
from core import Core
from data import labels, loading
from reporting import kinds, page
from storage import workdir
from storage.run_flags import of_command_line, stored
from support.errors import UserError
from support.files import ROOT

WHOLE = os.environ.get("SOAK") == "1"
MODEL = {"description": [["F", 8], ["F", 10, {"act": False}]], "init": {"weight": "he_normal"}}
TINY = {"dataset": "digits", "train_N": 200, "B": 50, "E": 6, "gpu": -1, "archive": 3, "log_frame0": 3.0}
TINY["model"] = MODEL


def cases(whole, small):
    return whole if WHOLE else small


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Core(TINY | {"logs_dir": str(tmp_path_factory.mktemp("logs"))}, QUICK).run()


@pytest.fixture(scope="module")
def attacked(trained):
    attack = {"task": "attack", "attack_method": "ddn", "attack_K": 5}
    words = [str(trained), "--eid", "last", "--attack_N", "20", "--gpu", "-1"]
    return Core(of_command_line(words, attack), "eval-tiny").run()


# Mutated files

AFTER = shutil.ignore_patterns("eval-*", "tiny-*", "figures")  # what later tasks leave in a run
TASKS = {
    "attack": {"task": "attack", "attack_method": "ddn", "attack_K": 5, "attack_N": 20, "eid": "last"},
    "measure_radius": {"task": "measure_radius", "directions": 2, "eid": "last"},
}


class Read(Exception):
    """The task has read all that it needs."""


def task_on(run, task, *words):
    run = [] if "--resume" in words else [str(run)]
    return Core(of_command_line([*run, *words, "--gpu", "-1"], TASKS[task]), f"tiny-{task}").run()


def outcome(action, *files):
    """'right', or what a refusal says: an error of one line that names one of the files."""
    try:
        action()
    except Read:
        return "right"
    except UserError as error:
        assert "\n" not in str(error) and any(str(file) in str(error) for file in files), error
        return str(error)
    return "right"


def mutated(content, rng):
    """Content with bits flipped, cut, grown, repeated, or with numbers replaced."""
    kind = rng.randrange(6)
    at = rng.randrange(max(len(content), 1))
    if kind == 0:
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
    if kind == 3:
        return content[:at] + content[at // 2 :]
    if kind == 4:
        return rng.randbytes(rng.randrange(200))
    number = rng.choice([b"NaN", b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"9" * 30, b"true"])
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return content[:at]
    place = rng.choice(found)
    return content[: place.start()] + number + content[place.end() :]


READERS = {
    "flags.json": [results.read_flags, stored, lambda path: kinds.read([path])],
    "about.json": [results.read_about, lambda path: kinds.read([path])],
    "res": [results.load, lambda path: kinds.read([path])],
    "journal.jsonl": [results.read_journal, results.load],
    "checkpoint.npz": [results.load_weights, results.stored_eids, lambda path: results.choose_eids(path, "all")],
    "archive/eid-000003.npz": [lambda path: results.load_weights(path, 3), results.stored_eids],
}


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_correctly_or_refused_in_one_line_that_names_it(trained, tmp_path, name):
    own = shutil.copytree(trained, tmp_path / "run", ignore=AFTER)
    content, rng = (own / name).read_bytes(), random.Random(name)
    refused = 0
    for _ in range(cases(2000, 60)):
        (own / name).unlink()
        (own / name).write_bytes(mutated(content, rng))
        for read in READERS[name]:
            try:
                read(own)
            except UserError as error:
                refused += 1
                assert str(own) in str(error) and "\n" not in str(error), error
    print(f"{name}: {cases(2000, 60)} mutations, {len(READERS[name])} readers, {refused} refused")
    assert refused


@pytest.mark.parametrize("task, name", [("attack", "summary.json"), ("attack", "res"), ("measure_radius", "res")])
def test_mutated_results_are_shown_or_refused_in_one_line_that_names_them(trained, tmp_path, task, name):
    path = task_on(shutil.copytree(trained, tmp_path / "run", ignore=AFTER), task)
    content = (path / name).read_bytes()
    if name == "res":  # of an older version: without a digest every change reaches the figures
        content = pickle.dumps(results.load(path), protocol=4)
    rng, found = random.Random(task + name), []
    for _ in range(cases(300, 5)):
        (path / name).write_bytes(mutated(content, rng))
        found.append(outcome(lambda: page.page([path]), path))
    print(f"{task}, another {name}: {len(found)} cases, {len(found) - found.count('right')} refused")


@pytest.mark.parametrize("name", ["data.npz", "labels.npz"])
def test_mutated_data_is_read_right_or_refused_in_one_line_that_names_it(tmp_path, name):
    (x, y), (x_test, y_test) = loading.load("digits", train_N=40)
    path = tmp_path / name
    if name == "data.npz":
        arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test, "levels": 16}
        np.savez_compressed(path, **arrays)
    else:
        labels.save_random_labels(path, y, 0, y)
    dataset, content, rng = loading.load("digits", train_N=40), path.read_bytes(), random.Random(name)
    for _ in range(cases(2000, 60)):
        path.write_bytes(mutated(content, rng))
        try:
            loading.load(str(path)) if name == "data.npz" else labels.with_labels_of(dataset, path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error), error


# Mutated files under tasks that read a run


@pytest.mark.parametrize("name", [name for name in READERS if name != "res"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_on_a_run_with_a_mutated_file_works_or_is_refused_in_one_line(
    trained, tmp_path, monkeypatch, task, name
):
    own = shutil.copytree(trained, tmp_path / "run", ignore=AFTER)
    content, rng, found = (own / name).read_bytes(), random.Random(task + name), []

    def reads(executor, *_):
        """In place of the work itself: the network is built and its weights are loaded."""
        for eid in results.choose_eids(own, "last"):
            executor.worker.context.stored_weights(own, eid)
        raise Read

    monkeypatch.setattr("engine.serial.Serial.run", reads)
    words = ["--eid", "3"] if name.startswith("archive") else []
    for number in range(cases(2000, 12)):
        (own / name).unlink()
        (own / name).write_bytes(mutated(content, rng) if number else content)
        # A flag that a mutation made unusable is refused by its own name.
        files = [own, *(["--", "flags"] if name == "flags.json" else [])]
        found.append(outcome(lambda: task_on(own, task, *words), *files))
        assert number or found == ["right"]
        for path in own.glob("tiny-*"):
            shutil.rmtree(path)
    print(f"{task} on a run with another {name}: {len(found)} cases, {len(found) - found.count('right')} refused")


RESUMED = [(task, name) for task in TASKS for name in ("flags.json", "about.json", "records")]


@pytest.mark.parametrize("task, name", [*RESUMED, ("measure_radius", "records of an older version")])
def test_a_resumed_task_with_a_mutated_file_works_or_is_refused_in_one_line(trained, tmp_path, task, name):
    own = shutil.copytree(trained, tmp_path / "run", ignore=AFTER)
    path = task_on(own, task)
    if task == "attack":  # as it was before its end: with the records of its images
        res = results.load(path)[6]
        records = measurement.open_records(path / "eid-000006.npy", 20, res["images"].shape[1:])
        names = {"image": "images", "error": "errors"}
        measurement.store(records, 0, {key: res[names.get(key, key)] for key in measurement.RESULTS})
    (path / "res").unlink()
    records = path / ("eid-000006.npy" if task == "attack" else "journal.jsonl")
    if name.endswith("older version"):
        records.write_text("".join(re.sub(r', "crc32": \d+', "", line) for line in records.open()))
        about = results.read_about(path)
        workdir.WorkDir(path).write_json("about.json", {k: v for k, v in about.items() if k != "format"})
    changed = records if name.startswith("records") else path / name
    content, rng, found = changed.read_bytes(), random.Random(task + name), []
    kept = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
    for number in range(cases(300, 5)):
        for file in path.iterdir():
            file.unlink() if file not in kept else file.write_bytes(kept[file])
        changed.write_bytes(mutated(content, rng) if number else content)
        files = [path, *(["--", "flags"] if name == "flags.json" else [])]
        found.append(outcome(lambda: task_on(own, task, "--resume", str(path)), *files))
        assert number or found == ["right"]
    print(
        f"{task} resumed with another {changed.name}: {len(found)} cases, {len(found) - found.count('right')} refused"
    )


# Hostile pickles


def test_hostile_pickles_end_in_an_error_within_bounded_memory(tmp_path):
    rng = random.Random(0)
    good = pickle.dumps({"a": [np.arange(6.0).reshape(2, 3), 1.5, "x" * 50], "b": np.float64(2)}, protocol=4)
    old = pickle.dumps({"a": [np.arange(6.0), (1, 2)]}, protocol=2)
    opcodes = (
        b"(.0123FGIJKLMNPQRSTUVXabcdeghijlopqrstu})]\x80\x81\x85\x86\x87\x8a\x8b\x8c\x8d\x8e\x8f\x90\x93\x94\x95"
    )
    hostile = [mutated(rng.choice([good, old]), rng) for _ in range(cases(150, 30))]
    hostile += [bytes(rng.choice(opcodes) for _ in range(rng.randrange(1, 60))) for _ in range(cases(50, 10))]
    for k, content in enumerate(hostile):
        (tmp_path / f"{k:03d}").write_bytes(content)
    code = (
        "import pathlib, resource, sys; from support import safe_pickle\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "refused = 0\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: safe_pickle.loads(path.read_bytes())\n"
        "    except Exception: refused += 1\n"
        "print(refused)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    print(f"{len(hostile)} hostile pickles, {done.stdout.strip()} refused")


# Command lines


def test_random_command_lines_run_or_are_one_line_errors(trained, monkeypatch, capsys, tmp_path):
    rng = random.Random(0)
    values = [
        "0",
        "-1",
        "1e999",
        "nan",
        "none",
        "NONE",
        "all",
        "last",
        "[]",
        "{}",
        "()",
        "''",
        "a,b",
        "1,2",
        "--",
        "-1e3",
    ]
    values += [
        "9" * 500,
        "1" * 5000,
        "2**2**99",
        "log(0)",
        "x\ny",
        "\udcff",
        "true",
        "[['F',3]]",
        "/",
        ".",
        str(trained),
    ]
    scripts = (
        sorted(ROOT.glob("exper-quick-*.py")) + sorted(ROOT.glob("eval-*.py")) + sorted(ROOT.glob("measure_*.py"))
    )
    names = [*flag_table.BY_NAME, *flag_table.table.ALIASES, "nothing", "lrr"]

    def stop(*args):
        raise UserError("parsed")

    monkeypatch.setattr("core.Core.__init__", stop)
    for _ in range(cases(500, 100)):
        script = rng.choice(scripts)
        words = [str(trained)] if script.name.startswith(("eval", "measure")) and rng.random() < 0.8 else []
        for _ in range(rng.randrange(4)):
            words += rng.choice(
                [[f"--{rng.choice(names)}", rng.choice(values)], [f"--{rng.choice(names)}={rng.choice(values)}"]]
            )
        monkeypatch.setattr(sys, "argv", [script.stem, *words])
        with pytest.raises(SystemExit) as end:
            launch.main(str(script), runpy.run_path(str(script))["flags"], "about")
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1 and said.startswith("error: "), (words, said)


# Failing disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("place", ["os.replace", "os.fsync", "workdir.WorkDir.append", "os.link"])
def test_after_a_failed_write_the_resumed_run_is_the_uninterrupted_one(tmp_path, trained, monkeypatch, place, number):
    rng = random.Random(place)
    for _ in range(cases(6, 1)):
        fails_at, calls = rng.randrange(2, 8), []
        with monkeypatch.context() as patch:
            module, name = place.rsplit(".", 1)
            owner = {"os": os, "workdir.WorkDir": workdir.WorkDir}[module]
            real = getattr(owner, name)

            def failing(*args, real=real, calls=calls, fails_at=fails_at, **kwargs):
                calls.append(1)
                if len(calls) == fails_at:
                    raise OSError(number, os.strerror(number))
                return real(*args, **kwargs)

            patch.setattr(owner, name, failing)
            core = Core(TINY | {"logs_dir": str(tmp_path), "checkpoint_every": 1e-9}, QUICK)
            try:
                path = core.run()
            except OSError:
                path = next(iter(p for p in (tmp_path / QUICK).glob("2*") if not (p / "seen").exists()), None)
        if path is None or not (path / "flags.json").exists():
            continue  # it failed before there was a run: nothing is left
        path = Core(TINY | {"resume": str(path)}, QUICK).run()
        assert without_times(results.read_journal(path)) == without_times(results.read_journal(trained))
        assert_same_weights(results.load_weights(path), results.load_weights(trained))
        (path / "seen").touch()


# Kills


PATIENT = {"timeout": 3600}  # a slow machine is no failure


def killed_until_done(words, resume, begun, rng, most):
    """Start, kill at a random moment after the directory is there, resume; the number of kills."""
    kills, start_up = 0, 0.0
    while kills < most:
        process = subprocess.Popen(
            resume() if begun() else words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV
        )
        began = time.monotonic()
        while not begun() and process.poll() is None:
            time.sleep(0.05)
            start_up = time.monotonic() - began
        try:
            process.wait(rng.uniform(start_up / 2 if kills else 0, start_up + 5))
            return kills
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    return kills


@pytest.mark.skipif(not WHOLE, reason="long: ./test.sh --soak")
@pytest.mark.parametrize(
    "most, words",
    [
        (50, ["--E", "2000"]),
        (10, ["--E", "600", "--opt", "adam", "--lr", "0.001"]),
        (10, ["--E", "600", "--opt", "muon", "--lr", "decay,0.01,0.5"]),
    ],
    ids=["gd", "adam", "muon"],
)
def test_kills_of_a_training(tmp_path, most, words):
    logs = tmp_path / "logs"
    E = [*words, "--archive", "50", "--checkpoint_every", "0.05"]
    done = command("run.sh", QUICK, *SMALL, *E, "--logs_dir", str(tmp_path / "whole"), **PATIENT)
    assert done.returncode == 0
    run = lambda: (logs / QUICK / "latest").resolve()  # noqa: E731
    start = [str(ROOT / "run.sh"), QUICK]
    resume = lambda: [*start, "--resume", str(run())]  # noqa: E731
    begun = (logs / QUICK / "latest").exists
    kills = killed_until_done([*start, *SMALL, *E, "--logs_dir", str(logs)], resume, begun, random.Random(1), most)
    assert command("run.sh", QUICK, "--resume", str(run()), **PATIENT).returncode == 0
    whole = (tmp_path / "whole" / QUICK / "latest").resolve()
    print(f"{kills} kills")
    assert without_times(results.read_journal(run())) == without_times(results.read_journal(whole))
    for eid in results.stored_eids(whole):
        assert_same_weights(results.load_weights(run(), eid), results.load_weights(whole, eid))


@pytest.mark.skipif(not WHOLE, reason="long: ./test.sh --soak")
@pytest.mark.parametrize("name", ["eval-final-mnist-l2-ddn", "measure_radius"])
def test_ten_kills_of_an_attack_and_of_a_radius(trained, tmp_path, name):
    own = shutil.copytree(trained, tmp_path / "run", ignore=AFTER)
    program = "eval.sh" if name.startswith("eval") else "run.sh"
    words = ["--attack_K", "20000", "--attack_B", "8"] if program == "eval.sh" else ["--radius_step", "0.0002"]
    words = [str(own), "--eid", "last", "--gpu", "-1", "--figures", "false", *words]
    if program == "run.sh":
        words += ["--directions", "40"]
    assert command(program, name, *words, **PATIENT).returncode == 0
    whole = (own / name / "latest").resolve()
    start = [str(ROOT / program), name]
    resume = lambda: [*start, "--resume", str((own / name / "latest").resolve())]  # noqa: E731
    begun = lambda: (own / name / "latest").resolve() != whole  # noqa: E731
    kills = killed_until_done([*start, *words], resume, begun, random.Random(2), 10)
    path = (own / name / "latest").resolve()
    assert command(program, *resume()[1:], **PATIENT).returncode == 0
    print(f"{name}: {kills} kills")
    assert plain(results.load(path)) == plain(results.load(whole))


def plain(value):
    """Without flags, with arrays as bytes."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items() if key != "flags"}
    return value.tobytes() if isinstance(value, np.ndarray) else value


@pytest.mark.skipif(not WHOLE, reason="long: ./test.sh --soak")
def test_ten_thousand_epochs_with_all_batch_losses_take_no_longer_and_no_more_memory_at_the_end(
    tmp_path, monkeypatch
):
    held, append = {}, workdir.WorkDir.append

    def weighed(work_dir, info):
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        held[info["eid"]] = int(pages) * resource.getpagesize() / 2**20
        return append(work_dir, info)

    monkeypatch.setattr(workdir.WorkDir, "append", weighed)
    flags = TINY | {"E": 10_000, "include_all_rt_loss_in_res": True, "logs_dir": str(tmp_path), "archive": "idle"}
    began, path = time.time(), Core(flags | {"lr": 0.01, "log_frame0": 3.0}, QUICK).run()
    times = np.array([info["time"] for info in results.read_journal(path).values()])
    early, late = np.median(times[100:2000]), np.median(times[-2000:])
    print(f"10000 epochs in {time.time() - began:.0f} s; an epoch {early:.4f} s, then {late:.4f} s")
    print(f"memory {held[1000]:.0f} MiB after 1000 epochs, {held[10_000]:.0f} after 10000")
    assert len(results.load(path)["raw"]) == 10_000
    assert held[10_000] - held[1000] < 200  # the infos themselves
