"""CIFAR-10: the loss in the plane of the three networks (three-point interpolation)."""

import core_flatness

flags = {
    "task": "make_points",
    "source": "train_cifar",
    "eid": "last",
}

if __name__ == "__main__":
    core_flatness.main(__file__, flags, __doc__)
