"""Builds the views of a pair that the losses ask for, and nothing else."""

from collections.abc import Collection
from typing import Any, Final

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.annotations import Record
from data.augmentation import Augmentation, Transforms
from data.batch import IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2, IMAGE_VIEWS, TEXT
from utils.errors import UserError, nearest

PROVIDED_BY: Final = {
    IMAGE: "image",
    IMAGE_AUG: "image_aug",
    IMAGE_SS1: "image_ss",
    IMAGE_SS2: "image_ss",
    TEXT: "text",
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

    Args:
        needs: names of views (`data.batch.VIEWS`).
        size: (height, width) of image views.
        augmentation: what provides them.

    Raises:
        UserError: a view that the augmentation does not offer, or that nothing provides.
    """

    def __init__(self, needs: Collection[str], size: tuple[int, int], augmentation: Augmentation) -> None:
        self._size = size
        self._images: dict[str, Transforms] = {}
        self._texts: dict[str, Transforms] = {}
        for view in sorted(needs):
            group = self._images if view in IMAGE_VIEWS else self._texts
            group[view] = _transforms(view, augmentation)

    def __call__(self, record: Record, caption: str) -> dict[str, Tensor | str]:
        """Returns view name -> uint8 ``(3, H, W)`` or text, random by torch's CPU random state."""
        views: dict[str, Tensor | str] = {}
        if self._images:
            image = read_image(record, self._size)
            views |= {view: _apply(transforms, image) for view, transforms in self._images.items()}
        return views | {view: _apply(transforms, caption) for view, transforms in self._texts.items()}


def _transforms(view: str, augmentation: Augmentation) -> Transforms:
    if view not in PROVIDED_BY:
        raise UserError(
            f"A loss asks for the view {view!r}, which nothing provides; there are {', '.join(PROVIDED_BY)}."
            + nearest(view, set(PROVIDED_BY))
        )
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
