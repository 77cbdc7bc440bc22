"""What every task is given: flags that nothing changes, data and network that are made when they are needed."""

import logging
import sys
import threading

import pytest

import results
from core import Core
from engine.context import Context
from support.errors import UserError
from support.screen import log


def test_flags_are_read_only(tiny_flags):
    context = Context(tiny_flags)
    with pytest.raises(AttributeError, match="flags are read-only"):
        context.f.E = 5
    context.flags["model"]["bias_mode"] = "ALL"
    assert context.flags["model"]["bias_mode"] == context.f.model["bias_mode"] == "FIRST_LAYER"


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", "latest", None, "x" * 300])
def test_an_experiments_name_is_that_of_a_folder(tiny_flags, name):
    with pytest.raises(UserError, match="expected the name of a folder"):
        Core(tiny_flags, name)


def test_stdout_is_complete_also_where_nothing_has_set_the_logs_level(tiny_flags, monkeypatch):
    monkeypatch.setattr(log, "level", logging.NOTSET)
    log.manager._clear_cache()
    path = Core(tiny_flags | {"E": 1}, "tiny").run()
    assert "epoch #1 (" in (path / "stdout").read_text() and log.level == logging.NOTSET


@pytest.mark.parametrize("flag", [{"init": {"weight_rescale": 1e30}}, {"input_mean": 1e300}, {"input_std": 1e-300}])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_initial_network_without_finite_logits_is_refused_before_anything_is_written(tiny_flags, tmp_path, flag):
    with pytest.raises(UserError, match=r"initial network has logits that are not finite: check --model\.init"):
        Core(tiny_flags | {"model": tiny_flags["model"] | flag}, "tiny").run()
    assert not (tmp_path / "logs").exists()


def test_other_flags_share_what_was_made_already(tiny_flags):
    context = Context(tiny_flags)
    network = context.model
    other = context.changed(E=7, eid=[3])
    assert (other.f.E, other.f.eid, context.f.E) == (7, [3], 4)
    assert other.model is network and other.dataset is context.dataset


def test_looking_at_stored_weights_does_not_change_the_network(tiny_flags):
    path = Core(tiny_flags).run()
    context = Context(tiny_flags)
    before = [v.numpy() for v in context.model.tensors]
    stored = context.stored_weights(path, 4)
    assert any((a != b).any() for a, b in zip(stored, before, strict=True))
    assert all((v.numpy() == b).all() for v, b in zip(context.model.tensors, before, strict=True))


def test_kept_values_are_made_once_per_key():
    context, made = Context({}), []
    for key in (1, 1, 2, 2, 1):
        assert context.kept("slot", key, lambda key=key: made.append(key) or key) == key
    assert made == [1, 2, 1]


def test_errors_in_flags_are_reported_before_anything_is_written(tiny_flags, tmp_path):
    with pytest.raises(UserError, match="--B 301"):
        _ = Context(tiny_flags | {"B": 301}).model
    assert not (tmp_path / "logs").exists()


def test_core_runs_in_any_thread_and_twice_in_one_process(tiny_flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a notebook"])
    paths = []

    def run():
        paths.append(Core(tiny_flags | {"E": 2}, "threaded").run())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    run()
    assert len(set(paths)) == 2 and all(len(results.load(path)["raw"]) == 2 for path in paths)
