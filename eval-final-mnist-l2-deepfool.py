"""DeepFool L2 on logits divided by their largest magnitude, training set."""

import launch

flags = {
    "task": "attack",
    "eid": [10000],
    "attack_set": "train",
    "attack_method": "deepfool",
    "attack_K": 1000,
    "attack_normalize_output": "max",
    "attack_B": 128,
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
