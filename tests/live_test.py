"""The live view: what TensorBoard reads back is what the journal says."""

import contextlib
import copy
import errno
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from builders import TINY, soak
from matplotlib.image import imread
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

import launch
import results
from core import Core
from reporting import drawing
from support.errors import UserError
from training import live
from training.run import Run

LN10 = math.log(10)


def accumulator(run):
    """What TensorBoard itself reads the events with."""
    reader = EventAccumulator(str(live.events_dir(run, run)), size_guidance={"tensors": 0})
    return reader.Reload()


def points(reader, tag):
    """{epoch: number}, float32; fails for an epoch that is there twice."""
    events = [(e.step, np.float32(e.tensor_proto.float_val[0])) for e in reader.Tensors(tag)]
    assert len(dict(events)) == len(events), f"{tag} has an epoch twice"
    return dict(events)


def assert_tells_the_journal(reader, run):
    journal = results.read_journal(run)
    wanted = {f"stats/{key}" for key in journal[1]["stats"]}
    wanted |= {"epoch/lr", "epoch/rt_loss", "epoch/time", "epoch/log10_loss"}
    assert wanted == {tag for tag in reader.Tags()["tensors"] if not tag.startswith("figures/")}
    for tag in wanted - {"epoch/log10_loss"}:
        group, key = tag.split("/")
        source = {eid: info["stats"] if group == "stats" else info for eid, info in journal.items()}
        wanted_points = {eid: np.float32(numbers[key]) for eid, numbers in source.items()}
        np.testing.assert_equal(points(reader, tag), wanted_points, tag)
    log10 = {eid: np.float32(info["stats"]["log_loss"] / LN10) for eid, info in journal.items()}
    assert points(reader, "epoch/log10_loss") == log10


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(working directory, flags) of 3 epochs watched by TensorBoard."""
    flags = {
        **{"dataset": "digits", "train_N": 300, "B": 50, "E": 3, "gpu": -1, "tensorboard": True},
        "model": {"description": TINY, "init": {"weight": "he_normal"}},
        "logs_dir": str(tmp_path_factory.mktemp("logs")),
    }
    return Core(flags).run(), flags


def info(eid, **stats):
    stats = {"loss": 0.9, "log_loss": -1.0, "attempts": 1} | stats
    return {"eid": eid, "lr": 0.1, "rt_loss": 1.0, "time": 0.1, "stats": stats}


def written(path, infos):
    """What TensorBoard reads of these epochs."""
    writer = live.Live(path, live.events_dir(path, path), {}, 10**9, lambda: None)
    for one in infos:
        writer.accept(one)
    writer.close()
    return accumulator(path)


def test_every_number_of_the_journal_is_there_in_float32(trained):
    assert_tells_the_journal(accumulator(trained[0]), trained[0])


@contextlib.contextmanager
def server(logs):
    """Context manager: a TensorBoard server on a folder; gives a function path -> what it answers."""
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
            yield lambda path: json.load(urllib.request.urlopen(address + path))
        finally:
            process.kill()


def asked(ask, path, known):
    """What a server answers once it has read the files; fails when it never does."""
    for _ in range(600):
        if known(found := ask(path)):
            return found
        time.sleep(0.2)
    pytest.fail(f"the server still answers {found} to {path}")


def test_a_real_server_shows_every_scalar_of_a_run_once(trained):
    run, flags = trained
    wanted = {f"stats/{key}" for key in results.read_journal(run)[1]["stats"]}
    with server(flags["logs_dir"]) as ask:
        tags = asked(ask, "data/plugin/scalars/tags", bool)
        assert len(tags) == 1  # not once more through `latest`
        [(name, own)] = tags.items()
        assert wanted < set(own)
        found = ask(f"data/plugin/scalars/scalars?run={urllib.parse.quote(name)}&tag=epoch%2Flog10_loss")
    log10 = [info["stats"]["log_loss"] / LN10 for info in results.read_journal(run).values()]
    assert [value for _, _, value in found] == pytest.approx(log10, rel=1e-6)


@soak
def test_a_sweeps_points_are_hyperparameters(tiny_flags, monkeypatch):
    monkeypatch.setattr(drawing, "build", lambda directories: {})
    grid = ["lr=0.05,0.1"]
    Core(tiny_flags | {"task": "sweep", "axes": grid, "E": 1, "tensorboard": True}, "sweep-tiny").run()
    events = list(Path(tiny_flags["logs_dir"]).glob("tensorboard/sweep-tiny/*/*"))
    assert sorted(path.name for path in events) == ["lr=0.05", "lr=0.1"]
    request = {"experimentName": "", "startIndex": 0, "sliceSize": 10, "colParams": []}
    request["allowedStatuses"] = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    with server(tiny_flags["logs_dir"]) as ask:
        asked(ask, "data/plugin/scalars/tags", lambda tags: len(tags) == 2)
        query = urllib.parse.urlencode({"request": json.dumps(request)})
        groups = asked(ask, f"data/plugin/hparams/session_groups?{query}", lambda found: found["totalSize"] == 2)
    assert {group["hparams"]["lr"] for group in groups["sessionGroups"]} == {0.05, 0.1}


def test_the_figures_of_the_last_epoch_are_there(trained):
    reader = accumulator(trained[0])
    tags = {tag for tag in reader.Tags()["tensors"] if tag.startswith("figures/")}
    assert tags == {f"figures/{name}" for name in drawing.build([trained[0]])}
    for tag in tags:
        (event,) = reader.Tensors(tag)
        width, height, png = event.tensor_proto.string_val
        assert event.step == 3 and png.startswith(b"\x89PNG")
        assert imread(io.BytesIO(png)).shape[:2] == (int(height), int(width))


def test_a_loss_of_1e_minus_800_is_a_point_at_minus_800(tmp_path):
    losses = {1: -800.0, 2: -3000.0}
    reader = written(tmp_path, [info(eid, log_loss=log10 * LN10) for eid, log10 in losses.items()])
    assert points(reader, "epoch/log10_loss") == losses


def test_numbers_beyond_float32_and_nan_are_written(tmp_path):
    values = [1e300, 5e-324, math.inf, -math.inf, math.nan, 1 / 3]
    got = points(written(tmp_path, [info(k, q_min=v) for k, v in enumerate(values, 1)]), "stats/q_min")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal([got[k] for k in range(1, len(values) + 1)], np.float32(values))


@soak
def test_a_resumed_run_shows_every_epoch_once_also_to_a_running_server(trained, tmp_path):
    run, flags = trained
    shutil.copytree(flags["logs_dir"], tmp_path / "logs", symlinks=True)
    run = tmp_path / "logs" / run.relative_to(flags["logs_dir"])
    (older,) = live.events_dir(run, run).iterdir()
    watching = accumulator(run)
    resumed = Run(Core(flags | {"E": 5, "resume": str(run)}).context, run)
    assert resumed.eid == 3
    resumed.train()
    resumed.save()
    assert not older.exists()
    for reader in (accumulator(run), watching.Reload()):
        assert_tells_the_journal(reader, run)
        assert sorted(points(reader, "epoch/lr")) == [1, 2, 3, 4, 5]


@soak
def test_the_flag_can_be_added_when_resuming_and_shows_all_epochs(tiny_flags):
    run = Core(tiny_flags | {"E": 2}).run()
    assert not live.events_dir(run, run).exists()
    Core(tiny_flags | {"E": 3, "resume": str(run), "tensorboard": True}).run()
    assert_tells_the_journal(accumulator(run), run)


def test_without_tensorboard_the_flag_is_one_line_and_status_2(tiny_flags, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(sys, "argv", ["exper-tiny.py", "--tensorboard"])
    with pytest.raises(SystemExit) as stopped:
        launch.main("exper-tiny.py", tiny_flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("error: --tensorboard: TensorBoard is not installed")
    assert "-m pip install -r requirements-tensorboard.txt" in line
    assert not (tmp_path / "logs").exists()


def test_figures_are_bounded_in_number_and_the_last_epoch_has_them(tmp_path, monkeypatch):
    drawn = []

    def draw(self, eid):
        drawn.append(eid)
        self.drawn_eid = eid

    monkeypatch.setattr(live.Live, "draw", draw)
    monkeypatch.setattr(live, "FIGURES_EVERY", 0.0)
    writer = live.Live(tmp_path, tmp_path, {}, 400, lambda: None)
    for eid in range(1, 401):
        writer.accept(info(eid))
    writer.close()
    bound = math.log(400) / math.log(live.FIGURES_GROWTH) + 1
    assert len(drawn) <= bound < 150 and drawn[-1] == 400
    assert max(b / a for a, b in itertools.pairwise(drawn[20:])) < 1.1

    drawn.clear()
    monkeypatch.setattr(live, "FIGURES_EVERY", 3600.0)
    writer = live.Live(tmp_path, tmp_path, {}, 20, lambda: None)
    for eid in range(1, 21):
        writer.accept(info(eid))
    writer.close()
    assert drawn == [20]


@pytest.mark.parametrize("error", [UserError("nothing to draw"), ValueError("a bug")])
def test_a_figure_that_cannot_be_drawn_does_not_end_the_run(tmp_path, monkeypatch, caplog, error):
    def build(directories):
        raise error

    monkeypatch.setattr(drawing, "build", build)
    monkeypatch.setattr(live.log, "propagate", True)  # else caplog sees nothing
    caplog.set_level("INFO", "margin")
    writer = live.Live(tmp_path, live.events_dir(tmp_path, tmp_path), {}, 1, lambda: None)
    writer.accept(info(1))
    writer.close()
    assert points(accumulator(tmp_path), "epoch/lr") == {1: np.float32(0.1)}
    assert f"no figures for TensorBoard at epoch #1: {type(error).__name__}: {error}" in caplog.messages


def test_a_full_disk_is_not_taken_for_a_figure_that_cannot_be_drawn(tmp_path, monkeypatch):
    writer = live.Live(tmp_path, tmp_path, {}, 1, lambda: None)

    def full(**fields):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drawing, "build", lambda directories: {})
    monkeypatch.setattr(writer, "_write", full)
    with pytest.raises(OSError, match="No space"):
        writer.draw(1)
    writer.close()


def test_the_live_view_changes_nothing_of_the_run(trained, tmp_path):
    run, flags = trained
    plain = Core(flags | {"tensorboard": False, "logs_dir": str(tmp_path)}).run()
    times = ("time", "train_time", "eval_time")
    raws = [copy.deepcopy(results.read_journal(path)) for path in (run, plain)]
    for raw in raws:
        for one in raw.values():
            for place in (one, one["stats"]):
                for key in times:
                    place.pop(key, None)
    assert raws[0] == raws[1]


def test_every_number_says_what_it_means(trained):
    reader = accumulator(trained[0])
    for tag in reader.Tags()["tensors"]:
        if not tag.startswith("figures/"):
            assert reader.SummaryMetadata(tag).summary_description, tag
