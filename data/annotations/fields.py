"""The required keys and values of a record in an annotation file."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from data.annotations.layouts import IMAGE_FOLDER, SPLIT_NAMES, Layout
from data.annotations.paths import ImagePaths
from data.annotations.values import WrongValueError, kind_of, short

MAX_ID = 2**63 - 1
# Soft hyphens, joiners, direction marks, fillers, byte order marks: invisible characters in captions from web pages.
ZERO_WIDTH: Final = dict.fromkeys(
    [0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, 0xFEFF]
)


class Field(NamedTuple):
    """The parser of the value at a key, which may raise `WrongValueError`, and a text on what is expected."""

    parse: Callable[[Any], Any]
    expected: str


def record_fields(layout: Layout, paths: ImagePaths) -> dict[str, Field]:
    """Returns key -> `Field` for each required key of a record."""
    return {
        "id": Field(_pid, "a whole number, 0 or more"),
        "split": Field(_split, f"one of {', '.join(SPLIT_NAMES)} (a file without splits cannot be used)"),
        layout.path_key: Field(lambda value: paths.find(_text(value)), f"an image path below {IMAGE_FOLDER}/"),
        **dict.fromkeys(layout.caption_keys[layout.language], CAPTIONS),
    }


def further_fields(layout: Layout) -> dict[str, Field]:
    """Returns key -> `Field` for each key of further captions, which only records of the training split need."""
    return dict.fromkeys(layout.further, CAPTIONS)


def _pid(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongValueError(kind_of(value))
    if not 0 <= value <= MAX_ID:
        raise WrongValueError(f"the number {short(value)}")
    return value


def _split(value: Any) -> str:
    name = _text(value)
    if name not in SPLIT_NAMES:
        raise WrongValueError(short(name))
    return SPLIT_NAMES[name]


def _captions(value: Any) -> tuple[str, ...]:
    """Returns the captions without zero-width characters and with collapsed white space; a string is one caption."""
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list):
        raise WrongValueError(kind_of(value))
    if not captions:
        raise WrongValueError("an empty list")
    count = len(captions)
    return tuple(_caption(caption, f"caption {n} of {count}") for n, caption in enumerate(captions, start=1))


def _caption(value: Any, which: str) -> str:
    try:
        caption = " ".join(_text(value).translate(ZERO_WIDTH).split())
    except WrongValueError as wrong:
        raise WrongValueError(f"{which} is {wrong}") from wrong
    if not caption:
        raise WrongValueError(f"{which} is empty")
    if not any(map(str.isalnum, caption)):
        raise WrongValueError(f"{which} is without a word: {short(caption)}")
    return caption


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongValueError(kind_of(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WrongValueError(f"text with broken Unicode at character {error.start + 1}") from error
    return value


CAPTIONS: Final = Field(_captions, "a sentence or a list of sentences")
