"""Values of an annotation file that cannot be used, and how they are told."""

import reprlib
from typing import Any, Final

SHOWN: Final = 80  # characters of a value

_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = SHOWN


class WrongValueError(Exception):
    """A value that cannot be used; says what was found."""


def short(value: Any) -> str:
    """Returns `value` as Python writes it, cut in its middle where it is long.

    >>> short("a" * 1000) == repr("a" * 37 + "..." + "a" * 38)
    True
    """
    return _short.repr(value)


def kind_of(value: Any) -> str:
    """Returns what a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number"}
    return "null" if value is None else names.get(type(value), "a number with a fraction")
