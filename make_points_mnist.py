"""MNIST: the loss in the plane of the three networks (three-point interpolation)."""

import launch

flags = {"task": "make_points", "measured_experiment": "train_mnist", "eid": "last"}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
