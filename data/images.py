"""Reads the image of a record from its file."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.annotations import Record
from utils.errors import UserError

ImageReader = Callable[[Record], Tensor]


class ImageError(UserError):
    """An image that cannot be read.

    PyTorch rebuilds an exception of a worker process from its printed traceback, whose last line is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{ImageError.__name__}: ")[2].strip())


def read_image(record: Record, size: tuple[int, int]) -> Tensor:
    """Returns the image of a record as RGB, uint8 ``(3, H, W)``.

    Raises:
        ImageError: the file is missing, empty or broken.
    """
    with image_errors(record):
        return decode_image(record.image_path.read_bytes(), size)


def decode_image(content: bytes, size: tuple[int, int]) -> Tensor:
    """Returns the image in the bytes of a file as RGB, uint8 ``(3, H, W)``, contiguous.

    Resized with Pillow's antialiased bicubic filter: that of CLIP's and SigLIP's pre-training, and the
    same values on every machine.
    """
    height, width = size
    with Image.open(io.BytesIO(content)) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return functional.pil_to_tensor(resized).contiguous()


@contextmanager
def image_errors(record: Record) -> Iterator[None]:
    """Turns whatever is raised while the image of `record` is read into an `ImageError` that names it."""
    try:
        yield
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise ImageError(
            f"{record.image_path} (identity {record.pid}) cannot be read ({_reason(record, error)}); "
            "restore the file, `uv run python -m data.doctor <dataset>` lists all such images."
        ) from error


def _reason(record: Record, error: Exception) -> str:
    if not record.image_path.is_file():
        return "there is no such file"
    if record.image_path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__
