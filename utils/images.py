"""Reading of image files, as a viewer shows them."""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import stat_result
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

FAULTS: Final = ("missing", "empty", "unreadable")
FORMATS: Final = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")  # no EPS: Ghostscript runs it
TURNS: Final = {  # EXIF orientation -> the transposition that makes the image upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
RANGES: Final = (1, 255, 65_535)
LARGEST_FILE: Final = 2**30  # bytes; more than Pillow's limit on pixels times 8 bytes

warnings.filterwarnings("ignore", module=r"PIL\.")  # on too large images, which `read_rgb` refuses, and damaged EXIF


class BadImageError(Exception):
    """An image file that cannot be read: `fault` is one of `FAULTS`, the message says why."""

    def __init__(self, fault: str, why: str) -> None:
        super().__init__(why)
        self.fault = fault


@contextmanager
def image_faults() -> Iterator[None]:
    """Turns any error from reading an image file into a `BadImageError`."""
    try:
        yield
    except BadImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImageError("missing", "there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError("unreadable", "not an image") from error
    except Exception as error:  # damaged bytes can make Pillow's decoders raise any error
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImageError("unreadable", " ".join(why.split())[:100]) from error


def check_file(status: stat_result) -> stat_result:
    """Returns the `status` of an image file if the file is neither empty nor too large.

    Raises:
        BadImageError: if it is empty, too large, or not a regular file.
    """
    if not stat.S_ISREG(status.st_mode):
        raise BadImageError("unreadable", "not a file")
    if status.st_size == 0:
        raise BadImageError("empty", "the file is empty")
    if status.st_size > LARGEST_FILE:
        size = f"{status.st_size:,} bytes"
        raise BadImageError("unreadable", f"{size}, more than the {LARGEST_FILE:,} that are read at most")
    return status


def read_bytes(file: Path) -> bytes:
    """Returns the bytes of an image file.

    Raises:
        BadImageError: if it is missing, empty, too large, or not a regular file.
    """
    with image_faults():
        check_file(file.stat())
        return file.read_bytes()


def read_rgb(content: bytes) -> Image.Image:
    """Returns the image in the bytes of a file as 8-bit RGB, as a viewer shows it.

    It is rotated as EXIF says. Transparent parts become white. An animation gives its first frame. 16-bit values are
    scaled from their whole range. Float and 32-bit values are scaled from the range that they fill: 0 to 1, 0 to 255
    or 0 to 65,535. Color profiles are not applied.

    Raises:
        BadImageError: if it is damaged, has more than `Image.MAX_IMAGE_PIXELS` pixels, or values in no such range.
    """
    with image_faults(), _opened(content) as image:
        image.load()
        upright = _upright(image)
        return _on_white(upright if _has_8_bits(upright) else _in_8_bits(upright, image))


def _opened(content: bytes) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImageError("unreadable", f"more than the {limit:,} pixels that are read at most") from error
    if limit is not None and image.width * image.height > limit:
        size = f"{image.width:,} x {image.height:,} pixels"
        raise BadImageError("unreadable", f"{size}, more than the {limit:,} that are read at most")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data, which viewers ignore; Pillow may raise any error
        turn = None
    return image if turn is None else image.transpose(turn)


def _has_8_bits(image: Image.Image) -> bool:
    return image.mode not in ("I", "F") and not image.mode.startswith("I;16")


def _in_8_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Returns a grey image with more than 8 bits as an 8-bit image; `opened` knows the file's format."""
    values = np.asarray(image).astype(np.float32)
    tags: Any = getattr(opened, "tag_v2", {})
    full = _full_range(image, opened.format, values, bits=tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
    gray = values.clip(0, full) / full
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        gray = 1 - gray
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = 1
    return Image.fromarray((255 * gray + 0.5).astype(np.uint8))


def _full_range(image: Image.Image, file_format: str | None, values: np.ndarray, bits: int) -> int:
    """Returns the value that stands for white."""
    if image.mode.startswith("I;16"):
        return 2**bits - 1
    if file_format == "PPM" and image.mode == "I":
        return RANGES[-1]
    low, high = float(values.min()), float(values.max())
    for full in RANGES:  # resizing may leave values a little outside a range
        if full / 8 <= high <= 1.5 * full and low >= -full / 10:
            return full
    if 0 <= low <= high < RANGES[0]:
        return RANGES[0]
    raise BadImageError("unreadable", f"its numbers, {low:.4g} to {high:.4g}, are not 0 to 1, 0 to 255 or 0 to 65,535")


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    colors = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors).convert("RGB")
