"""FMN L1 (fast minimum norm), training set."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "train",
    "attack_method": "fmn-l1",
    "attack_eps_list": (2.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "attack_K": 100,
    "attack_B": 256,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
