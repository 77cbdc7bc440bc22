"""The flatness radius of any run: measure_radius <working directory> [--eid ...]."""

import core_flatness

flags = {
    "task": "measure_radius",
    "eid": "last",
}

if __name__ == "__main__":
    core_flatness.main(__file__, flags, __doc__)
