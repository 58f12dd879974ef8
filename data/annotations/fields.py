"""What one record of an annotation file must hold, key by key."""

import os
import posixpath
from collections.abc import Callable
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from data.annotations.layouts import IMAGE_FOLDER, SPLIT_NAMES, Layout
from utils.errors import UserError

MAX_ID = 2**63 - 1


class WrongValueError(Exception):
    """A value that cannot be used; says what was found."""


class Field(NamedTuple):
    """How the value under a key is parsed (raising `WrongValueError`) and what is expected of it."""

    parse: Callable[[Any], Any]
    expected: str


def record_fields(layout: Layout, folder: Path) -> dict[str, Field]:
    """Returns what a record must hold: key -> how its value is parsed and what is expected of it."""
    inside = _inside(folder)
    captions = Field(_captions, "a sentence or a list of sentences")
    return {
        "id": Field(_pid, "a whole number, 0 or more"),
        "split": Field(_split, f"one of {', '.join(SPLIT_NAMES)} (a file without splits cannot be used)"),
        layout.path_key: Field(lambda value: inside(_path(value)), f"an image path below {IMAGE_FOLDER}/"),
        **dict.fromkeys(layout.caption_keys[layout.language], captions),
    }


def _pid(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongValueError(kind_of(value))
    if not 0 <= value <= MAX_ID:
        raise WrongValueError(f"the number {value}")
    return value


def _split(value: Any) -> str:
    name = _text(value)
    if name not in SPLIT_NAMES:
        raise WrongValueError(f"{name!r}")
    return SPLIT_NAMES[name]


def _path(value: Any) -> str:
    """Returns the normalised POSIX path `value`; one that is absolute or climbs is wrong on every system."""
    text = _text(value)
    parts = PureWindowsPath(text)  # splits at / and \, knows drives
    if parts.anchor or ".." in parts.parts or "\0" in text:
        raise WrongValueError(f"{text!r} is absolute or climbs out of the dataset folder")
    path = posixpath.normpath(text)
    if path == ".":
        raise WrongValueError(f"{text!r} names no file")
    return path


def _captions(value: Any) -> tuple[str, ...]:
    """Returns the captions with white space collapsed; a lone string is one caption."""
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list):
        raise WrongValueError(kind_of(value))
    if not captions:
        raise WrongValueError("an empty list")
    count = len(captions)
    return tuple(_caption(caption, f"caption {n} of {count}") for n, caption in enumerate(captions, start=1))


def _caption(value: Any, which: str) -> str:
    try:
        caption = " ".join(_text(value).split())
    except WrongValueError as wrong:
        raise WrongValueError(f"{which} is {wrong}") from wrong
    if not caption:
        raise WrongValueError(f"{which} is empty")
    return caption


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongValueError(kind_of(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WrongValueError(f"text with broken Unicode at character {error.start + 1}") from error
    return value


def kind_of(value: Any) -> str:
    """Returns what a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number"}
    return "null" if value is None else names.get(type(value), "a number with a fraction")


def _inside(folder: Path) -> Callable[[str], str]:
    """Returns a check that hands a path below imgs/ back if no symbolic link on it leads out of `folder`.

    Asks the file system once per directory, not once per image.
    """
    root = Path(os.path.realpath(folder))
    images = folder / IMAGE_FOLDER

    def leaves(path: Path) -> bool:
        return not Path(os.path.realpath(path)).is_relative_to(root)

    @cache
    def inspect(parent: Path) -> tuple[bool, frozenset[str]]:
        try:
            with os.scandir(parent) as entries:
                links = frozenset(entry.name for entry in entries if entry.is_symlink())
        except (FileNotFoundError, NotADirectoryError):
            links = frozenset()
        except OSError as error:
            raise UserError(f"The image folder {parent} cannot be listed: {error.strerror}.") from error
        return leaves(parent), links

    def check(path: str) -> str:
        file = images / path
        parent_leaves, links = inspect(file.parent)
        if parent_leaves or (file.name in links and leaves(file)):
            raise WrongValueError(f"{path!r} leaves the dataset folder through a symbolic link")
        return path

    return check
