"""The commands as a user types them: set-up, listings, mistakes, signals, kills, a full disk."""

import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from builders import soak
from core_test import assert_same_weights, without_times

import flags
import results
from core import Core
from storage.run_flags import of_command_line
from support.errors import UserError
from support.files import ROOT

QUICK = "exper-quick-digits-cnn-loss-based-lr"
SCRIPT = importlib.import_module(QUICK).flags
SMALL = ["--model.description", "[['C',4,[3,3]],['P'],['F',16],['F',10,{'act':False}]]", "--train_N", "300"]
SMALL += ["--B", "50", "--gpu", "-1", "--figures", "false"]
ENV = os.environ | {"VIRTUAL_ENV": sys.prefix}  # the environment that runs the tests satisfies the pins


def command(*words, **options):
    return subprocess.run(
        [str(ROOT / words[0]), *words[1:]], capture_output=True, text=True, env=ENV, **({"timeout": 300} | options)
    )


def run_quick(tmp_path, *words, **options):
    return command("run.sh", QUICK, *SMALL, "--logs_dir", str(tmp_path / "logs"), *words, **options)


def run_dir(tmp_path):
    return (tmp_path / "logs" / QUICK / "latest").resolve()


def assert_one_line(done, status, *says):
    assert done.returncode == status, (done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for words in says:
        assert words in lines[0]


def test_run_alone_lists_every_experiment():
    done = command("run.sh")
    assert done.returncode == 0
    for path in ROOT.glob("exper-*.py"):
        assert path.stem in done.stdout


def test_help_lists_every_flag_with_the_scripts_value():
    done = command("run.sh", QUICK, "--help")
    assert done.returncode == 0 and not [f for f in flags.BY_NAME if f"--{f} " not in done.stdout and f != "axes"]
    assert "[300]" in done.stdout


@pytest.mark.parametrize(
    "words, says",
    [
        (["exper-quick-digits-cnn-loss-base-lr"], ["did you mean " + QUICK]),
        ([QUICK, "--datset", "mnist"], ["--datset", "did you mean --dataset"]),
        ([QUICK, "--dataset", "nope"], ["--dataset nope", "mnist"]),
        ([QUICK, "--B", "0"], ["--B 0", "at least 1"]),
        ([QUICK, "--B", "1501"], ["--B 1501", "1500 examples"]),
        ([QUICK, "--resume", "/nowhere"], ["/nowhere", "no such directory"]),
        ([QUICK, "--data_dir", "/nowhere", "--dataset", "mnist"], ["/nowhere", "no such directory"]),
        ([QUICK, "--task", "attack"], ["./eval.sh"]),
    ],
)
def test_a_user_error_is_one_line_and_exit_2(words, says, tmp_path):
    done = command("run.sh", *words, "--logs_dir", str(tmp_path / "logs"))
    assert_one_line(done, 2, *says)
    assert not (tmp_path / "logs").exists()


def test_logs_that_cannot_be_made_are_a_users_mistake(tmp_path):
    (tmp_path / "logs").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot make the working directory.*--logs_dir"):
        Core(SCRIPT | {"logs_dir": str(tmp_path / "logs")}, QUICK).run()


def test_one_ctrl_c_ends_an_attack_in_its_first_block_within_seconds(finished):
    """Carlini-Wagner on all images: its first block takes minutes."""
    words = [str(ROOT / "eval.sh"), "eval-final-mnist-l2", str(finished.path), "--eid", "50", "--gpu", "-1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith("attacking:"):
                break
        time.sleep(1.5)  # in its first block
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    (attack,) = (finished.path / "eval-final-mnist-l2").glob("2*")
    assert process.returncode == 130 and "stopping within seconds" in errors
    assert "stopped after" in rest and f"./eval.sh eval-final-mnist-l2 --resume {attack}" in rest


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 50 epochs by ./run.sh."""
    tmp_path = tmp_path_factory.mktemp("finished")
    done = run_quick(tmp_path, "--E", "50", "--archive", "20")
    assert done.returncode == 0 and done.stderr == ""
    return SimpleNamespace(path=run_dir(tmp_path), printed=done.stdout)


@pytest.fixture
def unbroken(finished):
    return finished.path


def test_a_run_prints_and_stores_its_header_and_one_line_per_epoch(finished):
    assert (finished.path / "stdout").read_text() == finished.printed
    for word in ("--seed 0", "device: CPU", "300 train, 297 test", "parameters: 1224", "working directory:"):
        assert word in finished.printed
    lines = [line for line in finished.printed.splitlines() if line.startswith("epoch #")]
    assert len(lines) == 50 and lines[2].startswith("epoch #3 (lr=")
    for word in ("log_frame=", "rt_loss=", "log10_loss=", "acc=", "test_loss=", "test_acc=", "q_bar_min="):
        assert word in lines[2]
    assert "q_bar2_min=" in lines[2] and "s, attempts=" in lines[2] and lines[2].endswith("]")


def test_resuming_another_experiments_run_is_refused_and_changes_nothing(unbroken):
    path = unbroken
    before = {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}
    done = command("run.sh", "exper-quick-digits-cnn-const-lr-1", "--resume", str(path))
    assert_one_line(done, 2, QUICK, "not of exper-quick-digits-cnn-const-lr-1")
    with pytest.raises(UserError, match=r"--B 60: .*has 50"):
        of_command_line(["--resume", str(path), "--B", "60"], SCRIPT)
    assert before == {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=soak)])
def test_a_signal_saves_everything_and_prints_how_to_resume(tmp_path, number, status):
    words = [str(ROOT / "run.sh"), QUICK, *SMALL, "--E", "100000", "--logs_dir", str(tmp_path / "logs")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    for line in process.stdout:
        if line.startswith("epoch #5 "):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, (out, err)
    path = run_dir(tmp_path)
    assert f"./run.sh {QUICK} --resume {path}" in out
    raw = results.load(path)["raw"]
    assert results.load_checkpoint(path)[1]["eid"] == max(raw) == len(results.read_journal(path)) >= 5


@soak
def test_killed_at_random_moments_it_still_equals_the_unbroken_run(tmp_path, unbroken):
    rng = random.Random(int.from_bytes(os.urandom(4), "big"))
    words = [*SMALL, "--E", "50", "--archive", "20", "--checkpoint_every", "0.05"]
    words += ["--logs_dir", str(tmp_path / "logs")]
    kills = 0
    while kills < (5 if os.environ.get("SOAK") else 2):
        start = [str(ROOT / "run.sh"), QUICK] + (["--resume", str(run_dir(tmp_path))] if kills else words)
        process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENV)
        for line in process.stdout:
            if line.startswith("epoch #"):
                break
        else:
            break  # it reached its end before the next kill
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        kills += 1
    assert kills >= 2
    done = command("run.sh", QUICK, "--resume", str(run_dir(tmp_path)))
    assert done.returncode == 0, done.stderr
    path = run_dir(tmp_path)
    assert without_times(results.read_journal(path)) == without_times(results.read_journal(unbroken))
    assert without_times(results.load(path)["raw"]) == without_times(results.load(unbroken)["raw"])
    for eid in (20, 40, "last"):
        assert_same_weights(results.load_weights(path, eid), results.load_weights(unbroken, eid))


@soak
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root to mount a tiny tmpfs")
def test_a_full_disk_is_one_line_and_exit_1_and_earlier_results_stay(tmp_path, unbroken):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        earlier = shutil.copytree(unbroken, disk / QUICK / unbroken.name)
        before = {p.name: p.read_bytes() for p in earlier.iterdir() if p.is_file()}
        done = run_quick(tmp_path, "--E", "100000", "--archive", "1", "--logs_dir", str(disk))
        assert_one_line(done, 1, "No space left")
        assert before == {p.name: p.read_bytes() for p in earlier.iterdir() if p.is_file()}
        path = (disk / QUICK / "latest").resolve()
        eid = results.load_checkpoint(path)[1]["eid"]
        assert eid >= 1 and not list(path.rglob("*.tmp"))
        for archived in results.stored_eids(path):
            results.load_weights(path, archived)
    finally:
        subprocess.run(["umount", str(disk)])


def test_a_write_that_fails_in_the_middle_of_a_run_is_exit_1_with_the_last_checkpoint_whole(tmp_path):
    """The same without root: archiving fails from the third time on."""
    code = (
        "import errno, sys, runpy\n"
        "from storage import workdir\n"
        "real, calls = workdir.WorkDir.save, []\n"
        "def save(self, *args, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 2: raise OSError(errno.ENOSPC, 'No space left on device', 'checkpoint.npz')\n"
        "    return real(self, *args, **kwargs)\n"
        "workdir.WorkDir.save = save\n"
        f"sys.argv[0] = script = {str(ROOT / (QUICK + '.py'))!r}\n"
        "runpy.run_path(script, run_name='__main__')\n"
    )
    words = [*SMALL, "--E", "50", "--archive", "1", "--logs_dir", str(tmp_path / "logs")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, env=ENV, timeout=300
    )
    assert_one_line(done, 1, "No space left")
    assert results.stored_eids(run_dir(tmp_path)) == [1, 2]


def test_a_failed_read_is_not_reported_as_a_failed_write(tmp_path, unbroken):
    """A directory where the checkpoint should be: it cannot be read, and nothing says that it cannot be written."""
    own = shutil.copytree(unbroken, tmp_path / "own")
    (own / "checkpoint.npz").unlink()
    (own / "checkpoint.npz").mkdir()
    with pytest.raises(UserError, match=rf"^{own / 'checkpoint.npz'}: cannot be read: Is a directory") as said:
        Core(of_command_line(["--resume", str(own)], SCRIPT), QUICK).run()
    assert "write" not in str(said.value) and "damaged" not in str(said.value)
