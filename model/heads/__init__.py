"""Heads: modules that turn the output of a backbone into embeddings."""

from model.heads.global_head import GlobalHead
from model.heads.part_head import PartHead
from model.heads.selection_head import TokenSelectionHead

__all__ = ["GlobalHead", "PartHead", "TokenSelectionHead"]
