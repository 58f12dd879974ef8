"""Builds the views of a pair that the losses ask for, and nothing else."""

from collections.abc import Collection
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.annotations import Record
from data.augmentation import Augmentation, Transforms
from data.batch import IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2, IMAGE_VIEWS, MASK_DRAWS, TEXT, TEXT_MASKED, TEXT_VIEWS
from data.masking import DRAWS
from utils.errors import UserError

PROVIDED_BY: Final = {
    IMAGE: "image",
    IMAGE_AUG: "image_aug",
    IMAGE_SS1: "image_ss",
    IMAGE_SS2: "image_ss",
    TEXT: "text",
    TEXT_MASKED: "text",
}


class ImageError(UserError):
    """An image that cannot be read.

    PyTorch rebuilds an exception of a worker process from its printed traceback, whose last line is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{ImageError.__name__}: ")[2].strip())


def read_image(record: Record, size: tuple[int, int]) -> Tensor:
    """Returns the image of a record as RGB, uint8 ``(3, H, W)``.

    Resized with Pillow's antialiased bicubic filter: that of CLIP's and SigLIP's pre-training, and the
    same values on every machine.

    Raises:
        ImageError: the file is missing, empty or broken.
    """
    height, width = size
    try:
        with Image.open(record.image_path) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise ImageError(
            f"{record.image_path} (identity {record.pid}) cannot be read ({_reason(record, error)}); "
            "restore the file, `uv run python -m data.doctor <dataset>` lists all such images."
        ) from error
    return functional.pil_to_tensor(resized)


def _reason(record: Record, error: Exception) -> str:
    if not record.image_path.is_file():
        return "there is no such file"
    if record.image_path.stat().st_size == 0:
        return "the file is empty"
    return str(error) or type(error).__name__


class Views:
    """Builds the asked-for views of (image, caption) pairs; the image is decoded once for all of them.

    All text views are of the same augmented caption. What is masked of it is settled when a batch is
    tokenised; here it is drawn.

    Args:
        needs: names of views (`data.batch.VIEWS`).
        size: (height, width) of image views.
        text_length: tokens of a caption.
        augmentation: what provides them.

    Raises:
        UserError: a view that the augmentation does not offer.
    """

    def __init__(
        self, needs: Collection[str], size: tuple[int, int], text_length: int, augmentation: Augmentation
    ) -> None:
        self._size = size
        self._draws = (DRAWS, text_length)
        self._images = {view: _transforms(view, augmentation) for view in IMAGE_VIEWS if view in needs}
        self._texts = [view for view in TEXT_VIEWS if view in needs]
        self._text = _transforms(TEXT, augmentation) if self._texts else ()

    def __call__(self, record: Record, caption: str) -> dict[str, Tensor | str]:
        """Returns view name -> uint8 ``(3, H, W)`` or text, random by torch's CPU random state."""
        views: dict[str, Tensor | str] = {}
        if self._images:
            image = read_image(record, self._size)
            views |= {view: _apply(transforms, image) for view, transforms in self._images.items()}
        if self._texts:
            text = _apply(self._text, caption)
            views |= dict.fromkeys(self._texts, text)
        if TEXT_MASKED in self._texts:
            views[MASK_DRAWS] = torch.rand(self._draws)
        return views


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
