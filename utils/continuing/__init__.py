"""Continued and tested runs: what is taken over from a checkpoint."""
