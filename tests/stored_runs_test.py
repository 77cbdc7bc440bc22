"""What is checked when a working directory is read or written (`storage`), and exports (`export`)."""

import io
import os
import shutil
import time

import pytest
from builders import soak

import export
import results
from core import Core
from engine import measurement
from storage import read, workdir
from support.errors import UserError


def test_an_archive_with_another_epochs_name_is_refused(own_run):
    shutil.copy(own_run / "archive" / "eid-000001.npz", own_run / "archive" / "eid-000002.npz")
    with pytest.raises(UserError, match=r"eid-000002\.npz: holds epoch 1, not 2: it was copied or renamed"):
        results.load_weights(own_run, 2)
    shutil.copy(own_run / "archive" / "eid-000001.npz", own_run / "archive" / "eid-7.npz")
    assert 7 not in results.stored_eids(own_run)


def test_an_archive_that_is_a_file_is_reported_before_the_first_epoch(own_run):
    shutil.rmtree(own_run / "archive")
    (own_run / "archive").write_text("")
    with pytest.raises(UserError, match="a file is in the way of the archived epochs"):
        Core({"resume": str(own_run), "E": 5}, "tiny").run()


def test_without_its_checkpoint_a_run_continues_from_the_newest_archived_epoch(own_run, logged):
    whole = results.read_journal(own_run)
    (own_run / "checkpoint.npz").unlink()
    (own_run / "archive" / "eid-000004.npz").unlink()
    Core({"resume": str(own_run), "E": 5}, "tiny").run()
    assert "note: checkpoint.npz is missing; continuing from the newest archived epoch, #3" in logged.messages
    raw = results.load(own_run)["raw"]
    assert list(raw) == [1, 2, 3, 4, 5]
    assert all(raw[eid]["stats"]["log_loss"] == whole[eid]["stats"]["log_loss"] for eid in (1, 2, 3, 4))


def test_a_damaged_checkpoint_does_not_block_archived_epochs(own_run):
    os.truncate(own_run / "checkpoint.npz", 100)
    assert results.choose_eids(own_run, [1, 3]) == [1, 3]
    with pytest.raises(UserError, match="delete it: archived epochs remain, and --resume continues"):
        results.choose_eids(own_run, "last")


@pytest.mark.parametrize("eid", ["1", "first", 1.0, None, True])
def test_an_epoch_that_is_not_a_number_is_a_user_error(own_run, eid):
    with pytest.raises(UserError, match="expected a number, or 'last'"):
        results.load_weights(own_run, eid)


@pytest.mark.parametrize("name", ["lock", "stdout", "journal.jsonl", "checkpoint.npz", "res", "archive"])
def test_nothing_is_written_through_a_link(own_run, tmp_path, name):
    target = tmp_path / "mine"
    target.write_text("precious")
    if (own_run / name).is_dir():
        shutil.rmtree(own_run / name)
    else:
        (own_run / name).unlink()
    (own_run / name).symlink_to(target)
    with pytest.raises(UserError, match="link"):
        Core({"resume": str(own_run), "E": 5}, "tiny").run()
    assert target.read_text() == "precious"


@pytest.mark.parametrize("name", ["lock", "stdout", "journal.jsonl"])
def test_a_pipe_is_refused_and_does_not_hang(own_run, name):
    (own_run / name).unlink()
    os.mkfifo(own_run / name)
    with pytest.raises(UserError, match="not a regular file"):
        Core({"resume": str(own_run), "E": 5}, "tiny").run()


def test_removing_the_lock_file_does_not_admit_a_second_process(own_run):
    with workdir.locked(own_run):
        (own_run / "lock").unlink()
        with pytest.raises(UserError, match="is writing there"), workdir.locked(own_run):
            pass


def test_latest_means_the_run_that_began_last(own_run, monkeypatch):
    logs = own_run.parent.parent
    shutil.rmtree(own_run)
    first = [workdir.create(logs, "tiny", {"about.json": workdir.about("tiny"), "flags.json": {}}) for _ in range(11)]
    assert sorted(read.runs_in(logs / "tiny"), key=read.began) == first  # `_10` after `_9`
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    first.append(workdir.create(logs, "tiny", {"about.json": workdir.about("tiny"), "flags.json": {}}))
    monkeypatch.undo()
    time.tzset()
    about = workdir.about("tiny") | {"began": "2001-01-01 00:00:00.000000+00:00"}  # the clock was set back
    first.append(workdir.create(logs, "tiny", {"about.json": about, "flags.json": {}}))
    assert sorted(read.runs_in(logs / "tiny"), key=read.began) == first
    assert (logs / "tiny" / "latest").resolve() == first[-1].resolve()


def test_latest_is_resolved_once(own_run):
    link = own_run.parent / "latest"
    link.symlink_to(own_run.name)
    attack = {
        "task": "attack",
        "attack_method": "ddn",
        "load_dir": str(link),
        "eid": [2],
        "attack_K": 3,
        "attack_N": 3,
    }
    core = Core(attack | {"attack_N": 3}, "ddn")
    resumed = Core({"resume": str(link), "E": 5}, "tiny")
    other = shutil.copytree(own_run, own_run.parent / "another", ignore=shutil.ignore_patterns("archive"))
    link.unlink()
    link.symlink_to(other.name)
    path = core.run()
    assert path.is_relative_to(own_run.resolve()) and read.read_flags(path)["load_dir"] == str(own_run.resolve())
    assert resumed.run() == own_run.resolve()


def test_an_export_deletes_no_foreign_file(own_run):
    mine = own_run / "export" / "eid-000004.npz"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="a folder is in the way"):
        export.export(own_run, "npz")
    assert (mine / "notes.txt").read_text() == "precious"


def test_a_saved_model_is_written_below_a_path_with_brackets(own_run, tmp_path):
    (place,) = export.export(own_run, "saved_model", out=tmp_path / "a [x]" / "model")
    assert (place / "saved_model.pb").exists() and [p.name for p in place.parent.iterdir()] == ["model"]


def test_no_error_message_is_empty():
    from support.errors import reason

    assert reason(OSError()) == "OSError" and reason(OSError("a  \n b")) == "a b"
    assert reason(FileNotFoundError(2, "No such file")) == "No such file"
    assert reason(io.UnsupportedOperation("read")) == "read"


def test_a_measurement_keeps_the_epoch_that_it_chose(own_run, monkeypatch):
    shutil.rmtree(own_run / "archive")

    def then_gone(context):
        found = measurement.checked_networks(context)
        (own_run / "checkpoint.npz").unlink()  # as if the run had saved another epoch there
        return found

    monkeypatch.setattr("flatness.run.checked_networks", then_gone)
    path = Core({"task": "measure_sharpness", "load_dir": str(own_run), "eid": "all", "rho": (0.1,)}).run()
    assert len(results.load(path)["raw"]) == 1


@soak
def test_thousands_of_archived_epochs_are_listed(own_run):
    content = (own_run / "archive" / "eid-000001.npz").read_bytes()
    for eid in range(10, 5000):
        (own_run / "archive" / f"eid-{eid:06d}.npz").write_bytes(content)
    assert len(results.stored_eids(own_run)) == 4994
