"""L-infinity APGD with the DLR loss, training set: a second opinion on eval-final-mnist-inf."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "train",
    "attack_method": "apgd",
    "attack_eps_list": (0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19),
    "attack_E": 1,
    "attack_K": 100,
    "attack_B": 128,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
