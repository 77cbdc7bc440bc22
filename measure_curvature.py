"""The Hessian's largest eigenvalues and trace, any run: measure_curvature <working directory> [--eid ...]."""

import launch

flags = {"task": "measure_curvature", "eid": "last"}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
