"""CIFAR-10, VGG-16 with biases, constant learning rate."""

import launch

flags = {
    "task": "train",
    "dataset": "cifar10",
    "model": {"description": "VGG16", "bias_mode": "ALL", "init": {"weight": "he_normal", "bias": "zeros"}},
    "train_mode": "USE_FRAME",
    "lr": 0.1,
    "E": 10000,
    "B": 100,
    "loss_ub": 500,
    "archive": ("two-phase-const-epoch", 50, 500),
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
