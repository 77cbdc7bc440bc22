"""Fixtures that several files of tests share; `builders` has the functions."""

import functools
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from support.device import cores, import_tensorflow, set_threads

import_tensorflow()  # before anything else imports it: without its start-up messages
set_threads(2, 2)  # the same in every process of tests, on any machine: a process has its pools once

from builders import L2_ATTACKS, SMALL, N, tiny_run_flags, trained_on_digits

import figures
from bench.figures import made_up
from core import Core
from support.screen import log


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: many a test waits for a process of its own."""
    return cores() + 1


@pytest.fixture
def tiny_flags(tmp_path):
    """`builders.tiny_run_flags`, with the scheduler's arguments written out."""
    return tiny_run_flags(tmp_path / "logs", lr=("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)))


@pytest.fixture(scope="session")  # before any fixture of a single test that hides DATA_DIR
def real_data():
    """DATA_DIR with real MNIST and CIFAR-10; skips where it is not set."""
    directory = os.environ.get("DATA_DIR")
    if not directory or not (Path(directory) / "mnist").is_dir():
        pytest.skip("DATA_DIR does not name a folder with mnist/ and cifar-10-batches-py/")
    return directory


# Figures


@pytest.fixture(scope="session")
def made_up_run(tmp_path_factory):
    """A made-up run of 120 epochs, its last loss 1e-800."""
    return made_up(tmp_path_factory.mktemp("runs") / "run", 120)


@pytest.fixture(scope="session")
def long_run(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("runs") / "run", 10_000)


@pytest.fixture(scope="session")
def long_drawn(long_run):
    return figures.build([long_run])


@pytest.fixture(scope="session")
def drawn(made_up_run):
    """{name: Figure} of the run."""
    return figures.build([made_up_run])


@pytest.fixture(scope="session")
def drawn_files(made_up_run, tmp_path_factory):
    return figures.draw([made_up_run], tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """{script: directory} of what is measured on three tiny networks."""
    tmp_path = tmp_path_factory.mktemp("flat")
    common = {
        "dataset": "digits",
        "train_N": 300,
        "gpu": -1,
        "logs_dir": str(tmp_path),
        "model": {"description": [["F", 16], ["F", 10, {"act": False}]], "bias_mode": "ALL"},
    }
    run = Core(
        common | {"task": "train_seeds", "seeds": (0, 1, 2), "E": 3, "lr": 0.05, "train_mode": "NORMAL"}, "train"
    ).run()
    options = {"load_dir": str(run), "eid": "last", "gpu": -1}
    return {"train_seeds": run} | {
        task: Core(options | {"task": task} | more, task).run()
        for task, more in (
            ("measure_radius", {"directions": 3, "step": 0.5}),
            ("make_points", {"grid": 9}),
            (
                "measure_curvature",
                {
                    "eigenvalues": 2,
                    "probes": 3,
                    "density": True,
                    "density_probes": 2,
                    "density_steps": 6,
                    "layer": (1,),
                },
            ),
            ("measure_sharpness", {"rho": (0.01, 0.1)}),
        )
    }


@pytest.fixture(scope="session")
def small_network():
    """A small CNN after 15 epochs of digits, and N images that it classifies right: (model, x, y)."""
    model, x, y = trained_on_digits(SMALL, 500)
    right = np.flatnonzero(model.logits(x).numpy().argmax(1) == y)[:N]
    return model, x[right], y[right]


@pytest.fixture(scope="session")
def found_examples(small_network):
    """What each of L2_ATTACKS finds on the small network: name -> float32 [N, h, w, c]."""
    model, x, y = small_network
    return functools.cache(lambda name: L2_ATTACKS[name](model.logits)(x, y))


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """A run that fits 300 digits: (flags, directory), theory and sharpness at every 50th epoch, stored there."""
    measured = {"measure": ("theory", "sharpness"), "measure_every": 50}
    flags = tiny_run_flags(tmp_path_factory.mktemp("logs"), E=250, archive=50, **measured)
    return flags, Core(flags, "fitted").run()


@pytest.fixture
def logged(caplog, monkeypatch):
    """What the program logs, as `caplog` collects it."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "margin")
    return caplog


@pytest.fixture(scope="session")
def archived_run(tmp_path_factory):
    """Four epochs of digits, the first one far from fitted, all archived."""
    return Core(tiny_run_flags(tmp_path_factory.mktemp("logs"), archive=1, log_frame0=2.0), "tiny").run()


@pytest.fixture
def own_run(archived_run, tmp_path):
    """A copy of that run."""
    return shutil.copytree(archived_run, tmp_path / "logs" / "tiny" / archived_run.name)
