"""CIFAR-10 with its own labels, VGG-16 with batch norm, crops and flips: three networks."""

import launch

flags = {
    "task": "train_seeds",
    "seeds": (0, 1, 2),
    "dataset": "cifar10",
    "augment": "crop-flip",
    "model": {
        "description": "VGG16_BN",
        "bias_mode": "ALL",
        "init": {"weight": "torch_default", "bias": "torch_default"},
        "input_mean": "auto",
        "input_std": "auto",
    },
    "train_mode": "NORMAL",
    "lr": 0.01,
    "E": 150,
    "B": 128,
    "drop_last": False,
    "stats_every": 5,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
