"""Figures and reports of stored results. No TensorFlow, so that a notebook loads it in a second."""
