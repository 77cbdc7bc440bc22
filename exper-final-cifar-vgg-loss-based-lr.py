"""CIFAR-10, VGG-16 without bias, loss-based learning rate."""

import launch

flags = {
    "task": "train",
    "dataset": "cifar10",
    "model": {"description": "VGG16", "bias_mode": "FIRST_LAYER", "init": {"weight": "he_normal", "bias": "zeros"}},
    "train_mode": "USE_FRAME",
    "lr": ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)),
    "E": 10000,
    "B": 100,
    "loss_ub": 500,
    "archive": 50,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
