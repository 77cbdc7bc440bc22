"""The docs: generated tables are current, and the examples do, as they are printed, what they are said to do."""

import gzip
import importlib
import re
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import tensorflow as tf
from builders import soak
from nbclient import NotebookClient

import figures
import flags
import results
from catalogue import attacks
from catalogue import measures as catalogue
from core import Core
from data import formats, loading
from docs import generate, thin
from engine.context import Context
from models import lr_scheduler
from reporting import kinds
from storage.run_flags import of_command_line
from support.errors import UserError
from support.files import ROOT
from training import measures


def example(word):
    """The one Python block of docs/extending.md that holds the word."""
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    (found,) = [block for block in blocks if word in block]
    return compile(found, "extending.md", "exec")


def test_the_experiment_is_a_script_whose_flags_are_taken():
    space = {"__name__": "exper-mnist-mlp", "__file__": "exper-mnist-mlp.py"}
    exec(example("launch.main"), space)
    full = flags.complete(space["flags"])
    assert (full["dataset"], full["lr"], full["E"]) == ("mnist", 0.05, 100)


def test_the_data_set_is_found_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SOURCES", dict(loading.SOURCES))
    exec(example("kmnist"), dict(vars(loading)))
    rng = np.random.default_rng(0)
    (tmp_path / "kmnist").mkdir()
    for file, n in zip(formats.IDX_FILES, (30, 30, 10, 10), strict=True):
        shape, top = ((n, 28, 28), 256) if "images" in file else ((n,), 10)
        content = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
        content += rng.integers(top, size=shape, dtype=np.uint8).tobytes()
        (tmp_path / "kmnist" / f"{file}.gz").write_bytes(gzip.compress(content))
    (x, y), (x_test, _) = loading.load("kmnist", tmp_path)
    assert x.shape == (30, 28, 28, 1) and y.shape == (30,) and len(x_test) == 10
    (tmp_path / "empty").mkdir()
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(loading, "_download", lambda name, source: getattr(tf.keras.datasets, name))
    with pytest.raises(UserError, match=r"kmnist: not found in .* put its files into"):
        loading.load("kmnist", tmp_path / "empty")


def test_the_scheduler_halves_after_a_worse_attempt_and_is_taken_by_the_flag(monkeypatch):
    monkeypatch.setattr(lr_scheduler, "SCHEDULERS", dict(lr_scheduler.SCHEDULERS))
    exec(example("BoldDriver"), dict(vars(lr_scheduler)))
    scheduler = lr_scheduler.build(("bold-driver", 0.1, 1.05))
    assert scheduler.get() == ("go", 0.1)
    worse, better = ({"eid": 1, "stats": {"loss": loss}} for loss in (1.2, 0.9))
    assert scheduler.get(worse) == ("back", 0.05)
    assert scheduler.get({"eid": 1, "stats": None}) == ("back", 0.025)
    assert scheduler.get(better) == ("go", 0.025 * 1.05)


def test_the_attack_steps_along_the_gaps_gradient():
    space = {}
    exec(example("class Gradient"), space)
    weights = tf.constant(np.random.default_rng(0).normal(size=(16, 3)), tf.float32)

    def logits(images):
        return tf.reshape(images, [-1, 16]) @ weights

    images = np.full((5, 4, 4, 1), 0.5, np.float32)
    labels = logits(images).numpy().argmax(axis=1).astype(np.int32)
    attack = space["Gradient"](logits, (4, 4, 1), eps=0.4)
    found = attack(images, labels)
    np.testing.assert_allclose(np.linalg.norm((found - images).reshape(5, -1), axis=1), 0.4, rtol=1e-5)

    def lead(images):
        z = logits(images).numpy()
        return z[0, labels[0]] - np.delete(z[0], labels[0]).max()

    assert lead(found) < lead(images)


def test_the_attacks_row_builds_it(monkeypatch):
    monkeypatch.setattr(attacks, "METHODS", dict(attacks.METHODS))
    exec(example('METHODS["gradient"]'), dict(vars(attacks)))
    row = attacks.METHODS["gradient"]
    assert (row.norm, row.targeted, row.distance) == ("L2", True, "L2")
    assert attacks.refuses("gradient", "attack_K") and not attacks.refuses("gradient", "attack_init_eps")


def test_the_measure_is_recorded_and_described(tiny_flags, monkeypatch):
    monkeypatch.setattr(catalogue, "MEASURES", dict(catalogue.MEASURES))
    monkeypatch.setattr(measures, "FUNCTIONS", dict(measures.FUNCTIONS))
    exec(example("mean_margin"), vars(catalogue) | vars(measures))
    now = measures.Evaluation(Context(tiny_flags), 0.0)
    assert measures.record(now, names=["mean_margin"]) == {"q_mean": float(now.q.mean())}
    assert catalogue.describe("q_mean")[:2] == ("mean of the margins q_i", "logit")


def test_generated_tables_are_those_of_the_program():
    assert (ROOT / "docs" / "flags.md").read_text() == generate.flags_page(), "run: python docs/generate.py"
    page = (ROOT / "docs" / "results.md").read_text()
    assert page == generate.with_tables(page), "run: python docs/generate.py"


def test_the_readme_is_short_and_names_every_experiment():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") < 150
    scripts = [path.stem for pattern in ("exper-*", "train_*", "make_r*") for path in ROOT.glob(pattern + ".py")]
    assert not [name for name in scripts if f"`{name}`" not in readme]


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), (page.name, link)


@soak
def test_the_page_on_python_runs_as_a_notebook_twice_in_one_process(tmp_path):
    text = (ROOT / "docs" / "python.md").read_text().replace("/tmp/margins", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(block) for block in blocks * 2])
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    printed = [
        "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout") for cell in notebook.cells
    ]
    assert printed[:6] == printed[6:] and sum(map(bool, printed)) == 6  # the same numbers both times
    assert (tmp_path / "mine.png").exists() and len(list(tmp_path.glob("my-experiment/2*"))) == 2


RUNS = sorted((ROOT / "docs" / "runs").iterdir())


def test_the_records_in_docs_are_small_and_name_no_machine():
    files = [file for run in RUNS for file in run.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 3e6
    for run in RUNS:
        flags = results.read_flags(run)
        assert [flags[name] for name in thin.OF_THE_MACHINE] == [None] * 4
        text = (run / "about.json").read_text() + (run / "flags.json").read_text()
        assert '"/' not in text  # no absolute path


def test_a_thinned_attack_draws_what_the_whole_one_draws(tiny_flags, tmp_path):
    run = Core(tiny_flags | {"E": 1}, "exper-quick-digits-cnn-loss-based-lr").run()
    asked = importlib.import_module("eval-final-mnist-l2-ddn").flags | {"attack_N": 30, "attack_K": 10, "eid": [1]}
    whole = Core(of_command_line([str(run), "--gpu", "-1"], asked), "eval-final-mnist-l2-ddn").run()
    thin.main(whole, tmp_path / "small")
    assert "images" not in results.load(tmp_path / "small")[1]
    drawn, again = (figures.build([path])["attack_l2"].axes for path in (whole, tmp_path / "small"))
    for panel, same in zip(drawn, again, strict=True):
        for line, other in zip(panel.lines, same.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())


FIGURES = {  # of measurements and attacks, by task
    "attack": {"attack_l2"},
    "measure_radius": {"profiles", "radii", "radius_loss"},
    "measure_sharpness": {"sharpness"},
    "measure_curvature": {"curvature", "spectrum"},
    "make_surface": {"plane"},
    "make_points": {"surface"},
}


def records(task):
    return [run for run in RUNS if results.read_flags(run)["task"] == task]


@pytest.mark.parametrize("task", FIGURES)
def test_the_figures_of_the_measurements_in_docs_can_be_drawn_again(task):
    for run in records(task):
        assert set(figures.build([run])) == FIGURES[task]


def test_the_figures_of_the_trainings_in_docs_can_be_drawn_again(monkeypatch):
    runs = records("train")
    kept = ("loss_margin", "margins", "theory", "kkt", "stability", "norm_margins", "linear")
    train = kinds.KINDS["train"]
    drawings = {name: drawing for name, drawing in train.figures.items() if name in kept}
    monkeypatch.setitem(kinds.KINDS, "train", replace(train, figures=drawings))
    drawn = figures.build(runs)
    assert set(drawn) == set(kept)
    for panel in drawn["loss_margin"].axes:
        assert sum(len(line.get_xdata()) > 20 for line in panel.lines) == len(runs)


def test_every_record_in_docs_is_of_a_task_that_is_drawn():
    assert {results.read_flags(run)["task"] for run in RUNS} == {"train", *FIGURES}


def test_the_pages_build_as_a_site_without_broken_links(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "REPRODUCTION", "CHANGELOG"} <= pages
    start = (tmp_path / "site" / "index.html").read_text()
    assert 'href="REPRODUCTION.html"' in start and 'src="mnist-500-loss-margin.png"' in start
