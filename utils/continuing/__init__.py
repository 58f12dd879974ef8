"""Continuing and testing of checkpoints: the config and state that a run takes from a checkpoint."""
