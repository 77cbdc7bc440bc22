"""Entry points in unusual environments: encodings, missing variables, odd folders, links, interrupted set-ups."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from builders import TINY, an_attack, soak

from core import Core
from support.files import ROOT

VARIANTS = {
    "PYTHONSAFEPATH": {"PYTHONSAFEPATH": "1"},
    "an ASCII terminal": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no HOME": {"HOME": None},
    "CDPATH": {"CDPATH": f"/:{ROOT.parent}"},
}
ALL = {name: value for variant in VARIANTS.values() for name, value in variant.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 2 epochs in a folder whose name has a space, a quote, a bracket and a letter that ASCII lacks."""
    logs = tmp_path_factory.mktemp("logs") / "it's a [folder] é"
    flags = {"dataset": "digits", "train_N": 100, "B": 50, "E": 2, "gpu": -1, "figures": False, "archive": 1}
    flags |= {"model": {"description": TINY}, "logs_dir": str(logs), "log_frame0": 2.0}
    return Core(flags, "tiny").run()


def call(words, variant, cwd, **options):
    """What a command answers in an environment."""
    environment = {**os.environ, **{name: value for name, value in variant.items() if value is not None}}
    environment = {name: value for name, value in environment.items() if variant.get(name, "") is not None}
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, errors="replace", **options
    )


def doors(run):
    """{entry point: its words}, those that need no training."""
    python = [sys.executable]
    return {
        "run.sh": [ROOT / "run.sh"],
        "eval.sh": [ROOT / "eval.sh"],
        "help": [ROOT / "run.sh", "exper-quick-digits-cnn-loss-based-lr", "--help"],
        "results": [*python, ROOT / "results.py", run],
        "figures": [*python, ROOT / "figures.py", run, "--out", run / "drawn"],
        "report": [*python, ROOT / "report.py", run, "--out", run / "page.html"],
        "export": [*python, ROOT / "export.py", run, "--to", "npz"],
        "sweep": [*python, ROOT / "sweep.py", "exper-quick-digits-cnn-loss-based-lr", "--grid", "seed=0,00"],
    }


@pytest.mark.parametrize(
    "door", ["run.sh", "results", pytest.param("report", marks=soak), pytest.param("sweep", marks=soak)]
)
def test_every_entry_point_works_in_all_of_them_together(run, tmp_path, door):
    (tmp_path / "a folder").mkdir()
    done = call(doors(run)[door], ALL, tmp_path / "a folder")
    assert done.returncode == (2 if door == "sweep" else 0), done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("program", ["launch", "results", "figures", "report", "export", "import_network", "sweep"])
def test_ctrl_c_during_the_imports_ends_a_program_without_a_traceback(tmp_path, program):
    (tmp_path / "numpy.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / f"{program}.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGINT and done.stderr == ""


@soak
@pytest.mark.parametrize("door", ["run.sh", "eval.sh", "help", "results", "figures", "report", "export", "sweep"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_entry_point_works_in_each_of_them(run, tmp_path, door, variant):
    done = call(doors(run)[door], VARIANTS[variant], tmp_path)
    assert done.returncode == (2 if door == "sweep" else 0), done.stderr
    assert "Traceback" not in done.stderr


@soak
def test_a_training_works_in_all_of_them_together(tmp_path):
    logs = tmp_path / "é [x]"
    words = [ROOT / "run.sh", "exper-quick-digits-cnn-const-lr-1", "--train_N", "100", "--E", "2", "--logs_dir", logs]
    done = call([*words, "--gpu", "-1", "--figures", "false"], ALL, tmp_path)
    assert done.returncode == 0 and "done: 2 epochs" in done.stdout, done.stderr


def test_data_is_found_without_a_home_directory_and_a_passwd_entry():
    code = "import pwd\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid\n"
    code += "from data.loading import _roots\nprint(_roots(None))"
    done = call([sys.executable, "-c", code], {"HOME": None, "KERAS_HOME": None}, ROOT)
    assert done.returncode == 0, done.stderr


def test_the_scripts_can_be_called_through_a_link_from_another_folder(tmp_path):
    (tmp_path / "go").symlink_to(ROOT / "run.sh")
    done = call(["./go"], {"CDPATH": "/"}, tmp_path)
    assert done.returncode == 0 and "exper-quick-digits-cnn-loss-based-lr" in done.stdout, done.stderr


def test_a_script_with_a_syntax_error_is_listed_and_the_others_too(tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".git", ".venv", "logs", "docs", "tests"))
    (copied / "exper-broken.py").write_text("flags = {\n")
    done = call([sys.executable, copied / "launch.py", "run"], {}, tmp_path)
    assert done.returncode == 0 and "exper-quick-digits-cnn-loss-based-lr" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "exper-broken" in line]
    assert "cannot be read: SyntaxError" in line


def test_an_editors_lock_link_next_to_the_sources_is_ignored():
    from engine.cluster_worker import facts

    link = ROOT / ".#launch.py"
    before = facts(str(ROOT))
    link.symlink_to("user@host.1234:5678")
    try:
        assert facts(str(ROOT)) == before
    finally:
        link.unlink()


def test_an_interrupted_set_up_is_made_again(tmp_path):
    """`python -m venv` is stopped by SIGTERM while it installs pip: an interpreter without pip remains."""
    for name in ("setup.sh", "run.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "launch.py").write_text("print('started')\n")
    base = {"VIRTUAL_ENV": None, "CONDA_PREFIX": None}
    making = subprocess.Popen([sys.executable, "-m", "venv", str(tmp_path / ".venv")])
    while not (tmp_path / ".venv" / "bin" / "python").exists():
        time.sleep(0.01)
    making.send_signal(signal.SIGTERM)
    making.wait()
    done = call(["./run.sh"], base, tmp_path)
    assert done.returncode == 0 and done.stdout == "started\n", done.stderr


def test_a_deleted_current_folder_causes_no_traceback(run, tmp_path):
    (tmp_path / "gone").mkdir()
    code = f"import os, runpy, sys; os.rmdir(os.getcwd()); sys.argv = ['results.py', {str(run)!r}]; "
    code += f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(ROOT / 'results.py')!r}, run_name='__main__')"
    done = call([sys.executable, "-c", code], {}, tmp_path / "gone")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_a_name_of_letters_that_ascii_lacks_is_drawn_and_reported(tmp_path):
    attack = an_attack(tmp_path / "é", {5: [0.1, 0.2, 0.3]})
    done = call([sys.executable, ROOT / "figures.py", attack], ALL, tmp_path)
    assert done.returncode == 0 and "attack_l2" in done.stdout, done.stderr


def test_results_and_figures_need_only_numpy_and_matplotlib(run, tmp_path):
    absent = (
        "tqdm",
        "threadpoolctl",
        "tensorflow",
        "keras",
        "scipy",
        "sklearn",
        "jinja2",
        "cleverhans",
        "distributed",
    )
    hide = f"import sys\nsys.modules |= dict.fromkeys({absent})\nsys.path.insert(0, {str(ROOT)!r})\n"
    use = (
        "import results, figures\nprint(len(results.table(sys.argv[1])))\nfigures.draw([sys.argv[1]], sys.argv[2])\n"
    )
    done = call([sys.executable, "-c", hide + use, run, tmp_path / "out"], {}, tmp_path)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert (tmp_path / "out" / "loss_margin.png").exists()


def test_a_training_loads_no_library_that_only_a_measure_or_a_figure_needs():
    """Each of them would add a second to every start."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import training.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "training.theory" in loaded
    assert not {"sklearn.svm", "tensorboard", "distributed"} & set(loaded)
