"""Errors, log, progress, devices and files. Independent of networks, data and experiments."""

__version__ = "1.0.0"
