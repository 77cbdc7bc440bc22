"""Losses, margins and norms of stored epochs of a run, or of an imported network.

./run.sh measure_margin <working directory> --eid last
"""

import launch

flags = {
    "task": "measure_epochs",
    "measure": ("losses", "norms", "margins", "smoothed", "margin_quantiles"),
    "eid": "last",
}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
