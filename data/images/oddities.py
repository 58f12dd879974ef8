"""Oddities of readable images: one color, damaged JPEG data, tiny size."""

from typing import Final

from PIL import Image

try:
    import simplejpeg
except ImportError:  # without this package no image counts as damaged
    simplejpeg = None

ODDITIES: Final = {"constant": "of one color", "damaged": "with damaged JPEG data", "small": "under 8 pixels a side"}
ONE_COLOR: Final = 2  # the largest difference between pixels of a one-color image after compression
SMALL: Final = 8
JPEG_DAMAGE: Final = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")  # warnings of libjpeg


def oddities_of(content: bytes, image: Image.Image) -> tuple[str, ...]:
    """Returns the keys of `ODDITIES` that apply to a file with the bytes `content` and its `image`."""
    found = {
        "constant": all(high - low <= ONE_COLOR for low, high in image.getextrema()),  # type: ignore[misc]
        "damaged": jpeg_damage(content) is not None,
        "small": min(image.size) < SMALL,
    }
    return tuple(oddity for oddity in ODDITIES if found[oddity])


def jpeg_damage(content: bytes) -> str | None:
    """Returns libjpeg's warning about damaged data in a JPEG, which Pillow decodes silently; None if there is none.

    It detects data that does not end with the image, and invalid codes. It cannot detect damage that gives another
    valid JPEG, such as most single wrong bytes; only a checksum could.
    """
    if simplejpeg is None or not content.startswith(b"\xff\xd8"):
        return None
    try:
        simplejpeg.decode_jpeg(content, "GRAY", fastdct=True, fastupsample=True, strict=True)
    except ValueError as error:
        return str(error) if str(error).startswith(JPEG_DAMAGE) else None
    return None
