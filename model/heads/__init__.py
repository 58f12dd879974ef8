"""Heads: from what a backbone gives to what is compared."""

from model.heads.global_head import GlobalHead
from model.heads.part_head import PartHead

__all__ = ["GlobalHead", "PartHead"]
