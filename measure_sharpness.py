"""Worst-case and average sharpness of any run: measure_sharpness <working directory> [--eid ...]."""

import launch

flags = {"task": "measure_sharpness", "eid": "last"}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
