"""DeepFool L2 on logits divided by their largest magnitude, training set."""

import core

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
    core.main_eval(__file__, flags, __doc__)
