"""What looks wrong about an image that can be read."""

from typing import Final

from PIL import Image

try:
    import simplejpeg
except ImportError:  # a machine without network may lack it: nothing is then called damaged
    simplejpeg = None

ODDITIES: Final = {"constant": "of one color", "damaged": "with damaged JPEG data", "small": "under 8 pixels a side"}
ONE_COLOR: Final = 2  # levels that the pixels of an image of one color may differ by, after compression
SMALL: Final = 8
JPEG_DAMAGE: Final = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")  # warnings of libjpeg


def oddities_of(content: bytes, image: Image.Image) -> tuple[str, ...]:
    """Returns which of `ODDITIES` are true of the bytes of a file and the `image` in it."""
    found = {
        "constant": all(high - low <= ONE_COLOR for low, high in image.getextrema()),  # type: ignore[misc]
        "damaged": jpeg_damage(content) is not None,
        "small": min(image.size) < SMALL,
    }
    return tuple(oddity for oddity in ODDITIES if found[oddity])


def jpeg_damage(content: bytes) -> str | None:
    """Returns what libjpeg says of damaged data in a JPEG that Pillow decodes without a word; None if it is sound.

    It notices where the data does not end with the image, and codes that do not exist. Damage that happens to be
    another valid JPEG, as most single wrong bytes are, only a checksum could tell.
    """
    if simplejpeg is None or not content.startswith(b"\xff\xd8"):
        return None
    try:
        simplejpeg.decode_jpeg(content, "GRAY", fastdct=True, fastupsample=True, strict=True)
    except ValueError as error:
        return str(error) if str(error).startswith(JPEG_DAMAGE) else None
    return None
