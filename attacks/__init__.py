"""Attacks on trained networks. An attack knows a network as a function from images to logits."""
