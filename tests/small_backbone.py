"""A description of a backbone with other sizes than its YAML; imports no torch, so that commands start fast."""

from omegaconf import DictConfig, OmegaConf

from utils.checkpoints.folder import Architecture
from utils.continuing.composed import described

SMALL = Architecture("siglip", text_width=6, vision_width=4, patch=2, vocab=200_000)


def small(name: str, sizes: Architecture) -> DictConfig:
    """Returns the YAML of a backbone, with other sizes."""
    backbone = described("backbone", name)
    text, vision = (backbone.description.architecture[f"{tower}_config"] for tower in ("text", "vision"))
    text.hidden_size, text.vocab_size, vision.hidden_size = sizes.text_width, sizes.vocab, sizes.vision_width
    OmegaConf.update(vision, "patch_size", sizes.patch, force_add=True)
    return backbone
