"""Reads the image of a record from its file, and says what looks wrong about it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.annotations import Record
from data.oddities import oddities_of
from utils.errors import UserError
from utils.images import BadImageError, read_bytes, read_rgb
from utils.threads import in_threads

ImageReader = Callable[[Record], Tensor]


class ImageError(UserError):
    """An image that cannot be read.

    PyTorch rebuilds an exception of a worker process from its printed traceback, whose last line is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{ImageError.__name__}: ")[2].strip())


class BrokenImage(NamedTuple):
    """A record whose image cannot be read, and why."""

    record: Record
    why: str


class CheckedImages(Protocol):
    """Reads images of which each was looked at: `broken` names those that cannot be read.

    oddities: how many of the others look wrong, by the keys of `data.oddities.ODDITIES`.
    """

    broken: list[BrokenImage]
    oddities: Counter[str]

    def __call__(self, record: Record) -> Tensor:
        """Returns the image of a record as RGB, uint8 ``(3, H, W)``."""


class DecodedImage(NamedTuple):
    """The image in the bytes of a file: `pixels`, RGB, uint8 ``(3, H, W)``, and its `data.oddities.ODDITIES`."""

    pixels: Tensor
    oddities: tuple[str, ...]


class FileImages:
    """Reads images from their files, after decoding each once to see whether it can be read.

    Args:
        records: whose images.
        size: (height, width).
    """

    def __init__(self, records: Sequence[Record], size: tuple[int, int]) -> None:
        self._size = size
        self.broken: list[BrokenImage] = []
        self.oddities: Counter[str] = Counter()
        looks = in_threads(_look, records, total=len(records), title="looking at images", unit="img")
        for record, found in zip(records, looks, strict=True):
            if isinstance(found, BadImageError):
                self.broken.append(BrokenImage(record, str(found)))
            else:
                self.oddities.update(found)

    def __call__(self, record: Record) -> Tensor:
        return read_image(record, self._size)


def read_image(record: Record, size: tuple[int, int]) -> Tensor:
    """Returns the image of a record as RGB, uint8 ``(3, H, W)``.

    Raises:
        ImageError: the file is missing, empty or broken.
    """
    try:
        return _resized(read_rgb(read_bytes(record.image_path)), size)
    except BadImageError as error:
        raise ImageError(
            f"{record.image_path} (identity {record.pid}) cannot be read ({error}); "
            "restore the file, `uv run python -m data.doctor <dataset>` lists all such images."
        ) from error


def decode_image(content: bytes, size: tuple[int, int]) -> DecodedImage:
    """Returns the image in the bytes of a file.

    Raises:
        BadImageError: it cannot be read.
    """
    image = read_rgb(content)
    return DecodedImage(_resized(image, size), oddities_of(content, image))


def _look(record: Record) -> tuple[str, ...] | BadImageError:
    try:
        content = read_bytes(record.image_path)
        return oddities_of(content, read_rgb(content))
    except BadImageError as error:
        return error


def _resized(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Returns an image as uint8 ``(3, H, W)``, contiguous.

    Resized with Pillow's antialiased bicubic filter: that of CLIP's and SigLIP's pre-training, and the
    same values on every machine.
    """
    height, width = size
    return functional.pil_to_tensor(image.resize((width, height), Image.Resampling.BICUBIC)).contiguous()
