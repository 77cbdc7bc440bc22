"""The working directory: atomic files, safe loading, and what a crash leaves."""

import errno
import os
import pickle

import numpy as np
import pytest

import results
from storage import workdir
from storage.workdir import WorkDir
from support import files, safe_pickle
from support.errors import UserError

WEIGHTS = [(f"layer{k}/weight", np.full((2, 3), k, np.float32)) for k in range(12)]
READERS = {
    "flags.json": results.read_flags,
    "about.json": results.read_about,
    "res": results.load,
    "journal.jsonl": results.read_journal,
    "checkpoint.npz": results.load_weights,
}


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.fixture
def run(tmp_path):
    work_dir = WorkDir(workdir.create(tmp_path, "exper"))
    work_dir.write_json("flags.json", {"E": 3})
    return work_dir


def test_two_runs_in_the_same_second_get_different_directories(tmp_path):
    made = {workdir.create(tmp_path, "exper") for _ in range(5)}
    assert len(made) == 5
    assert (tmp_path / "exper" / "latest").resolve() in {path.resolve() for path in made}


def test_latest_points_to_the_newest(tmp_path):
    workdir.create(tmp_path, "exper")
    newest = workdir.create(tmp_path, "exper")
    assert (tmp_path / "exper" / "latest").resolve() == newest.resolve()


def test_a_directory_whose_first_files_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch):
    first = workdir.create(tmp_path, "exper", {"flags.json": {"E": 1}})
    assert results.read_flags(first) == {"E": 1}

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workdir, "replace_atomically", full)
    with pytest.raises(OSError, match="No space"):
        workdir.create(tmp_path, "exper", {"flags.json": {"E": 2}})
    assert [p.name for p in (tmp_path / "exper").iterdir() if not p.is_symlink()] == [first.name]
    assert (tmp_path / "exper" / "latest").resolve() == first.resolve()


def test_filling_a_folder_that_lost_its_flags_never_removes_what_it_holds(tmp_path, monkeypatch):
    kept = tmp_path / "run" / "archive" / "eid-000100.npz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    written = workdir.replace_atomically

    def full(path, write):
        if path.name == "flags.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, write)

    monkeypatch.setattr(workdir, "replace_atomically", full)
    for place, remains in ((kept.parent.parent, ["archive"]), (tmp_path / "new", None)):
        with pytest.raises(OSError, match="No space"):
            workdir.fill(place, {"about.json": {}, "flags.json": {}})
        assert ([p.name for p in place.iterdir()] if place.exists() else None) == remains
    assert kept.read_bytes() == b"weights"


def test_a_checkpoint_is_written_after_the_journal_is_on_the_disk(run, monkeypatch):
    order, sync = [], os.fsync

    def note(descriptor):
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    run.append({"eid": 1})
    run.save([("layer0/weight", np.zeros(2))], {"eid": 1})
    assert order[0] == "journal.jsonl" and "checkpoint" in order[1]


@pytest.mark.parametrize("task", ["measure_radius", "measure_epochs"])
def test_an_unfinished_measurement_is_not_called_damaged(run, task):
    run.write_json("flags.json", {"task": task})
    run.append({"part": [0, 1], "radius": 2.0})
    with pytest.raises(UserError, match="it is not finished"):
        results.load(run.path)


def test_a_directory_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(UserError, match="cannot make the working directory"):
        workdir.create(tmp_path / "logs", "exper")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_load(protocol):
    res = {
        "flags": {"lr": ("a", 0.1), "x": None, "b": True},
        "raw": {1: {"q": np.arange(5.0), "f": np.float64(2.5), "s": np.zeros((2, 2), np.float32), "bytes": b"\xff"}},
    }
    got = safe_pickle.loads(pickle.dumps(res, protocol))
    assert got["flags"] == res["flags"]
    np.testing.assert_array_equal(got["raw"][1]["q"], res["raw"][1]["q"])
    assert got["raw"][1]["f"] == 2.5 and got["raw"][1]["bytes"] == b"\xff"


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Malicious()), pickle.dumps({"a": [Malicious()]}), b"cos\nsystem\n(S'true'\ntR.", b"", b"nonsense"],
)
def test_a_pickle_of_anything_else_is_refused_unloaded(content, run):
    (run.path / "res").write_bytes(content)
    with pytest.raises(UserError, match=r"res: not a pickle of plain data"):
        results.load(run.path)


def test_an_array_of_objects_cannot_smuggle_a_call():
    content = pickle.dumps(np.array([Malicious()], dtype=object))
    with pytest.raises(pickle.UnpicklingError, match="a dtype object"):
        safe_pickle.loads(content)


def test_res_is_rebuilt_from_flags_and_journal(run):
    run.append({"eid": 1, "stats": {"loss": 0.1}})
    run.append({"eid": 2, "stats": {"loss": float("nan")}})
    assert list(results.load(run.path)["raw"]) == [1, 2]
    assert results.load(run.path)["flags"] == {"E": 3}
    run.write_res({"flags": {"E": 3}, "raw": {1: "from res", 2: "from res"}})
    assert results.load(run.path)["raw"] == {1: "from res", 2: "from res"}


def test_load_includes_the_epochs_that_only_a_killed_runs_journal_has(run):
    run.append({"eid": 1, "time": 0.5})
    run.write_res({"flags": {"E": 3}, "raw": {1: {"eid": 1, "time": 0.5}}})
    run.append({"eid": 2, "time": 0.25})
    with open(run.path / "journal.jsonl", "ab") as file:
        file.write(b'{"eid": 3, "ti')  # killed while it was written
    both = {1: {"eid": 1, "time": 0.5}, 2: {"eid": 2, "time": 0.25}}
    assert results.load(run.path) == {"flags": {"E": 3}, "raw": both}


def test_a_torn_last_line_of_the_journal_is_left_out(run):
    run.append({"eid": 1})
    with open(run.path / "journal.jsonl", "ab") as file:
        file.write(b'{"eid": 2, "lr": 0.')
    assert list(results.read_journal(run.path)) == [1]


@pytest.mark.parametrize("line", [b"nonsense", b"5", b"null", b'"x"', b"[1]"])
def test_a_damaged_line_in_the_middle_is_named(run, line):
    run.append({"eid": 1})
    with open(run.path / "journal.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match="line 2"):
        results.read_journal(run.path)


def test_rewinding_cuts_what_came_after_the_checkpoint(run):
    run.append({"eid": 1})
    length = run.append({"eid": 2})
    run.append({"eid": 3})
    again = WorkDir(run.path)
    assert list(again.rewind(length)) == [1, 2]
    again.append({"eid": 3})
    assert list(results.read_journal(run.path)) == [1, 2, 3]
    with pytest.raises(UserError, match="cannot be resumed"):
        again.rewind(10**6)


def test_floats_come_back_from_the_journal_to_the_last_bit(run):
    values = [0.1, 1e-300, 2 / 3, -1e22, float("inf"), 5e-324]
    run.append({"eid": 1, "values": values})
    assert results.read_journal(run.path)[1]["values"] == values


@pytest.mark.parametrize("archive", [False, True])
def test_weights_come_back_in_layer_order(run, archive):
    run.save(WEIGHTS, {"eid": 5, "lr": 0.1}, archive)
    got = results.load_weights(run.path, 5)
    assert [name for name, _ in got] == [name for name, _ in WEIGHTS]
    for (_, a), (_, b) in zip(got, WEIGHTS, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32
    assert results.load_checkpoint(run.path)[1] == {"eid": 5, "lr": 0.1, "kept": {}}


def test_archived_epochs_remain_when_the_checkpoint_advances(run):
    run.save(WEIGHTS, {"eid": 5}, archive=True)
    run.save([(name, a + 1) for name, a in WEIGHTS], {"eid": 6})
    assert results.stored_eids(run.path) == [5, 6]
    np.testing.assert_array_equal(results.load_weights(run.path, 5)[3][1], WEIGHTS[3][1])
    np.testing.assert_array_equal(results.load_weights(run.path, "last")[3][1], WEIGHTS[3][1] + 1)
    with pytest.raises(UserError, match="epoch 7 is not stored; stored are 5, 6"):
        results.load_weights(run.path, 7)


def test_archiving_works_where_there_are_no_hard_links(run, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    run.save(WEIGHTS, {"eid": 5}, archive=True)
    assert results.load_checkpoint(run.path)[1]["eid"] == 5


def test_a_truncated_checkpoint_is_reported_as_truncated(run):
    run.save(WEIGHTS, {"eid": 5})
    path = run.path / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"checkpoint\.npz: damaged or truncated"):
        results.load_weights(run.path, 5)


def test_a_flipped_byte_in_a_checkpoint_is_detected(run):
    run.save(WEIGHTS, {"eid": 5})
    path = run.path / "checkpoint.npz"
    content = bytearray(path.read_bytes())
    content[content.find(b"\x00\x00\x80\x3f")] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        results.load_weights(run.path, 5)


def test_a_missing_checkpoint_and_a_missing_run_are_reported(tmp_path, run):
    with pytest.raises(UserError, match="no checkpoint yet"):
        results.load_weights(run.path)
    with pytest.raises(UserError, match="not a working directory"):
        results.load(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        results.load(tmp_path / "nowhere")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(run):
    run.write_res({"raw": {}})
    before = sorted(run.path.iterdir()), (run.path / "res").read_bytes()

    def fail(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.replace_atomically(run.path / "res", fail)
    assert (sorted(run.path.iterdir()), (run.path / "res").read_bytes()) == before


# What an error says is true


class Refused(OSError):
    def __init__(self):
        super().__init__(errno.EIO, "Input/output error")


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_cannot_be_read_is_not_called_damaged_or_missing(run, monkeypatch, name):
    run.write_json("about.json", {})
    run.write_res({"raw": {}})
    run.append({"eid": 1})
    run.save(WEIGHTS, {"eid": 1})
    read = type(run.path).read_bytes

    def refuse(path):
        if path.name == name:
            raise Refused
        return read(path)

    monkeypatch.setattr(type(run.path), "read_bytes", refuse)
    with pytest.raises(UserError) as error:
        READERS[name](run.path)
    assert str(error.value) == f"{run.path / name}: cannot be read: Input/output error"
