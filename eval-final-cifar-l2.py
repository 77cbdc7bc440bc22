"""Carlini-Wagner L2, training set."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "train",
    "attack_method": "cw",
    "attack_lr": 0.01,
    "attack_search_steps": 9,
    "attack_K": 10000,
    "attack_initial_const": 0.001,
    "attack_confidence": 0.0,
    "attack_abort": "batch",
    "attack_B": 128,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
