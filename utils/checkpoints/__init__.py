"""Checkpoints: writing, reading, checking, and disk errors."""
