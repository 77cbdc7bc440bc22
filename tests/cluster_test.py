"""A cluster gives what one process gives, bit for bit; it loses nothing when workers die; mistakes are one line."""

import operator
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from builders import TINY, soak
from commands_test import ENV, QUICK, SMALL, assert_one_line
from core_test import assert_same_weights, without_times

import results
from bench import scale
from core import Core
from engine import cluster, cluster_worker
from engine.units import Unit
from reporting import page
from storage.run_flags import of_command_line, stored
from support.errors import Stopped, UserError
from support.files import ROOT
from support.screen import Progress
from training import sweep

pytest.importorskip("distributed")
FLAGS = {
    "dataset": "digits", "train_N": 300, "B": 50, "E": 25, "gpu": -1, "archive": 10, "threads": 1,
    "model": {"description": TINY, "init": {"weight": "he_normal"}}, "figures": False,
    "lr": ("loss-based-v1", 1.0, 2 ** (1 / 2), 2 ** (1 / 4)),
}  # fmt: skip
CODE = "import sys; from core import Core; print(Core(eval(sys.argv[1]), sys.argv[2]).run())"


def alone(flags, name):
    """The working directory of a task in a process of its own, without a cluster, with one thread."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, repr(flags), name], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def looking(run, flags):
    """The flags of a task that looks at a run."""
    return of_command_line([str(run), "--gpu", "-1", "--threads", "1"], {"figures": False} | flags)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return str(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def serial(logs):
    """A training that rejects often."""
    run = alone(FLAGS | {"logs_dir": logs}, "serial")
    assert sum(info["stats"]["attempts"] for info in results.read_journal(run).values()) > 40
    return run


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory):
    """A scheduler and two workers, each a command of its own, as a job script starts them."""
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*dask, "--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0"], **quiet)]
    started += [subprocess.Popen([*worker, "--no-dashboard", "--memory-limit", "0"], **quiet) for _ in range(2)]
    yield str(file)
    for process in started[::-1]:
        process.terminate()
    for process in started:
        process.wait(300)


def assert_same_runs(one, other):
    assert without_times(results.read_journal(one)) == without_times(results.read_journal(other))
    assert results.stored_eids(one) == results.stored_eids(other)
    for eid in results.stored_eids(one):
        assert_same_weights(results.load_weights(one, eid), results.load_weights(other, eid))


def plain(value):
    """Without flags, with arrays as bytes."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items() if key != "flags"}
    return value.tobytes() if isinstance(value, np.ndarray) else value


# Equality


@soak
def test_concurrent_attempts_give_the_same_run_as_sequential_ones(serial, scheduler_file, logs):
    flags = FLAGS | {"logs_dir": logs, "cluster": scheduler_file, "speculate": True}
    run = Core(flags | {"E": 15}, "speculative").run()
    assert_same_runs(serial, Core(flags | {"resume": str(run)}, "speculative").run())


@soak
def test_with_three_workers_of_this_machine_one_of_them_killed_the_run_is_the_same(serial, logs, monkeypatch, caplog):
    killed, submit = [], cluster.Remote._submit

    def killing(remote, unit):
        if unit.key == (12, 1) and not killed:
            address, pid = next(iter(remote.cluster.client.run(os.getpid).items()))
            killed.append(address)
            os.kill(pid, signal.SIGKILL)
        return submit(remote, unit)

    monkeypatch.setattr(cluster.Remote, "_submit", killing)
    monkeypatch.setattr(cluster.log, "propagate", True)
    caplog.set_level("INFO", "margin")
    run = Core(FLAGS | {"logs_dir": logs, "cluster": 3, "speculate": True}, "killed").run()
    assert killed and f"note: the worker {killed[0]} is gone; its unit is given to another one" in caplog.messages
    assert_same_runs(serial, run)


CURVATURE = {"eigenvalues": 2, "probes": 3, "density": True, "density_probes": 2, "density_steps": 4, "eid": [10, 25]}
SHARPNESS = {"rho": (0.1,), "eid": [10, 25]}


@pytest.mark.parametrize(
    "task, asked",
    [
        pytest.param("make_surface", {"grid": 4, "eid": [25]}, marks=soak),
        pytest.param("measure_radius", {"directions": 20, "eid": "last", "radius_step": 0.05}, marks=soak),
        pytest.param("measure_curvature", CURVATURE, marks=soak),
        pytest.param("measure_sharpness", SHARPNESS, marks=soak),
    ],
)
def test_tasks_on_a_run_give_the_same_results_on_a_cluster(serial, scheduler_file, task, asked):
    flags = looking(serial, {"task": task} | asked)
    one = alone(flags, f"{task}-alone")
    other = Core(flags | {"cluster": scheduler_file}, f"{task}-cluster").run()
    assert plain(results.load(one)) == plain(results.load(other))


@soak
def test_ddn_over_1500_digits_in_blocks_is_the_same_on_a_cluster(scheduler_file, logs):
    run = alone(FLAGS | {"logs_dir": logs, "train_N": "all", "E": 2, "archive": 1, "lr": 0.02}, "all-digits")
    asked = {"task": "attack", "attack_method": "ddn", "attack_K": 20, "attack_B": 128, "eid": [1, 2]}
    flags = looking(run, asked)
    one, other = alone(flags, "ddn-alone"), Core(flags | {"cluster": scheduler_file}, "ddn-cluster").run()
    assert len(results.load(one)[2]["errors"]) == 1500
    assert plain(results.load(one)) == plain(results.load(other))


@soak
def test_seeds_and_a_surface_through_them_are_the_same_on_a_cluster(scheduler_file, logs):
    flags = FLAGS | {"logs_dir": logs, "task": "train_seeds", "seeds": [0, 1, 2], "E": 3, "lr": 0.02}
    one = alone(flags, "seeds-alone")
    other = Core(flags | {"cluster": scheduler_file}, "seeds-cluster").run()
    said = page.workers(results.read_about(other / "seed-1"))
    assert said == f"the workers of {scheduler_file}, 1 thread each"
    for seed in (0, 1, 2):
        assert_same_runs(f"{one}/seed-{seed}", f"{other}/seed-{seed}")
        assert "done: 3 epochs" in (other / f"seed-{seed}" / "stdout").read_text()
    surface = looking(one, {"task": "make_points", "grid": 5, "eid": "last"})
    found = Core(surface | {"cluster": scheduler_file}, "surface-cluster").run()
    assert plain(results.load(alone(surface, "surface-alone"))) == plain(results.load(found))


# Units that have to end


class Endless:
    """A unit's work that only `tick` can end. It travels as its source: a worker has no tests to import."""

    __name__ = "endless"

    def __reduce__(self):
        return eval, ("lambda context, args, tick: all(tick(0) is None for _ in iter(int, 1))",)


def test_unneeded_units_are_cancelled(scheduler_file):
    context = Core(FLAGS | {"cluster": scheduler_file}).context
    with cluster.Cluster(scheduler_file, 1, -1) as workers:

        def busy():
            return sum(
                workers.client.run(
                    lambda: getattr(sys.modules.get("engine.cluster_worker"), "_now", None) is not None
                ).values()
            )

        def stop_when_all_are_busy(fraction):
            if busy() == 2:
                raise Stopped(signal.SIGINT)

        with pytest.raises(Stopped):
            units = [Unit(Endless(), (0,)), Unit(Endless(), (1,))]
            workers.executor(context).run(units, lambda unit, found: None, Progress(stop_when_all_are_busy))
        for _ in range(600):
            if not busy():
                return
            time.sleep(0.1)
        pytest.fail("a unit goes on a minute after it was cancelled")


def test_an_error_in_a_unit_goes_up_and_is_not_tried_again(scheduler_file, serial):
    context = Core(FLAGS | {"cluster": scheduler_file}).context
    with cluster.Cluster(scheduler_file, 1, -1) as workers, pytest.raises(TypeError):
        unit = Unit(operator.truediv, (0,))  # takes two arguments, not a unit's three
        workers.executor(context).run([unit], lambda unit, found: None, Progress())


@soak
def test_ctrl_c_ends_driver_and_workers_and_the_run_resumes_from_there(tmp_path):
    words = [str(ROOT / "run.sh"), QUICK, *SMALL, "--E", "100000", "--threads", "1"]
    words += ["--logs_dir", str(tmp_path / "logs"), "--cluster", "2", "--speculate"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("epoch #2 "):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "resume with:" in out and "Traceback" not in err, err
    with pytest.raises(ProcessLookupError):  # nothing is left running
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    path = (tmp_path / "logs" / QUICK / "latest").resolve()
    last = max(results.read_journal(path))
    again = {"resume": str(path), "E": last + 1, "cluster": None, "speculate": False}
    assert Core(stored(path) | again, QUICK).run() == path
    assert max(results.read_journal(path)) == last + 1


@soak
def test_when_the_scheduler_dies_the_run_ends_with_one_line_and_can_be_resumed(tmp_path, serial, monkeypatch):
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*dask, "--host", "127.0.0.1", "--dashboard-address", ":0"], **quiet)
    other = subprocess.Popen([*worker, "--no-dashboard", "--death-timeout", "5"], **quiet)
    submit = cluster.Remote._submit

    def killing(remote, unit):
        if unit.key == (5, 1):
            scheduler.kill()
            scheduler.wait()
        return submit(remote, unit)

    monkeypatch.setattr(cluster.Remote, "_submit", killing)
    flags = FLAGS | {"logs_dir": str(tmp_path / "logs")}
    try:
        with pytest.raises(
            UserError, match=r"the scheduler is gone; finished work is saved: continue with --resume$"
        ):
            Core(flags | {"cluster": str(file), "speculate": True}, "orphan").run()
    finally:
        other.kill()
        other.wait()
    run = (tmp_path / "logs" / "orphan" / "latest").resolve()
    assert max(results.read_journal(run)) == 4
    again = shutil.copytree(run, tmp_path / "again")
    assert_same_runs(serial, alone(flags | {"resume": str(again), "cluster": None, "speculate": False}, "orphan"))


# Mistakes


def test_an_address_without_a_scheduler_is_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 1.0)
    with pytest.raises(UserError, match=r"^--cluster tcp://127.0.0.1:1: no scheduler answers there"):
        Core(FLAGS | {"cluster": "tcp://127.0.0.1:1", "speculate": True, "logs_dir": str(tmp_path)}).run()
    monkeypatch.setattr(cluster, "START", 0.5)
    with pytest.raises(UserError, match=r"none\.json: no such file; start dask scheduler"):
        cluster.Cluster(str(tmp_path / "none.json"), 1).__enter__()
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match=r"bad\.json: not a scheduler file"):
        cluster.Cluster(str(tmp_path / "bad.json"), 1).__enter__()


def test_a_scheduler_without_workers_is_a_one_line_error(tmp_path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "START", 0.5)
    with LocalCluster(n_workers=0, dashboard_address=None) as empty, pytest.raises(UserError, match="has no worker"):
        cluster.Cluster(empty.scheduler_address, 1).__enter__()


@pytest.mark.parametrize("what", ["program", "tensorflow"])
def test_a_worker_with_another_version_is_a_one_line_error(scheduler_file, monkeypatch, what):
    facts = cluster_worker.facts
    monkeypatch.setattr(cluster_worker, "facts", lambda root: facts(root) | {what: "another"})
    with pytest.raises(UserError, match=rf"--cluster: the worker tcp://.* has {what} .*, the driver has another"):
        cluster.Cluster(scheduler_file, 1, -1).__enter__()


def test_a_worker_with_other_data_or_none_is_a_one_line_error(scheduler_file, tmp_path):
    x, y = np.zeros((60, 8, 8), np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    flags = FLAGS | {"dataset": str(tmp_path / "set.npz"), "train_N": "all", "logs_dir": str(tmp_path / "logs")}
    core = Core(flags | {"cluster": scheduler_file, "speculate": True}, "blind")
    core.context.model  # noqa: B018 (the driver has read it)
    (tmp_path / "set.npz").unlink()
    with pytest.raises(UserError, match=r"^the worker tcp://.*set\.npz: no such file"):
        core.run()
    np.savez(tmp_path / "set.npz", x_train=x + 1, y_train=y, x_test=x, y_test=y)
    core = Core(flags | {"cluster": scheduler_file, "speculate": True}, "other")
    core.context.__dict__["fingerprint"] = 7
    with pytest.raises(UserError, match=r"^the worker tcp://.*: has other data"):
        core.run()


@pytest.mark.parametrize(
    "flags, says",
    [
        ({"cluster": 2}, "a single training uses it only with --speculate"),
        ({"speculate": True}, "need workers; also give --cluster"),
        ({"cluster": 2, "speculate": True, "task": "train_seeds", "seeds": [0]}, "with several seeds, each"),
        ({"cluster": 0}, "--cluster 0: expected"),
        ({"cluster": 1.5}, "--cluster 1.5: expected"),
    ],
)
def test_flags_that_do_not_fit_a_cluster_are_one_line(flags, says, tmp_path):
    with pytest.raises(UserError, match=says):
        Core(FLAGS | flags | {"logs_dir": str(tmp_path)}).run()


def test_without_dask_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"not installed: pip install -r requirements-cluster\.txt$"):
        cluster.require_dask()


# Shares


def test_the_job_script_starts_what_these_tests_start():
    script = (ROOT / "docs" / "cluster.slurm").read_text()
    assert subprocess.run(["bash", "-n", str(ROOT / "docs" / "cluster.slurm")]).returncode == 0
    for words in ("distributed.cli.dask_scheduler --scheduler-file", "distributed.cli.dask_worker --scheduler-file"):
        assert words in script
    assert "--nthreads 1" in script and '--cluster "$FILE"' in script


def test_each_worker_has_its_share_of_the_cores_and_one_gpu_in_turn():
    found = cluster.local_workers(5, 3, ["0", "2"])
    assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["0", "2", "0", "2", "0"]
    assert all(env["OMP_NUM_THREADS"] == "3" for env in found)
    assert {env["CUDA_VISIBLE_DEVICES"] for env in cluster.local_workers(2, 1, [])} == {""}


def test_gpus_that_are_hidden_from_this_process_are_hidden_from_its_workers(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert cluster.visible_gpus() == ["3", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster.visible_gpus() == []


# Sweeps


@pytest.mark.parametrize(
    "grid, expected",
    [
        (["seed=0:3"], [{"seed": "0"}, {"seed": "1"}, {"seed": "2"}]),
        (["seed=4", "lr=0.01,0.1"], [{"seed": "4", "lr": "0.01"}, {"seed": "4", "lr": "0.1"}]),
        (["lr=0.1|loss-based-v1,0.1"], [{"lr": "0.1"}, {"lr": "loss-based-v1,0.1"}]),
        (["model.bias_mode=NONE,ALL"], [{"model.bias_mode": "NONE"}, {"model.bias_mode": "ALL"}]),
    ],
)
def test_a_grid_is_every_combination(grid, expected):
    assert sweep.points(grid) == expected


@pytest.mark.parametrize(
    "grid", [[], ["seed"], ["seed="], ["sed=1"], ["seed=1", "seed=2"], ["seed=1,1"], ["seed=3:3"]]
)
def test_an_invalid_grid_is_a_one_line_error(grid):
    with pytest.raises(UserError, match=r"^--grid"):
        sweep.points(grid)


def python(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=ENV, timeout=300)


@soak
def test_a_sweep_trains_every_point_skips_finished_runs_and_resumes_interrupted_ones(tmp_path, scheduler_file):
    words = ["sweep.py", QUICK, "--grid", "seed=0:2", "--grid=lr=0.02", "--E", "4", *SMALL, "--figures", "true"]
    done = python(*words, "--archive", "2", "--logs_dir", str(tmp_path), "--cluster", scheduler_file)
    assert done.returncode == 0, done.stderr
    path = (tmp_path / f"sweep-{QUICK}" / "latest").resolve()
    assert results.read_about(path)["command"].startswith(f"sweep.py {QUICK} --grid seed=0:2 ")
    names = [f"seed={k},lr=0.02" for k in range(2)]
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["0", "0.02", "4"] in [row[:3] for row in table] and ["all", "0.02", "2"] in [row[:3] for row in table]
    raw = results.load(path)["raw"]
    assert list(raw) == names and all(part["info"]["eid"] == 4 for part in raw.values())
    assert raw[names[0]] == {"point": {"seed": 0, "lr": 0.02}, "info": results.load(path / names[0])["raw"][4]}
    assert {"seeds.png", "loss_margin.png"} <= {p.name for p in (path / "figures").iterdir()}
    whole = {name: (path / name / "journal.jsonl").read_bytes() for name in names}
    for file in ("checkpoint.npz", "res", "archive/eid-000004.npz"):  # as if it had been killed after epoch 2
        (path / names[1] / file).unlink()
    shutil.copy(path / names[1] / "archive" / "eid-000002.npz", path / names[1] / "checkpoint.npz")
    (path / "res").unlink()
    done = python("sweep.py", QUICK, "--resume", str(path), "--figures", "false")
    assert done.returncode == 0 and f"{names[1]}: done" in done.stdout and f"{names[0]}: done" not in done.stdout
    assert results.load(path)["raw"][names[1]]["info"]["eid"] == 4
    for name in names:
        again = results.read_journal(path / name)
        (path / name / "journal.jsonl").write_bytes(whole[name])
        assert without_times(again) == without_times(results.read_journal(path / name))


def test_a_diverging_run_of_a_sweep_is_reported_and_the_others_continue(tmp_path):
    flags = FLAGS | {"task": "sweep", "axes": ["lr=0.01,1e9"], "E": 2, "logs_dir": str(tmp_path)}
    raw = results.load(Core(flags, f"sweep-{QUICK}").run())["raw"]
    assert raw["lr=0.01"]["info"]["eid"] == 2 and raw["lr=1e9"]["info"] is None


@pytest.mark.parametrize(
    "words, says",
    [
        (["no-such"], "error: no training is named no-such"),
        (["measure_radius"], "error: no training is named measure_radius"),
        pytest.param([QUICK], "--grid: no runs", marks=soak),
        pytest.param([QUICK, "--grid", "lr=x"], "--lr", marks=soak),
        ([QUICK, "--grid", "E=0"], "--E 0: expected"),
    ],
)
def test_a_mistyped_sweep_is_a_one_line_error(words, says, tmp_path):
    more = ["--logs_dir", str(tmp_path / "logs")] if len(words) > 1 else []
    assert_one_line(python("sweep.py", *words, *more), 2, says)
    assert not (tmp_path / "logs").exists()


# The simulation


def test_the_simulation_of_attempts_agrees_with_counting_by_hand():
    assert scale.speculative([[1.0] * 4], 1) == (4.0, 4)
    assert scale.speculative([[1.0] * 4], 2) == (2.0, 4)
    assert scale.speculative([[1.0] * 3], 2) == (2.0, 4)  # one begun in vain
    assert scale.speculative([[1.0] * 2, [1.0]], 4)[0] == 2.0


def test_the_simulation_of_units_is_bound_by_workers_and_by_the_driver():
    assert scale.shared_out([1.0] * 8, 4, 0.0) == pytest.approx(2.0)
    assert scale.shared_out([1.0] * 1000, 10_000, 0.01) == pytest.approx(11.0, rel=0.01)


def test_the_bench_runs_to_its_end(serial, tmp_path, monkeypatch, capsys):
    words = ["--only_simulate", "--simulate", serial, "--json", str(tmp_path / "j")]
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    scale.main()
    said = capsys.readouterr().out
    assert "8 workers: " in said and "10000 workers: " in said and (tmp_path / "j").exists()
