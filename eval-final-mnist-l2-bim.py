"""L2 basic iterative method on logits divided by their largest magnitude, training set."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "train",
    "attack_method": "bim",
    "attack_lr": 0.05,
    "attack_K": 10,
    "attack_normalize_output": "max",
    "attack_B": 128,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
