"""Images: reading, checking and caching."""
