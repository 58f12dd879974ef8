"""Tiny backbones: built and pre-trained from scratch."""
