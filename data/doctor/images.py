"""Looks at every image file of a dataset: does it decode, how large is it, is it unique, does it look odd?"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.images.oddities import oddities_of
from utils.images import BadImageError, check_file, image_faults, read_bytes, read_rgb
from utils.training.threads import in_threads


class ImageState(NamedTuple):
    """What was found of one image.

    fault: one of `utils.images.FAULTS`, or None for an image that can be read; detail: why it is unreadable.
    size: (width, height) in pixels, upright, and digest: hash of the bytes; None where it was not decoded.
    oddities: what looks wrong, by the keys of `data.images.oddities.ODDITIES`.
    """

    fault: str | None
    detail: str = ""
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    oddities: tuple[str, ...] = ()


def look_at_images(files: Sequence[Path], *, decode: bool) -> list[ImageState]:
    """Returns the state of each file, in order; with a progress bar on a terminal's standard error.

    Args:
        files: the image files.
        decode: whether to decode the pixels, as training will, or only to ask for the file's length.
    """
    look = partial(_look_at_image, decode=decode)
    return list(in_threads(look, files, total=len(files), title="images", unit="img"))


def _look_at_image(file: Path, *, decode: bool) -> ImageState:
    try:
        if not decode:
            with image_faults():
                check_file(file.stat())
            return ImageState(None)
        content = read_bytes(file)
        image = read_rgb(content)
    except BadImageError as error:
        return ImageState(error.fault, str(error) if error.fault == "unreadable" else "")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return ImageState(None, size=image.size, digest=digest, oddities=oddities_of(content, image))
