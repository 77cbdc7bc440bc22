"""The theory's quantities of arXiv 1906.05890 at stored epochs of a run, afterwards.

./run.sh measure_theory <working directory> --eid all
"""

import launch

flags = {"task": "measure_epochs", "measure": ("theory",), "eid": "all"}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
