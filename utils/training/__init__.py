"""Beside the training: callbacks, signals, processes, precision."""
