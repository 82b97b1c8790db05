"""States read by hooks, and the model run on from the middle."""
