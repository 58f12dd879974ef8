"""The required keys and values of a record in an annotation file."""

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from data.annotations.layouts import SPLIT_NAMES, Layout
from data.annotations.paths import ImagePaths
from data.annotations.values import WrongValueError, kind_of, short

MAX_ID = 2**63 - 1
_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_LANGUAGE: Final = re.compile(r"\w[\w-]{0,34}")
# Soft hyphens, joiners, direction marks, fillers, byte order marks: invisible characters in captions from web pages.
ZERO_WIDTH: Final = dict.fromkeys(
    [0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, 0xFEFF]
)


class Field(NamedTuple):
    """The parser of the value at a key, which may raise `WrongValueError`, and a text on what is expected."""

    parse: Callable[[Any], Any]
    expected: str


def record_fields(layout: Layout, paths: ImagePaths, *, is_text: bool = False) -> dict[str, Field]:
    """Returns key -> `Field` for each key that a record needs.

    Args:
        layout: says which keys these are.
        paths: finds the images.
        is_text: whether all values are texts, also those of numbers and lists.
    """
    below = "the folder of the images" if layout.given_images or layout.images == "." else f"{layout.images}/"
    captions = CELLS if is_text else CAPTIONS
    splits = f"one of {', '.join(SPLIT_NAMES)}"
    if not layout.find:
        splits += " (a file without splits cannot be used)"
    identity = Field(_identity, "a whole number, 0 or more, or a name") if layout.ids_may_be_names else PID
    fields: dict[str | None, Field] = {
        layout.id_key: identity._replace(parse=lambda cell: identity.parse(_number(cell))) if is_text else identity,
        layout.split_key: Field(_split, splits),
        layout.language_key: Field(_language, "a code of letters and digits, such as vi"),
        layout.path_key: Field(lambda value: paths.find(_text(value)), f"an image path below {below}"),
        **dict.fromkeys(layout.caption_keys[layout.language], captions),
    }
    return {key: field for key, field in fields.items() if key is not None}


def further_fields(layout: Layout, *, is_text: bool = False) -> dict[str, Field]:
    """Returns key -> `Field` for each key of further captions, which only records of the training split need."""
    return dict.fromkeys(layout.further, CELLS if is_text else CAPTIONS)


def _pid(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongValueError(kind_of(value))
    if not 0 <= value <= MAX_ID:
        raise WrongValueError(f"the number {short(value)}")
    return value


def _number(cell: Any) -> Any:
    """Returns the whole number that a cell shows; another cell, also one with zeros in front, is returned as it is."""
    return int(cell) if isinstance(cell, str) and _WHOLE.fullmatch(cell) else cell


def _identity(value: Any) -> int | str:
    if not isinstance(value, str):
        return _pid(value)
    if not (name := " ".join(_text(value).split())):
        raise WrongValueError("an empty text")
    return name


def _language(value: Any) -> str:
    if not _LANGUAGE.fullmatch(code := _text(value)):
        raise WrongValueError(short(code))
    return code


def _split(value: Any) -> str:
    name = _text(value)
    if name not in SPLIT_NAMES:
        raise WrongValueError(short(name))
    return SPLIT_NAMES[name]


def _cell(value: Any) -> tuple[str, ...]:
    """Returns the captions in a cell: one sentence, or a JSON list of sentences."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise WrongValueError(f"{short(value)}, which is in brackets, but not a JSON list") from error
    return _captions(value)


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
CELLS: Final = Field(_cell, 'a sentence or a JSON list of sentences, ["...", "..."]')
PID: Final = Field(_pid, "a whole number, 0 or more")
