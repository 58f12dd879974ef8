"""Checkpoints: writing, reading, checking, and room on the disk for them."""
