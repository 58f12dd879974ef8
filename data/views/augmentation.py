"""Random augmentation of images and captions, composed in `config/aug/`.

Transforms of images are in `data/views/transforms.py`. Those of captions take their random numbers from torch's random
state of the CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.text.masking import TokenNoise, Vocabulary

Transforms = Sequence[Callable[[Any], Any]]


@dataclass(frozen=True)
class Augmentation:
    """An option of `config/aug/`: the transforms of each view, applied in order.

    An empty list leaves the view unchanged; None means that this option does not provide the view.

    name: the option.
    image: transforms of an image's plain view, from `data.views.transforms` or torchvision.
    image_aug: transforms of its strongly augmented view.
    image_ss: transforms of each of the two views for self-supervision.
    text: transforms of a caption, before it is tokenised.
    tokens: vocabulary -> augmentation of the tokens of a caption. None: they are not augmented.
    """

    name: str
    image: Transforms | None = ()
    image_aug: Transforms | None = None
    image_ss: Transforms | None = None
    text: Transforms | None = ()
    tokens: Callable[[Vocabulary], TokenNoise] | None = None


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
