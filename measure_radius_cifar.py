"""CIFAR-10: the flatness radius of trained networks, all parameters perturbed (--random: random labels)."""

import core_flatness

flags = {
    "task": "measure_radius",
    "source": "train_cifar",
    "eid": "last",
    "params": "all",
    "step": 1.0,
}

if __name__ == "__main__":
    core_flatness.main(__file__, flags, __doc__)
