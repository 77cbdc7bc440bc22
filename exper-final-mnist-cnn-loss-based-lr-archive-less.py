"""MNIST, CNN without bias, loss-based learning rate; fewer epochs archived."""

import launch

flags = {
    "task": "train",
    "dataset": "mnist",
    "model": {"description": "CNN", "bias_mode": "FIRST_LAYER", "init": {"weight": "he_normal", "bias": "zeros"}},
    "train_mode": "USE_FRAME",
    "lr": ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)),
    "E": 10000,
    "B": 100,
    "loss_ub": 600,
    "archive": ("two-phase-const-epoch", 100, 1000),
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
