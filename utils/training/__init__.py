"""Support for training: callbacks, signals, processes, precision."""
