"""The loss in a plane through a network of a run: make_surface <working directory> --eid 300 --plane random|pca."""

import launch

flags = {"task": "make_surface", "eid": "last"}

if __name__ == "__main__":
    launch.main(__file__, flags, __doc__)
