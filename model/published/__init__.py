"""Published checkpoints: reading and converting them."""
