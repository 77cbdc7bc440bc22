"""Training: an attempt at an epoch, a run of accepted epochs, what is recorded of each."""
