"""Two digits that are separable, a linear network: its margin against the hard-margin SVM's, in half a minute."""

import launch

flags = {
    "task": "train",
    "dataset": "digits",
    "classes": (3, 5),
    "model": {"description": [["F", 2, {"act": False}]], "bias_mode": "NONE", "init": {"weight": "zeros"}},
    "train_mode": "USE_FRAME",
    "lr": ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)),
    "E": 2000,
    "B": 50,
    "loss_ub": 600,
    "measure": ("max_margin",),
    "measure_every": 1,
    "archive": 100,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
