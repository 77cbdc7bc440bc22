"""The nearest of DDN along the gap, DDN along the cross-entropy, and FMN (L2), training set."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "train",
    "attack_method": "best",
    "attack_K": 100,
    "attack_init_eps": 1.0,
    "attack_B": 256,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
