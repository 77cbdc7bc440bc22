"""Errors, log, progress, devices and files. Independent of networks, data and experiments."""
