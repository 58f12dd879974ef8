"""Memory of a training step: a trace on fake tensors, and a plan of what fits on a GPU."""
