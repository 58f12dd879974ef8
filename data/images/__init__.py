"""Images: reading, checking and caching them."""
