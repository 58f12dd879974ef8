"""Random augmentation of images and captions, composed in `config/aug/`.

Images are uint8 ``(3, H, W)`` before and after, on any device. All random numbers come from torch's CPU random state,
so that a seed gives the same sample on every device. torchvision's transforms do the same, except the few that draw
pixels, such as ``RandomErasing(value="random")`` and ``GaussianNoise``; for them, set ``dataset.augment_on=worker``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.text.masking import TokenNoise, Vocabulary

Transforms = Sequence[Callable[[Any], Any]]


@dataclass(frozen=True)
class Augmentation:
    """An option of `config/aug/`: the transforms of each view, applied in order.

    An empty list leaves the view unchanged; None means that this option does not provide the view.

    name: the option.
    image: transforms of an image's plain view. image_aug: of its strongly augmented view. image_ss: of each of the
        two views for self-supervision.
    text: transforms of a caption, before it is tokenised.
    tokens: vocabulary -> augmentation of the tokens of a caption. None: they are not augmented.
    """

    name: str
    image: Transforms | None = ()
    image_aug: Transforms | None = None
    image_ss: Transforms | None = None
    text: Transforms | None = ()
    tokens: Callable[[Vocabulary], TokenNoise] | None = None


class RandomSubset:
    """A transform that applies `k` different transforms of a pool, drawn for every image (TBPS-CLIP, AAAI 2024).

    Shape: ``(3, H, W) -> (3, H, W)``.
    """

    def __init__(self, transforms: Transforms, k: int) -> None:
        if not 0 < k <= len(transforms):
            raise ValueError(f"k must lie in 1..{len(transforms)}, the size of the pool, not {k}")
        self.transforms = transforms
        self.k = k

    def __call__(self, image: Tensor) -> Tensor:
        for place in torch.randperm(len(self.transforms))[: self.k].tolist():
            image = self.transforms[place](image)
        return image


class RandomResizedCrop:
    """A transform that crops a random part of an image and resizes it to the image's size.

    torchvision's transform of this name draws aspect ratios around 1 in pixels, so it would cut off the head and
    feet of every standing person. Here `ratio` is relative to the image's aspect ratio.

    Args:
        scale: range of the share of the image's area that is kept.
        ratio: range of the part's aspect ratio (width / height), divided by the image's.

    Shape: ``(3, H, W) -> (3, H, W)``.
    """

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        self.scale = scale
        self.ratio = ratio

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        scale = _uniform(*self.scale)
        ratio = exp(_uniform(*map(log, self.ratio)))
        part_height = min(height, max(1, round(height * sqrt(scale / ratio))))
        part_width = min(width, max(1, round(width * sqrt(scale * ratio))))
        top = _below(height - part_height + 1)
        left = _below(width - part_width + 1)
        return functional.resized_crop(image, top, left, part_height, part_width, [height, width], antialias=True)


class RandomWordDeletion:
    """A transform that deletes each word of a caption with probability `p`; at least one word stays."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, caption: str) -> str:
        words = caption.split()
        draws = torch.rand(len(words)).tolist()
        kept = [word for word, draw in zip(words, draws, strict=True) if draw >= self.p]
        return " ".join(kept or words[:1])


class RandomWordSwap:
    """A transform that swaps neighbouring words of a caption, each pair of neighbours with probability `p`.

    EDA (Wei and Zou, EMNLP 2019) swaps words at any distance. This could turn "red shirt, blue trousers" into "blue
    shirt, red trousers", which describes another person. Swaps of neighbours mostly keep the meaning.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, caption: str) -> str:
        words = caption.split()
        for place, draw in enumerate(torch.rand(max(len(words) - 1, 0)).tolist()):
            if draw < self.p:
                words[place : place + 2] = words[place + 1], words[place]
        return " ".join(words)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _below(bound: int) -> int:
    return int(torch.randint(bound, ()).item())
