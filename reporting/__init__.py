"""Figures, reports and the live view of what is on the disk. No TensorFlow here: a notebook loads it in a second."""
