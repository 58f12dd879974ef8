"""Views: what a loss sees of an image and a caption."""
