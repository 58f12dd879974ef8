"""Building of a pair's views: only those that the losses need."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from data.batch import (
    IMAGE,
    IMAGE_AUG,
    IMAGE_SS1,
    IMAGE_SS2,
    IMAGE_VIEWS,
    MASK_DRAWS,
    TEXT,
    TEXT_MASKED,
    TEXT_VIEWS,
    TOKEN_DRAWS,
)
from data.text.masking import DRAWS
from data.views.augmentation import Augmentation, Transforms
from data.views.chain import Chain
from utils.errors import UserError

PROVIDED_BY: Final = {
    IMAGE: "image",
    IMAGE_AUG: "image_aug",
    IMAGE_SS1: "image_ss",
    IMAGE_SS2: "image_ss",
    TEXT: "text",
    TEXT_MASKED: "text",
}
_CACHED: Final = 2**18  # values of the images that a CPU transforms at a time: as floats they stay in its cache
_SEEDS: Final = 2**32  # PyTorch's generator uses no more bits


class Views:
    """A builder of the needed views of (image, caption) pairs; a pair's seed alone determines their randomness.

    Images and captions use different bits of the 63-bit seed, so that they can be augmented in different processes
    or devices. All text views come from the same augmented caption. This class draws the random numbers for masking
    and for the augmentation of tokens, which are used after the batch is tokenised.

    Args:
        needs: names of views (`data.batch.VIEWS`).
        text_length: tokens of a caption.
        augmentation: the transforms of the views.

    Raises:
        UserError: if the augmentation does not provide a view.
    """

    def __init__(self, needs: Collection[str], text_length: int, augmentation: Augmentation) -> None:
        self._draws = (DRAWS, text_length)
        self._images = {view: Chain(_transforms(view, augmentation)) for view in IMAGE_VIEWS if view in needs}
        self._texts = [view for view in TEXT_VIEWS if view in needs]
        self._text = _transforms(TEXT, augmentation) if self._texts else ()
        self._changes_tokens = augmentation.tokens is not None and bool(self._texts)

    @property
    def need_image(self) -> bool:
        """Whether an image view is needed."""
        return bool(self._images)

    @property
    def image_count(self) -> int:
        """The number of needed image views."""
        return len(self._images)

    def of_images(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Returns image view -> uint8 ``(B, 3, H, W)``; a row depends only on its image and its seed.

        Args:
            images: uint8 ``(B, 3, H, W)``.
            seeds: the seed of each image.
        """
        counts = [transforms.draws for transforms in self._images.values()]
        draws = _drawn(seeds, sum(counts))
        size = max(1, _CACHED // images[0].numel()) if images.device.type == "cpu" else len(images)
        parts: dict[str, list[Tensor]] = {view: [] for view in self._images}
        for some, numbers in zip(images.split(size), draws.split(size), strict=True):
            for (view, transforms), own in zip(self._images.items(), numbers.split(counts, dim=1), strict=True):
                parts[view].append(transforms(some, own))
        return {view: torch.cat(rows) for view, rows in parts.items()}

    def of_caption(self, caption: str, seed: int) -> dict[str, Tensor | str]:
        """Returns text view -> text, `MASK_DRAWS` if `TEXT_MASKED` is needed, and `TOKEN_DRAWS` if tokens change."""
        views: dict[str, Tensor | str] = {}
        with _seeded(seed >> 32):
            if self._texts:
                views |= dict.fromkeys(self._texts, _apply(self._text, caption))
            if TEXT_MASKED in self._texts:
                views[MASK_DRAWS] = torch.rand(self._draws)
            if self._changes_tokens:
                views[TOKEN_DRAWS] = torch.rand(self._draws)
        return views


def _drawn(seeds: Sequence[int], count: int) -> Tensor:
    """Returns fp64 ``(B, count)``, uniform in [0, 1): each row from the low 32 bits of its seed."""
    generator = torch.Generator()
    rows = [torch.rand(count, dtype=torch.float64, generator=generator.manual_seed(seed % _SEEDS)) for seed in seeds]
    return torch.stack(rows)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the CPU random state inside the block with the low 32 bits of `seed`; PyTorch's generator uses no more."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        yield


def _transforms(view: str, augmentation: Augmentation) -> Transforms:
    transforms: Transforms | None = getattr(augmentation, PROVIDED_BY[view])
    if transforms is None:
        raise UserError(
            f"A loss asks for the view {view!r}, which aug={augmentation.name} does not offer; choose "
            f"aug=tbps_clip, set aug.{PROVIDED_BY[view]}, or leave that loss out."
        )
    return transforms


def _apply(transforms: Transforms, value: Any) -> Any:
    for transform in transforms:
        value = transform(value)
    return value
