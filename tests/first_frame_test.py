"""The first frame of training (`training.run`)."""

import numpy as np
import pytest
from builders import TINY, pixels, soak

import results
from core import Core
from engine.context import Context
from support.errors import TrainingDiverged

# Whole batches, from weights so large that one step does not reach the loss of a uniform guess.
WHOLE = {"B": 300, "model": {"description": TINY, "init": {"weight": "he_normal", "weight_rescale": 2.0}}}


def test_where_no_first_epoch_is_accepted_training_restarts_at_the_initial_loss(tiny_flags, logged):
    path = Core(tiny_flags | WHOLE | {"E": 2}).run()
    raw = results.load(path)["raw"]
    assert sorted(raw) == [1, 2] and raw[1]["stats"]["attempts"] > 1
    context = Context(tiny_flags | WHOLE)
    (x, y), _ = context.dataset
    z = context.model.logits(context.model.pixels(x)).numpy().astype(np.float64)
    loss = np.log(np.mean(np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(300), y]))
    assert raw[1]["log_frame"] == pytest.approx(loss, rel=1e-6)
    assert f"starting again at the log of the initial loss, {loss:.6g}" in logged.text


@soak
def test_an_explicit_frame_is_kept_and_the_message_names_one_that_works(tiny_flags):
    with pytest.raises(TrainingDiverged, match=r"--log_frame0 (\S+), or leave the flag out") as error:
        Core(tiny_flags | WHOLE | {"E": 1, "log_frame0": 0.5}).run()
    value = float(str(error.value).split("--log_frame0 ")[1].split(",")[0])
    assert len(results.load(Core(tiny_flags | WHOLE | {"E": 1, "log_frame0": value}).run())["raw"]) == 1


@pytest.mark.parametrize("mode", ["USE_FRAME", "NORMAL"])
def test_more_classes_begin_with_their_own_frame(tmp_path, tiny_flags, mode):
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(256), rng.integers(0, 256, 44)])
    path = pixels(tmp_path / "set.npz", rng.integers(0, 256, (300, 4, 4), dtype=np.uint8), y)
    model = {"description": [["F", 32], ["F", 256, {"act": False}]]}
    raw = results.load(Core(tiny_flags | {"dataset": path, "model": model, "E": 1, "train_mode": mode}).run())["raw"]
    assert raw[1]["stats"]["loss"] > 0
    assert mode == "NORMAL" or raw[1]["log_frame"] == pytest.approx(np.log(np.log(256)), abs=0.02)
