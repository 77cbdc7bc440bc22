"""Units of work: plain data, consumed lazily, stored in order, stopped between two of them."""

import contextlib
import pickle
import threading
import time

import pytest

from engine.context import Context
from engine.serial import Serial
from engine.units import Unit, Worker
from support.errors import Stopped
from support.screen import Bar, Progress, ignore


def work(worker, args, update):
    """Takes longer the smaller its number is: when several run concurrently, later units end first."""
    time.sleep(0.01 * (5 - args["k"] % 5))
    update(0.5)
    if args["k"] == args.get("fails"):
        raise ValueError("a bug")
    return args["k"] ** 2


def units(n, taken, **args):
    for k in range(n):
        taken.append(k)
        yield Unit(work, (k,), {"k": k} | args, size=2.0)


def run(at_once, n=10, update=ignore, done=None, **args):
    """(arguments of the calls of `done`, how many units were consumed, the bar)."""
    stored, taken = [], []
    with Bar(2.0 * n, "unit", update) as bar, contextlib.suppress(Stopped):
        Serial(Context({}), at_once).run(
            units(n, taken, **args),
            lambda unit, result: stored.append((unit.key, result)) or (done and done(unit)),
            bar,
        )
    return stored, len(taken), bar


def test_a_unit_can_be_pickled():
    unit = Unit(work, (3, 1), {"network": ("path", 5), "k": 3})
    assert pickle.loads(pickle.dumps(unit)) == unit


@pytest.mark.parametrize("at_once", [1, 3])
def test_results_come_in_the_order_of_the_units_and_progress_is_complete(at_once):
    stored, taken, bar = run(at_once)
    assert stored == [((k,), k**2) for k in range(10)] and taken == 10
    assert bar.done == pytest.approx(20)


def test_update_gets_rising_fractions_of_the_whole():
    fractions = []
    run(1, update=fractions.append)
    assert fractions == sorted(fractions) and fractions[0] == pytest.approx(0.05) and fractions[-1] == 1.0


def test_without_a_total_update_gets_the_fraction_of_the_unit():
    fractions = []
    progress = Progress(fractions.append)
    for fraction in (0.25, 0.5):
        progress.check(fraction)
    assert fractions == [0.25, 0.5]


@pytest.mark.parametrize("at_once", [1, 3])
def test_units_are_consumed_lazily_and_skipped_when_done_returns_true(at_once):
    stored, taken, _ = run(at_once, n=100, done=lambda unit: unit.key == (4,))
    assert [key for key, _ in stored] == [(k,) for k in range(5)]
    assert taken <= 5 + 2 * at_once


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_in_a_unit_propagates_and_no_thread_remains(at_once):
    before = threading.active_count()
    with pytest.raises(ValueError, match="a bug"):
        run(at_once, fails=3)
    for _ in range(6000):  # a thread ends after its unit
        if threading.active_count() > before:
            time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_stop_ends_the_work_and_finished_units_are_stored(at_once):
    calls = []

    def update(fraction):
        calls.append(1)
        if len(calls) > 8:
            raise Stopped(2)

    stored, _, _ = run(at_once, n=50, update=update)
    assert stored == [((k,), k**2) for k in range(len(stored))] and 0 < len(stored) < 10


def test_published_weights_are_found_by_their_name():
    serial = Serial(Context({}))
    serial.publish("last", [1, 2])
    assert serial.worker.weights("last") == [1, 2]
    assert Worker(serial.worker.context, {"other": 3}).weights("other") == 3
