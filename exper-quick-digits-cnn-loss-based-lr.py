"""Handwritten digits (bundled), CNN without bias, loss-based learning rate: minutes on a laptop."""

import launch
from models.architectures import CNN

flags = {
    "task": "train",
    "dataset": "digits",
    "model": {
        "description": CNN,
        "bias_mode": "FIRST_LAYER",
        "act_type": "relu",
        "init": {"weight": "he_normal", "bias": "zeros"},
    },
    "train_mode": "USE_FRAME",
    "opt": "gd",
    "lr": ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)),
    "E": 300,
    "B": 100,
    "loss_ub": 600,
    "archive": ("two-phase-const-epoch", 10, 100),
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
