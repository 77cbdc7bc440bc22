"""Archivers: which epochs are kept."""

import json
import math

import pytest

from models import archivers


def kept(archive, log_losses):
    archiver = archivers.build(archive)
    return [eid for eid, log_loss in enumerate(log_losses, 1) if archiver.wants(eid, log_loss)]


def test_idle_keeps_none():
    assert kept("idle", [0.0] * 50) == []


def test_a_number_keeps_every_nth():
    assert kept(7, [0.0] * 30) == [7, 14, 21, 28]


def test_two_phases_thin_out_from_n2_on():
    assert kept(("two-phase-const-epoch", 5, 20), [0.0] * 65) == [5, 10, 15, 20, 40, 60]


def test_logloss_keeps_an_epoch_for_each_integer_passed_and_none_twice():
    losses = [2.0, 0.9, 0.5, 0.05, 0.2, 0.05, 0.0001, 0.0002, 0.00001]
    assert kept(("logloss", 10), [math.log(v) for v in losses]) == [2, 4, 7, 9]


def test_logloss_works_where_the_loss_itself_is_no_float():
    assert kept(("logloss", 10**5), [-1001 * math.log(10), -1004 * math.log(10), -1006 * math.log(10)]) == [1, 3]


def test_a_restored_archiver_continues_where_it_was():
    archiver = archivers.build(("logloss", 10))
    archiver.wants(1, math.log(0.005))
    restored = archivers.build(("logloss", 10))
    restored.set_state(json.loads(json.dumps(archiver.state())))
    assert not restored.wants(2, math.log(0.005))
    assert restored.wants(3, math.log(0.0005))


@pytest.mark.parametrize("archive", ["often", 0, -1, True, ("logloss", 1), ("two-phase-const-epoch", 5), (), 2.5])
def test_nonsense_is_refused(archive):
    with pytest.raises(ValueError, match="none of"):
        archivers.build(archive)
