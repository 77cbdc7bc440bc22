"""CIFAR-10: the flatness radius of trained networks, all parameters perturbed (--random: random labels)."""

import launch

flags = {
    "task": "measure_radius",
    "measured_experiment": "train_cifar",
    "eid": "last",
    "params": "all",
    "radius_step": 1.0,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
