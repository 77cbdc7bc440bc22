"""Drawing into files, the command `figures.py`, and its errors (`reporting.drawing`)."""

import importlib
import itertools
import json
import shutil
import sys

import pytest
from builders import soak, work_dir

import figures
import launch
import results
from bench import figures as bench
from reporting import drawing, style
from storage import workdir
from support.errors import UserError


def test_the_command_draws_equal_files_from_equal_results(made_up_run, drawn_files, tmp_path, capsys):
    own = shutil.copytree(made_up_run, tmp_path / "run")
    assert figures.main([str(own)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and sorted(out.split()) == sorted(map(str, (own / "figures").iterdir()))
    assert set(drawn_files) == {"loss_margin", "margins", "accuracy", "norms", "direction", "steps"}
    for path in itertools.chain(*drawn_files.values()):
        assert path.read_bytes() == (own / "figures" / path.name).read_bytes()
        assert 3000 < path.stat().st_size < 300_000
    assert len(list((own / "figures").iterdir())) == 2 * len(drawn_files)


def test_several_directories_are_drawn_into_the_current_directory(made_up_run, tmp_path, monkeypatch):
    own = shutil.copytree(made_up_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "make_figures", lambda given: {"margins": style.blank(1, 1, "")})
    assert figures.main([str(own), str(made_up_run)]) == 0
    assert (tmp_path / "figures" / "margins.png").is_file() and not (own / "figures").exists()
    assert figures.main([str(own), str(own / ".")]) == 0
    assert (own / "figures" / "margins.png").is_file()


def spoiled(tmp_path, made_up_run, name):
    if name == "no epochs":
        return work_dir(tmp_path / "run", {}, None)
    if name == "unfinished attack":
        return work_dir(tmp_path / "run", {"task": "attack"}, None)
    if name == "peek":
        return work_dir(tmp_path / "run", {"task": "train_peek"}, {"flags": {}, "raw": {1: {}}})
    own = shutil.copytree(made_up_run, tmp_path / "run")
    match name:
        case "cut res":
            (own / "res").write_bytes((own / "res").read_bytes()[:1000])
        case "other res":
            workdir.WorkDir(own).write_res({"flags": {}, "raw": {1: {"eid": 1}}})
        case "no stats" | "empty stats":
            res = results.load(own)
            res["raw"][7]["stats"] = None if name == "no stats" else {}
            workdir.WorkDir(own).write_res(res)
        case "list":
            workdir.WorkDir(own).write_res([1, 2])
        case "flags":
            (own / "flags.json").write_text("{")
        case "flags list":
            (own / "flags.json").write_text("[1, 2]")
    return own


@pytest.mark.parametrize(
    "name, says",
    [
        ("no epochs", "nothing to draw yet: no epoch"),
        ("unfinished attack", "--resume"),
        ("peek", "for the task train_peek"),
        ("cut res", "not a pickle"),
        ("other res", "missing or invalid: log_frame, lr, stats, time"),
        ("no stats", "res: damaged, or not a result of the task train (missing or invalid: stats"),
        ("empty stats", "res: damaged, or not a result of the task train (missing or invalid: stats"),
        ("list", "damaged"),
        ("flags", "flags.json: damaged"),
        ("flags list", "flags.json: damaged: not a JSON object"),
    ],
)
def test_figures_that_cannot_be_drawn_are_one_line_exit_2_and_no_file(made_up_run, tmp_path, capsys, name, says):
    path = spoiled(tmp_path, made_up_run, name)
    assert figures.main([str(made_up_run), str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and says in said[0] and str(path) in said[0]
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line_are_one_line_and_exit_2(made_up_run, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for words, says in (
        ([], "DIRECTORY"),
        ([str(tmp_path / "nowhere")], "no such directory"),
        ([str(tmp_path)], "not a working directory"),
        ([str(made_up_run), "--ouy", "x"], "--ouy"),
        ([str(made_up_run), "--out", str(tmp_path / "file")], "cannot write figures into"),
    ):
        assert figures.main(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ") and says in line


@pytest.mark.parametrize("place", ["file", "file/below", "closed/below/further"])
def test_an_unwritable_place_is_reported_before_anything_is_drawn(made_up_run, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "closed").mkdir()
    temporary = drawing.tempfile.TemporaryFile

    def refuses(dir):  # for one whom no permission stops, as root
        if dir == tmp_path / "closed":
            raise PermissionError(13, "Permission denied")
        return temporary(dir=dir)

    monkeypatch.setattr(drawing.tempfile, "TemporaryFile", refuses)
    monkeypatch.setattr(drawing, "make_figures", lambda given: pytest.fail("drawn"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"cannot write figures into .*: (Not a dir|Permission)"):
        figures.draw([made_up_run], tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_while_rendering_leaves_no_file_and_the_older_ones_alone(made_up_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "margins.png").write_bytes(b"older")

    def fails(figure, suffix):
        if suffix == "pdf":
            raise RuntimeError("no ink")
        return b"picture"

    monkeypatch.setattr(drawing, "make_figures", lambda given: {"accuracy": None, "margins": None})
    monkeypatch.setattr(drawing, "_rendered", fails)
    with pytest.raises(RuntimeError):
        figures.draw([made_up_run], out)
    assert [path.name for path in out.iterdir()] == ["margins.png"]
    assert (out / "margins.png").read_bytes() == b"older"


def test_a_run_ends_with_its_figures_and_an_attack_too(tiny_flags, tmp_path, monkeypatch, capsys):
    def script(main, name, flags, *words):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        with pytest.raises(SystemExit) as done:
            main(f"{name}.py", flags)
        out, err = capsys.readouterr()
        assert done.value.code == 0 and err == "" and "figures in " in out.splitlines()[-1]

    script(launch.main, "exper-tiny", tiny_flags, "--E", "3")
    own = (tmp_path / "logs" / "exper-tiny" / "latest").resolve()
    assert len(list((own / "figures").glob("*.png"))) == 6
    assert "figures in " in (own / "stdout").read_text()
    attack = importlib.import_module("eval-final-mnist-l2-ddn").flags
    words = [str(own), "--eid", "last", "--attack_N", "20", "--gpu", "-1", "--attack_K", "10"]
    script(launch.main, "eval-ddn", attack, *words)
    assert (own / "eval-ddn" / "latest" / "figures" / "attack_l2.png").is_file()


def test_a_failure_to_draw_is_a_warning_and_loses_nothing(made_up_run, tmp_path, monkeypatch, capsys):
    own = shutil.copytree(made_up_run, tmp_path / "run")
    before = (own / "res").read_bytes()

    def fails(*arguments):
        raise RuntimeError("no ink")

    monkeypatch.setattr(drawing, "draw", fails)
    launch.draw_figures(own)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("warning: no figures (RuntimeError: no ink)") and "python figures.py" in line
    assert (own / "res").read_bytes() == before


def test_runs_without_figures_are_skipped_silently(tmp_path, capsys):
    launch.draw_figures(work_dir(tmp_path / "peek", {"task": "train_peek"}, None))
    (tmp_path / "labels.npz").write_bytes(b"")
    launch.draw_figures(tmp_path / "labels.npz")
    assert capsys.readouterr().err == ""


@soak
def test_the_bench_prints_seconds_and_draws_every_figure(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["bench", "--epochs", "50", "--json", str(tmp_path / "j")])
    bench.main()  # with figures.py in a process of its own
    out, err = capfd.readouterr()
    assert out.startswith("6 figures as PNG and PDF: ") and err == ""
    assert json.loads((tmp_path / "j").read_text())["processor"] > 0


def test_unknown_kinds_are_named(tmp_path):
    with pytest.raises(UserError, match="there are no figures for the task train_peek"):
        figures.read([work_dir(tmp_path / "run", {"task": "train_peek"}, None)])
