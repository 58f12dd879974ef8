"""Backbones: an image tower and a text tower with one interface, loaded from folders in Hugging Face format."""

from model.backbones.base import Backbone, BackboneOutput
from model.backbones.loading import FAMILIES, load_backbone, save_backbone

__all__ = ["FAMILIES", "Backbone", "BackboneOutput", "load_backbone", "save_backbone"]
