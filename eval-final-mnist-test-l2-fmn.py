"""FMN L2 (fast minimum norm), test set."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "test",
    "attack_method": "fmn",
    "attack_K": 100,
    "attack_lr": 1.0,
    "attack_B": 256,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
