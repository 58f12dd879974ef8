"""Looks at every image file of a dataset: is it there, does it decode, how large is it, is it unique?"""

import hashlib
import io
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image, UnidentifiedImageError

from utils.progress import Bar

FAULTS: Final = ("missing", "empty", "unreadable")


class ImageState(NamedTuple):
    """What was found of one image.

    fault: one of `FAULTS`, or None for a sound image; detail: why it is unreadable.
    size: (width, height) in pixels and digest: hash of the bytes; None where it was not decoded.
    """

    fault: str | None
    detail: str = ""
    size: tuple[int, int] | None = None
    digest: bytes | None = None


def look_at_images(files: Sequence[Path], *, decode: bool) -> list[ImageState]:
    """Returns the state of each file, in order; with a progress bar on a terminal's standard error.

    Args:
        files: the image files.
        decode: whether to decode the pixels, as training will, or only to ask for the file's length.
    """
    look = partial(_look_at_image, decode=decode)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(Bar(pool.map(look, files), total=len(files), desc="images", unit="img"))


def _look_at_image(file: Path, *, decode: bool) -> ImageState:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return ImageState("unreadable", "not a file")
        if status.st_size == 0:
            return ImageState("empty")
        if not decode:
            return ImageState(None)
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ImageState("missing")
    except OSError as error:
        return ImageState("unreadable", error.strerror or str(error))
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB")
            return ImageState(None, size=image.size, digest=hashlib.blake2b(content, digest_size=16).digest())
    except UnidentifiedImageError:
        return ImageState("unreadable", "not an image")
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        return ImageState("unreadable", str(error) or type(error).__name__)
