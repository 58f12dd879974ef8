"""Reading and conversion of published checkpoints."""
