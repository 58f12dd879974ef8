"""Plain values of a config from a file, and their use in a config of this project."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from utils.errors import UserError

NUMBER_OR_WORD: Final = re.compile(
    r"trainer\..+|dataset\.num_workers|scheduler\.warmup_epochs"
)  # options that accept both
DEEPEST: Final = 20
MISSING: Final = "???"  # an option that has no default

Skip = Callable[[str], bool]


class ForeignValueError(UserError):
    """A value at `key` of a file's config that this project refuses."""

    def __init__(self, key: str, value: Any, expected: str) -> None:
        super().__init__(f"{shown(key)}: {shown(value)}, expected {expected}")


def lay_over(own: Any, values: Any, skip: Skip, open_keys: tuple[str, ...] = (), key: str = "") -> Any:
    """Returns `own` with `values` in place of its own; keys that `own` lacks are left out.

    Args:
        own: containers and values, interpolations unresolved; keys that begin with "_" keep their value.
        values: the values from a file.
        skip: a function that says whether the value at a dotted key stays as it is.
        open_keys: mappings from which keys that `values` lacks are removed; in other mappings they stay.
        key: the dotted key of `own` and `values`.

    Raises:
        ForeignValueError: if a value is an interpolation, not plain or of another type, or a "_" key differs.
    """
    if key and skip(key):
        return own
    if isinstance(own, dict) and isinstance(values, dict):
        return _mapping_over(own, values, skip, open_keys, key)
    if _are_mappings(own) and _are_mappings(values) and len(own) == len(values):
        return [lay_over(*pair, skip, open_keys, f"{key}.{i}") for i, pair in enumerate(zip(own, values, strict=True))]
    if not is_plain(values):
        raise ForeignValueError(key, values, "plain values: a file must not name code or interpolations")
    is_open = own in (None, MISSING) or is_derived(own) or (values is None and not isinstance(own, dict))
    if not is_open and _kind(own, key) != _kind(values, key):
        raise ForeignValueError(key, values, _kind(own, key))
    return values


def _mapping_over(
    own: Mapping[str, Any], values: Mapping[Any, Any], skip: Skip, open_keys: tuple[str, ...], key: str
) -> dict[str, Any]:
    result = {}
    for name, value in own.items():
        inner = f"{key}.{name}".removeprefix(".")
        if name.startswith("_"):
            if name in values and not same(values[name], value):
                raise ForeignValueError(inner, values[name], f"{shown(value)}, as this project's config has it")
            result[name] = value
        elif name in values:
            result[name] = lay_over(value, values[name], skip, open_keys, inner)
        elif key not in open_keys or skip(inner):
            result[name] = value
    for name in values:
        if str(name).startswith("_") and name not in own:
            raise ForeignValueError(f"{key}.{name}", values[name], "no such key")
    return result


def flat(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for all values; a list counts as one value."""
    if isinstance(values, dict) and values and key.count(".") < DEEPEST:
        for name, value in values.items():
            yield from flat(value, f"{key}.{name}".removeprefix("."))
    else:
        yield key, values


def is_derived(value: Any) -> bool:
    """Returns whether a value is an interpolation."""
    return isinstance(value, str) and "${" in value


def is_plain(value: Any, depth: int = 0) -> bool:
    """Returns whether a value is None, a number, text, or lists and mappings of these, without "_" keys or "${"."""
    if depth > DEEPEST:
        return False
    if isinstance(value, list):
        return all(is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(
            isinstance(name, str) and not name.startswith("_") and is_plain(item, depth + 1)
            for name, item in value.items()
        )
    if type(value) is int:
        return abs(value) < 2**63
    return value is None or (type(value) in (bool, float, str) and not is_derived(value))


def same(one: Any, other: Any, depth: int = 0) -> bool:
    """Returns whether two values are equal; true and 1 are not equal, 1 and 1.0 are."""
    if depth > DEEPEST:
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name], depth + 1) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(*pair, depth + 1) for pair in zip(one, other, strict=True))
    return is_plain(one) and is_plain(other) and one == other and isinstance(one, bool) == isinstance(other, bool)


def shown(value: Any) -> str:
    """Returns a value as text for a message, at most 60 characters long."""
    text = value if isinstance(value, str) else repr(value) if is_plain(value) else f"a {type(value).__name__}"
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= 60 else text[:57] + "..."


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) for item in value)


def _kind(value: Any, key: str) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    if NUMBER_OR_WORD.fullmatch(key):
        return "a number or a word"
    if isinstance(value, bool):
        return "true or false"
    return "text" if isinstance(value, str) else "a number"
