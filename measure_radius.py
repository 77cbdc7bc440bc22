"""The flatness radius of any run: measure_radius <working directory> [--eid ...]."""

import launch

flags = {"task": "measure_radius", "eid": "last"}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
