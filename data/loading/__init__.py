"""Loading: datasets, samplers, loaders."""
