"""Reading of records' images from their files, with faults and oddities."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.annotations import Record
from data.images.oddities import oddities_of
from utils.errors import UserError
from utils.images import BadImageError, read_bytes, read_rgb
from utils.training.threads import in_threads

ImageReader = Callable[[Record], Tensor]
FILTERS: Final[Mapping[str, Image.Resampling]] = {  # dataset.interpolation -> Pillow's antialiased filter
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class BrokenImage(NamedTuple):
    """A record whose image cannot be read, and the reason."""

    record: Record
    why: str


class CheckedImages(Protocol):
    """A reader of images that were all checked before; `broken` lists the unreadable ones.

    oddities: the number of other images with each of `data.images.oddities.ODDITIES`.
    """

    broken: list[BrokenImage]
    oddities: Counter[str]

    def __call__(self, record: Record) -> Tensor:
        """Returns the image of a record as RGB, uint8 ``(3, H, W)``."""


class DecodedImage(NamedTuple):
    """The image in the bytes of a file: `pixels`, RGB, uint8 ``(3, H, W)``, and its `data.images.oddities.ODDITIES`."""

    pixels: Tensor
    oddities: tuple[str, ...]


class Resize(NamedTuple):
    """A resize with one of Pillow's antialiased filters, which give the same values on every machine.

    size: (height, width).
    interpolation: a key of `FILTERS`.
    """

    size: tuple[int, int]
    interpolation: str

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns an RGB image as uint8 ``(3, H, W)``, contiguous."""
        resized = image.resize(self.size[::-1], FILTERS[self.interpolation])
        return functional.pil_to_tensor(resized).contiguous()


class FileImages:
    """A reader of image files. It first decodes each image once to check that it can be read.

    Args:
        records: the records whose images are read.
        resize: resizes the images.
    """

    def __init__(self, records: Sequence[Record], resize: Resize) -> None:
        self._resize = resize
        self.broken: list[BrokenImage] = []
        self.oddities: Counter[str] = Counter()
        looks = in_threads(_look, records, total=len(records), title="looking at images", unit="img")
        for record, found in zip(records, looks, strict=True):
            if isinstance(found, BadImageError):
                self.broken.append(BrokenImage(record, str(found)))
            else:
                self.oddities.update(found)

    def __call__(self, record: Record) -> Tensor:
        return read_image(record, self._resize)


def read_image(record: Record, resize: Resize) -> Tensor:
    """Returns the image of a record as RGB, uint8 ``(3, H, W)``.

    Raises:
        UserError: if the file is missing, empty or damaged.
    """
    try:
        return resize(read_rgb(read_bytes(record.image_path)))
    except BadImageError as error:
        raise UserError(
            f"{record.image_path} (identity {record.pid}) cannot be read ({error}); "
            "restore the file, `uv run python -m data.doctor <dataset>` lists all such images."
        ) from error


def decode_image(content: bytes, resize: Resize) -> DecodedImage:
    """Returns the image in the bytes of a file, with its oddities.

    Raises:
        BadImageError: if it cannot be read.
    """
    image = read_rgb(content)
    return DecodedImage(resize(image), oddities_of(content, image))


def _look(record: Record) -> tuple[str, ...] | BadImageError:
    try:
        content = read_bytes(record.image_path)
        return oddities_of(content, read_rgb(content))
    except BadImageError as error:
        return error
