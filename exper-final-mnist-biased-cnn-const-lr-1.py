"""MNIST, CNN with biases, constant learning rate."""

import launch

flags = {
    "task": "train",
    "dataset": "mnist",
    "model": {"description": "CNN", "bias_mode": "ALL", "init": {"weight": "he_normal", "bias": "zeros"}},
    "train_mode": "USE_FRAME",
    "lr": 0.01,
    "E": 10000,
    "B": 100,
    "loss_ub": 600,
    "archive": ("logloss", 10),
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
