"""Captions: tokenising, masking, words."""
