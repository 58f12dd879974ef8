"""The columns of an annotation file: which one holds paths, captions, identities, splits and languages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data.annotations.files import AnnotationFile
from data.annotations.values import short
from utils.errors import UserError, nearest

if TYPE_CHECKING:
    from data.annotations.layouts import Layout

NONE: Final = "none"  # as the name of a column: the file has none
KEYS: Final = {"path": "path_key", "identity": "id_key", "split": "split_key", "language": "language_key"}
ROLES: Final = ("captions", *KEYS)
OPTIONAL: Final = ("identity", "split", "language")
WITHOUT: Final = {
    "identity": "each image counts as a person",
    "split": "the test split is cut by identity",
    "language": "all captions count as of one language",
}
NAMED_AT_MOST: Final = 12


def given_columns(columns: Mapping[str, Any], layout: "Layout") -> "Layout":
    """Returns `layout` with the columns that options name, and with the language that an option gives, if any.

    Raises:
        UserError: if a name is not a text, or a column is missing that a dataset cannot lack.
    """
    given = {role: value for role, value in columns.items() if value is not None}
    asked = layout.asked_language
    changes: dict[str, Any] = {"language": asked or layout.language}
    for role, value in given.items():
        if role == "captions":
            if not isinstance(value, Mapping):
                value = {changes["language"]: value}
            changes["caption_keys"] = {str(language): _names(role, names) for language, names in value.items()}
            changes["language"] = asked or next(iter(changes["caption_keys"]))
        else:
            (name,) = _names(role, value, at_most=1)
            changes[KEYS[role]] = None if name == NONE and role in OPTIONAL else name
    find = {role: names for role, names in layout.find.items() if role not in given}
    layout = replace(layout, **changes, find=find, given_columns=frozenset(given))
    if asked and asked not in layout.caption_keys and (layout.language_key or {"captions", "language"} & find.keys()):
        return replace(layout, caption_keys={asked: next(iter(layout.caption_keys.values()))})  # the file says which
    return layout


def settled(layout: "Layout", opened: AnnotationFile, file: Path) -> "Layout":
    """Returns `layout` with the names of the columns that `file` has.

    Raises:
        UserError: if a column is missing or several may be meant; the message names them.
    """
    changes: dict[str, Any] = {}
    for role, names in layout.find.items():
        name = _found(role, names, opened.columns, file)
        changes |= {"caption_keys": {layout.language: (name,)}} if role == "captions" else {KEYS[role]: name}
    layout = replace(layout, **changes)
    keys = {role: getattr(layout, key) for role, key in KEYS.items()}
    wanted = [(role, key) for role, key in keys.items() if key is not None]
    wanted += [("captions", key) for key in layout.caption_keys[layout.language]]
    for role, key in wanted:
        if key not in opened.columns and (opened.is_table or role in layout.given_columns):
            raise UserError(
                f"{file} has no column {short(key)} for dataset.columns.{role}; it has {_listed(opened.columns)}."
                + nearest(key, list(opened.columns))
            )
    for key in layout.further:
        if opened.is_table and key not in opened.columns:
            hint = nearest(key, list(opened.columns))
            raise UserError(
                f"dataset.further_captions.{key}: {file} has no such column, it has {_listed(opened.columns)}.{hint}"
            )
    if layout.language_key is not None and len(layout.caption_keys) > 1:
        raise UserError("dataset.columns.language and columns of captions by language exclude each other; give one")
    return layout


def _found(role: str, names: Sequence[str], columns: Sequence[str], file: Path) -> str | None:
    """Returns the only column with one of `names`, in any case; None if there is none and the file may lack it."""
    found = [column for column in columns if column.casefold() in names]
    if len(found) == 1:
        return found[0]
    option = f"dataset.columns.{role}"
    if found:
        several = " and ".join(map(short, found))
        raise UserError(f"{file} has the columns {several}, and {role} may be in either; give {option}={found[0]}")
    close = [column for column in columns if get_close_matches(column.casefold(), names, n=1, cutoff=0.8)]
    if close and role in OPTIONAL:
        raise UserError(
            f"{file} has no column {names[0]!r}, but {short(close[0])}: give {option}={close[0]}, or {option}={NONE} "
            f"if it is not meant ({WITHOUT[role]})"
        )
    if role in OPTIONAL:
        return None
    raise UserError(
        f"{file} has no column {names[0]!r} but {_listed(columns)}; name the one that holds {role} with {option}=NAME."
        + (f" Did you mean {close[0]!r}?" if close else "")
    )


def _names(role: str, value: Any, at_most: int | None = None) -> tuple[str, ...]:
    names = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not names or len(names) > (at_most or len(names)) or not all(isinstance(name, str | int) for name in names):
        several = "" if at_most else ", or a list of names, or a mapping from languages to names"
        raise UserError(f"dataset.columns.{role}: {short(value)} given, expected the name of a column{several}")
    return tuple(map(str, names))


def _listed(columns: Sequence[str]) -> str:
    return (
        ", ".join([*map(short, columns[:NAMED_AT_MOST]), *(["..."] if len(columns) > NAMED_AT_MOST else [])]) or "none"
    )
