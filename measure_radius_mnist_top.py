"""MNIST: the flatness radius of trained networks, the last layer perturbed (--random: random labels)."""

import launch

flags = {
    "task": "measure_radius",
    "measured_experiment": "train_mnist",
    "eid": "last",
    "params": "top",
    "radius_step": 0.2,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
