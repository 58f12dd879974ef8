"""Wrong values in an annotation file, and their text in messages."""

import reprlib
from typing import Any, Final

SHOWN: Final = 80  # characters of a value

_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = SHOWN


class WrongValueError(Exception):
    """A wrong value; the message says what was found."""


def short(value: Any) -> str:
    """Returns the `repr` of `value`, shortened in the middle if it is long.

    >>> short("a" * 1000) == repr("a" * 37 + "..." + "a" * 38)
    True
    """
    return _short.repr(value)


def kind_of(value: Any) -> str:
    """Returns the type of a JSON value, in words."""
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number with a fraction"}
    return "null" if value is None else names.get(type(value), "an object")
