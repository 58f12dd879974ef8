"""An encoder for tests that knows colors: no weights, so that an index is made in milliseconds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.images.read import Resize
from search.index import Index

COLORS = {
    "red": (200, 0, 0),
    "green": (0, 200, 0),
    "blue": (0, 0, 200),
    "yellow": (200, 200, 0),
    "white": (220, 220, 220),
}


class ColorEncoder:
    """Embeds an image as its mean color in the upper and lower half, a sentence as the color that it names."""

    width = 6
    resize = Resize((8, 4), "bilinear")

    def __init__(self, fingerprint: str = "colors", source: str = "colors.ckpt") -> None:
        self.fingerprint, self.source = fingerprint, Path(source)
        self.encoded = 0

    def images(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        halves = pixels.float().unflatten(2, (2, 4)).mean(dim=(3, 4))  # (B, 3, 2)
        return F.normalize(halves.transpose(1, 2).flatten(1), dim=1)

    def texts(self, sentences: Sequence[str]) -> Tensor:
        named = [next(color for name, color in COLORS.items() if name in sentence.split()) for sentence in sentences]
        return F.normalize(torch.tensor(named, dtype=torch.float32).repeat(1, 2), dim=1)


def draw(path: Path, color: str | tuple[int, int, int], size: tuple[int, int] = (12, 24)) -> Path:
    """Writes an image of one color and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLORS[color] if isinstance(color, str) else color).save(path)
    return path


def colored(folder: Path, images: int) -> list[Path]:
    """Writes images with different colors into `folder` and returns their paths."""
    return [draw(folder / f"{n:04}.png", (n % 256, 3 * n % 256, 255 - n % 256)) for n in range(images)]


def names(index: Index, sentence: str, k: int = 10, folder: Path | None = None) -> list[str]:
    """Returns the names of the images that fit a sentence."""
    return [Path(hit.path).name for hit in index.query(sentence, k, folder=None if folder is None else str(folder))]
