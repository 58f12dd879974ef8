"""Captions: tokens, masking, words."""
