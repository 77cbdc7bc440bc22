"""MNIST with its own labels, MLP with bias: three networks."""

import launch

flags = {
    "task": "train_seeds",
    "seeds": (0, 1, 2),
    "dataset": "mnist",
    "model": {
        "description": "MLP",
        "bias_mode": "ALL",
        "init": {"weight": "torch_default", "bias": "torch_default"},
        "input_mean": "auto",
        "input_std": "auto",
    },
    "train_mode": "NORMAL",
    "lr": 0.01,
    "E": 30,
    "B": 64,
    "drop_last": False,
    "stats_every": 10,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
