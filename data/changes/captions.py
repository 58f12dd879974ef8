"""Changes of captions. Each takes a caption and a level, and always gives the same result."""

import random
import re
import zlib
from collections.abc import Sequence
from math import ceil
from typing import Final

COLORS: Final[Sequence[Sequence[str]]] = (
    ("black", "white", "red", "blue", "green", "yellow", "gray", "grey", "brown", "pink", "purple", "orange"),
    ("đen", "trắng", "đỏ", "xanh dương", "xanh lá", "vàng", "xám", "nâu", "hồng", "tím", "cam"),
)
_LONGEST_FIRST: Final = sorted((color for names in COLORS for color in names), key=len, reverse=True)
COLOR: Final = re.compile(rf"\b({'|'.join(_LONGEST_FIRST)})\b", re.IGNORECASE)


def first_words(caption: str, level: float) -> str:
    """Returns the first words of a caption: the share `level` of them, at least one."""
    words = caption.split()
    return " ".join(words[: max(1, ceil(level * len(words)))])


def drop_words(caption: str, level: float) -> str:
    """Returns a caption without the share `level` of its words, chosen at random; at least one is left."""
    words = caption.split()
    kept = max(1, len(words) - round(level * len(words)))
    places = sorted(_random(caption).sample(range(len(words)), kept)) if words else []
    return " ".join(words[place] for place in places)


def exchange_colors(caption: str, level: float) -> str:
    """Returns a caption in which each English or Vietnamese color word is another one with the probability `level`."""
    draw = _random(caption)

    def exchanged(found: re.Match[str]) -> str:
        own = found[0].lower()
        names = next((names for names in COLORS if own in names), (own,))  # a dotless i matches an i
        others = [color for color in names if color != own]
        return draw.choice(others) if others and draw.random() < level else found[0]

    return COLOR.sub(exchanged, caption)


def _random(caption: str) -> random.Random:
    """Returns a generator that depends on the caption alone."""
    return random.Random(zlib.crc32(caption.encode(errors="replace")))
