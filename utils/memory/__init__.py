"""Memory of a training step: traced on fake tensors, and what fits a GPU."""
