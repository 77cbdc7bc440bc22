"""CIFAR-10: the flatness radius of trained networks, the last layer perturbed (--random: random labels)."""

import core_flatness

flags = {
    "task": "measure_radius",
    "source": "train_cifar",
    "eid": "last",
    "params": "top",
    "step": 1.0,
}

if __name__ == "__main__":
    core_flatness.main(__file__, flags, __doc__)
