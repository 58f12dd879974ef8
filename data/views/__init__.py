"""Views: the versions of an image and a caption that losses use."""
