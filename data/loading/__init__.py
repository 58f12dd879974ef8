"""Loading of data: datasets, samplers, loaders."""
