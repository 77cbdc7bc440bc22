"""Optimizers on the digits: a small CNN, whole batches, steps of decaying length, and margins in three norms."""

import launch

flags = {
    "task": "train",
    "dataset": "digits",
    "model": {
        "description": [["C", 8, [3, 3]], ["P"], ["C", 16, [3, 3]], ["P"], ["F", 10, {"act": False}]],
        "bias_mode": "FIRST_LAYER",
        "init": {"weight": "he_normal", "bias": "zeros"},
    },
    "train_mode": "USE_FRAME",
    "opt": ("signum", 0.9),
    "lr": ("decay", 0.03, 0.5),
    "E": 1500,
    "B": 1500,
    "loss_ub": 1e300,
    "measure": ("norm_margins",),
    "measure_every": 1,
    "archive": ("logloss", 10),
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
