"""Handwritten digits (bundled), CNN without bias, constant learning rate."""

import launch

flags = {
    "task": "train",
    "dataset": "digits",
    "model": {"description": "CNN", "bias_mode": "FIRST_LAYER", "init": {"weight": "he_normal", "bias": "zeros"}},
    "train_mode": "USE_FRAME",
    "lr": 0.01,
    "E": 300,
    "B": 100,
    "loss_ub": 600,
    "archive": ("two-phase-const-epoch", 10, 100),
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
