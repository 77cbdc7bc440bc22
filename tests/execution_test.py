"""Units of work: plain data, taken lazily, stored in order, stopped between two of them."""

import contextlib
import pickle
import threading
import time

import pytest

from context import Context
from errors import Stopped
from execution import Serial, Unit, weights_of
from screen import Ticker


def work(context, args, tick):
    """Takes longer the smaller its number is: at once, later units end first."""
    time.sleep(0.01 * (5 - args["k"] % 5))
    tick(0.5)
    if args["k"] == args.get("fails"):
        raise ValueError("a bug")
    return args["k"] ** 2


def units(n, taken, **args):
    for k in range(n):
        taken.append(k)
        yield Unit(work, (k,), {"k": k} | args, size=2.0)


def run(at_once, n=10, stop=lambda: None, done=None, **args):
    """(what `done` was told, how many units were taken, the ticker)."""
    told, taken = [], []
    with Ticker(2.0 * n, "unit", stop) as ticker, contextlib.suppress(Stopped):
        Serial(Context({}), at_once).run(
            units(n, taken, **args),
            lambda unit, result: told.append((unit.key, result)) or (done and done(unit)),
            ticker,
        )
    return told, len(taken), ticker


def test_a_unit_can_be_pickled():
    unit = Unit(work, (3, 1), {"network": ("path", 5), "k": 3})
    assert pickle.loads(pickle.dumps(unit)) == unit


@pytest.mark.parametrize("at_once", [1, 3])
def test_results_come_in_the_order_of_the_units_and_progress_is_whole(at_once):
    told, taken, ticker = run(at_once)
    assert told == [((k,), k**2) for k in range(10)] and taken == 10
    assert ticker.done == pytest.approx(20)


@pytest.mark.parametrize("at_once", [1, 3])
def test_units_are_taken_lazily_and_the_rest_is_left_when_done_says_so(at_once):
    told, taken, _ = run(at_once, n=100, done=lambda unit: unit.key == (4,))
    assert [key for key, _ in told] == [(k,) for k in range(5)]
    assert taken <= 5 + 2 * at_once


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_fails_in_a_unit_comes_out_and_no_thread_stays(at_once):
    before = threading.active_count()
    with pytest.raises(ValueError, match="a bug"):
        run(at_once, fails=3)
    assert threading.active_count() == before


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_stop_ends_the_work_and_what_is_done_is_stored(at_once):
    ticks = []

    def stop():
        ticks.append(1)
        if len(ticks) > 8:
            raise Stopped(2)

    told, _, _ = run(at_once, n=50, stop=stop)
    assert told == [((k,), k**2) for k in range(len(told))] and 0 < len(told) < 10


def test_weights_are_found_by_the_name_they_were_published_under():
    context = Context({})
    Serial(context).publish("last", [1, 2])
    assert weights_of(context, "last") == [1, 2]
