"""Examination of a dataset's image files: faults, sizes, hashes and oddities."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.images.oddities import oddities_of
from utils.images import BadImageError, check_file, image_faults, read_bytes, read_rgb
from utils.training.threads import in_threads


class ImageState(NamedTuple):
    """The state of one image.

    fault: one of `utils.images.FAULTS`, or None if the image can be read. detail: the reason if it is unreadable.
    size: (width, height) in pixels, upright. digest: hash of the bytes. Both are None if it was not decoded.
    oddities: keys of `data.images.oddities.ODDITIES` that apply.
    """

    fault: str | None
    detail: str = ""
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    oddities: tuple[str, ...] = ()


def look_at_images(files: Sequence[Path], *, decode: bool) -> list[ImageState]:
    """Returns the state of each file, in order; shows a progress bar.

    Args:
        files: the image files.
        decode: whether to decode the pixels, as training will, or only check the file's existence and length.
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
