"""Random labels, stored once: each training label replaced, with probability 1/2, by a uniform draw."""

import launch

flags = {"task": "make_random_labels", "dataset": "mnist", "random_labels": "default", "seed": 0}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
