"""An image file, read as a viewer shows it."""

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
TURNS: Final = {  # EXIF orientation -> what makes the image upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
RANGES: Final = (1, 255, 65_535)
LARGEST_FILE: Final = 2**30  # bytes; pixels of 8 bytes, as many as Pillow takes for no bomb, are fewer

warnings.filterwarnings("ignore", module=r"PIL\.")  # of size bombs, which `read_rgb` refuses, and damaged EXIF data


class BadImageError(Exception):
    """An image file that cannot be read: `fault`, one of `FAULTS`, and why."""

    def __init__(self, fault: str, why: str) -> None:
        super().__init__(why)
        self.fault = fault


@contextmanager
def image_faults() -> Iterator[None]:
    """Turns whatever is raised while an image file is read into a `BadImageError`."""
    try:
        yield
    except BadImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImageError("missing", "there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError("unreadable", "not an image") from error
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImageError("unreadable", " ".join(why.split())[:100]) from error


def check_file(status: stat_result) -> stat_result:
    """Returns `status`, that of an image file, if there is something in the file to read, and not too much.

    Raises:
        BadImageError: it is empty, too large, or no file.
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
    """Returns what is in an image file.

    Raises:
        BadImageError: it is missing, empty or no file.
    """
    with image_faults():
        check_file(file.stat())
        return file.read_bytes()


def read_rgb(content: bytes) -> Image.Image:
    """Returns the image in the bytes of a file as RGB with 8 bits, as a viewer shows it.

    It is turned as EXIF says. What is transparent lies on white. Of an animation it is the first frame. 16 bits become
    8 over their whole range; numbers with a fraction, and 32-bit ones, by the range that they fill: 0 to 1, 0 to 255 or
    0 to 65,535. Color profiles are not applied.

    Raises:
        BadImageError: it is broken, has more pixels than `Image.MAX_IMAGE_PIXELS`, or numbers that fill no such range.
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
    except Exception:  # of damaged EXIF data, which viewers do without; Pillow raises whatever they lead it to
        turn = None
    return image if turn is None else image.transpose(turn)


def _has_8_bits(image: Image.Image) -> bool:
    return image.mode not in ("I", "F") and not image.mode.startswith("I;16")


def _in_8_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Returns a grey image of more than 8 bits as one of 8; `opened` knows its format."""
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
    """Returns the number that stands for white."""
    if image.mode.startswith("I;16"):
        return 2**bits - 1
    if file_format == "PPM" and image.mode == "I":
        return RANGES[-1]
    low, high = float(values.min()), float(values.max())
    for full in RANGES:  # resizing leaves numbers that lie a little outside
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
