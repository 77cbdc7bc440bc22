"""Datasets: file formats, loading, labels."""
