"""FMN L-infinity (fast minimum norm), training set."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "train",
    "attack_method": "fmn-linf",
    "attack_eps_list": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    "attack_K": 100,
    "attack_B": 256,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
