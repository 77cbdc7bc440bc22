"""Shared by the tests: a tiny network on the bundled digits, and where real data sets are."""

import os
from pathlib import Path

import pytest

from support.device import cores, import_tensorflow, set_threads
from support.files import ROOT

__all__ = ["ROOT", "TINY", "soak", "trained_on_digits"]
import_tensorflow()  # once, before any test module: without its start-up chatter
set_threads(2, 2)  # the same in every process of tests, on any machine: a process has its pools once

soak = pytest.mark.skipif(os.environ.get("SOAK") != "1", reason="it takes long; ./test.sh --soak runs it")
TINY = [["C", 4, [3, 3]], ["P"], ["F", 16], ["F", 10, {"act": False}]]


def trained_on_digits(description, train_N):
    """(network, images float32 in [0, 1], labels) after 15 epochs of so many digits."""
    from engine.context import Context
    from training.run import Training

    script = {
        "dataset": "digits",
        "train_N": train_N,
        "B": 50,
        "gpu": -1,
        "lr": 0.1,
        "model": {"description": description, "init": {"weight": "he_normal"}},
    }
    context = Context(script)
    progress = Training(context)
    for _ in range(15):
        progress.epoch()
    (x, y), _ = context.dataset
    return context.model, context.model.pixels(x).numpy(), y


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: many a test waits for a process of its own."""
    return cores() + 1


@pytest.fixture
def tiny_flags(tmp_path):
    """Flags of a run that takes a second: a tiny CNN, 300 digits, batches of 50."""
    return {
        "dataset": "digits",
        "train_N": 300,
        "B": 50,
        "E": 4,
        "gpu": -1,
        "model": {"description": TINY, "init": {"weight": "he_normal"}},
        "lr": ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)),
        "logs_dir": str(tmp_path / "logs"),
    }


@pytest.fixture(scope="session")  # before any fixture of a single test that hides DATA_DIR
def real_data():
    """DATA_DIR with real MNIST and CIFAR-10; skips where it is not set."""
    directory = os.environ.get("DATA_DIR")
    if not directory or not (Path(directory) / "mnist").is_dir():
        pytest.skip("DATA_DIR does not name a folder with mnist/ and cifar-10-batches-py/")
    return directory
