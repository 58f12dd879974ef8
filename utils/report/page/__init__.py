"""Pages of results: one HTML file each, which needs no network."""
