"""Changes of images. Each takes uint8 pixels ``(3, H, W)`` and a level, and returns the same shape."""

from torch import Tensor
from torchvision.transforms.v2 import functional as F

GREY = 127


def shrink(pixels: Tensor, level: float) -> Tensor:
    """Returns an image as it looks from far away: its sides times `level`, then enlarged again."""
    height, width = pixels.shape[1:]
    small = F.resize(pixels, [max(1, round(level * height)), max(1, round(level * width))], antialias=True)
    return F.resize(small, [height, width], antialias=True)


def hide_below(pixels: Tensor, level: float) -> Tensor:
    """Returns an image with its lower part, the share `level` of its height, behind a grey wall."""
    changed = pixels.clone()
    changed[:, round((1 - level) * pixels.shape[1]) :] = GREY
    return changed


def hide_above(pixels: Tensor, level: float) -> Tensor:
    """Returns an image with its upper part, the share `level` of its height, behind a grey wall."""
    changed = pixels.clone()
    changed[:, : round(level * pixels.shape[1])] = GREY
    return changed


def grey(pixels: Tensor, level: float) -> Tensor:
    """Returns an image with its colors mixed with grey of the same lightness; at `level` 1 no color is left."""
    return F.adjust_saturation(pixels, 1 - level)
