"""Schedulers: their rules, followed by hand."""

import json
import math

import pytest

from models import lr_scheduler
from models.lr_scheduler import NORMAL, AggressiveLR, AggressiveLRv2, AggressiveLRv3, ConstLR, LossBasedLRv1
from support.errors import TrainingDiverged

LOG10 = math.log(10)
FAILED = {"eid": 1, "stats": None, "log_frame": 0.0}


def info(loss, log_frame=0.0, acc=0.5):
    return {"eid": 1, "log_frame": log_frame, "stats": {"loss": loss, "acc": acc}}


def test_constant_lr_keeps_the_true_lr_constant_in_a_moving_frame():
    scheduler = ConstLR(0.01)
    assert scheduler.get() == ("go", pytest.approx(0.01 * LOG10, rel=1e-15))
    command, lr = scheduler.get(info(0.5, log_frame=-2.0))
    assert command == "go" and lr == 0.01 * math.exp(-2.0) * 0.5
    next_frame = -2.0 + math.log(0.5)
    assert lr * math.exp(-next_frame) == pytest.approx(0.01, rel=1e-14)


def test_constant_lr_without_a_frame_is_the_lr_itself():
    scheduler = ConstLR(0.01, train_mode=NORMAL)
    assert [scheduler.get(), scheduler.get(info(3.0))] == [("go", 0.01)] * 2


def test_constant_lr_retries_a_failed_epoch_and_finally_gives_up():
    scheduler = ConstLR(0.01, train_mode=NORMAL)
    scheduler.get()
    for _ in range(ConstLR.MAX_FAILURES - 1):
        assert scheduler.get(FAILED) == ("back", 0.01)
    with pytest.raises(TrainingDiverged, match="lower --lr"):
        scheduler.get(FAILED)


def test_loss_based_accepts_exactly_the_losses_that_did_not_grow():
    scheduler = LossBasedLRv1(0.1, 2.0, 4.0)
    assert scheduler.get() == ("go", 0.1)
    assert scheduler.get(info(1.0)) == ("go", 0.2)
    assert scheduler.get(info(math.nextafter(1.0, 2))) == ("back", 0.05)
    assert scheduler.get(FAILED) == ("back", 0.0125)
    assert scheduler.get(info(math.nan)) == ("back", 0.0125 / 4)
    assert scheduler.get(info(0.3)) == ("go", 0.0125 / 2)


def test_loss_based_without_a_frame_divides_by_the_last_accepted_loss():
    scheduler = LossBasedLRv1(0.1, 2.0, 4.0, train_mode=NORMAL)
    assert scheduler.get() == ("go", 0.1)
    assert scheduler.get(info(1.0)) == ("go", 0.2 * LOG10 / 1.0)
    assert scheduler.get(info(1.5)) == ("back", 0.05 * LOG10 / 1.0)
    assert scheduler.get(info(0.5)) == ("go", 0.1 * LOG10 / 0.5)


def test_eps_allows_the_loss_to_grow_a_little():
    assert LossBasedLRv1(0.1, eps=0.1).get(info(1.1))[0] == "go"
    assert LossBasedLRv1(0.1, eps=0.1).get(info(1.11))[0] == "back"


def test_aggressive_doubles_after_each_countdown_and_a_worse_epoch_restarts_it():
    scheduler = AggressiveLR(1.0, cd=2)
    assert scheduler.get() == ("go", 1.0)
    assert [scheduler.get(info(0.9)) for _ in range(4)] == [("go", lr) for lr in (1.0, 2.0, 2.0, 4.0)]
    assert scheduler.get(info(0.9)) == ("go", 4.0)
    assert scheduler.get(FAILED) == ("back", 2.0)
    assert [scheduler.get(info(0.9)) for _ in range(2)] == [("go", 2.0), ("go", 4.0)]


def test_aggressive_v2_doubles_smoothly_over_cd_epochs():
    scheduler = AggressiveLRv2(1.0, cd=4)
    scheduler.get()
    for _ in range(4):
        command, lr = scheduler.get(info(0.9))
    assert (command, lr) == ("go", pytest.approx(2.0, rel=1e-14))
    assert scheduler.get(info(1.1)) == ("back", lr / 2)


def test_aggressive_v3_multiplies_and_divides_by_its_alphas():
    scheduler = AggressiveLRv3(1.0, 3.0, 5.0)
    assert [scheduler.get(), scheduler.get(info(1.0)), scheduler.get(info(2.0))] == [
        ("go", 1.0),
        ("go", 3.0),
        ("back", 3.0 / 5.0),
    ]


def test_const_then_loss_based_changes_over_when_all_is_classified():
    scheduler = lr_scheduler.build(("const-lr-and-loss-based-lr", 0.01, 2.0, 4.0))
    assert scheduler.get() == ("go", pytest.approx(0.01 * LOG10))
    assert scheduler.get(info(5.0, -1.0, acc=0.999)) == ("go", 0.01 * math.exp(-1.0) * 5.0)
    assert scheduler.loss_limit() == math.inf
    start = 0.01 * math.exp(-1.0) * 2.0
    assert scheduler.get(info(2.0, -1.0, acc=1.0)) == ("go", start)
    assert scheduler.get(info(1.1, -2.0, acc=0.9)) == ("back", start / 4)
    assert scheduler.get(info(0.9, -2.0, acc=0.9)) == ("go", start / 2)
    assert scheduler.loss_limit() == pytest.approx(1.0)


def test_const_then_loss_based_needs_a_frame():
    with pytest.raises(ValueError, match="USE_FRAME"):
        lr_scheduler.build(("const-lr-and-loss-based-lr", 0.01), NORMAL)


@pytest.mark.parametrize(
    "lr", [0.01, "loss-based-v1", ("aggressive", 0.1), ("aggressive-v2", 0.1, 3), ("const-lr-and-loss-based-lr", 0.1)]
)
def test_a_restored_state_makes_the_same_decisions(lr):
    losses = [0.9, 1.2, 0.99, 0.8, 1.01, 0.5, 0.7]
    original, restored = lr_scheduler.build(lr), lr_scheduler.build(lr)
    original.get()
    for loss in losses[:4]:
        original.get(info(loss, -1.0, acc=1.0))
    restored.set_state(json.loads(json.dumps(original.state())))
    for loss in losses[4:]:
        step = info(loss, -1.0, acc=1.0)
        assert restored.get(step) == original.get(step)


@pytest.mark.parametrize("train_mode", ["USE_FRAME", NORMAL])
def test_loss_limit_never_rejects_what_get_accepts(train_mode):
    """A loss above the limit is one that `get` sends back."""
    scheduler = LossBasedLRv1(0.1, eps=0.07, train_mode=train_mode)
    limit = scheduler.loss_limit()
    assert scheduler.get(info(math.nextafter(limit, math.inf)))[0] == "back"
    assert scheduler.get(info(limit * (1 - 1e-11)))[0] == "go"


@pytest.mark.parametrize(
    "lr",
    [("nope", 0.1), ("aggressive", 0.1, 0), ("loss-based-v1", 0.1, 1.1, 1.0), ("loss-based-v1", -1.0), -0.1, True],
)
def test_nonsense_is_refused(lr):
    with pytest.raises((ValueError, TypeError)):
        lr_scheduler.build(lr)
