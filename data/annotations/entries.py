"""The records of an annotation file, checked one by one."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from data.annotations.fields import further_fields, record_fields
from data.annotations.files import AnnotationFile, Malformed
from data.annotations.layouts import Layout
from data.annotations.paths import ImagePaths
from data.annotations.values import WrongValueError, kind_of, short

KEYS_SHOWN: Final = 8


class Annotation(NamedTuple):
    """An image's annotation in the file: record number from 1, identity, split, path below the images, captions.

    pid: the identity's number; in an image that is not merged yet, the identity as in the file.
    further: the captions at each of the layout's `further` keys; empty outside the training split.
    languages: the language of each caption; empty if the layout's language has one key.
    """

    number: int
    pid: int
    split: str
    path: str
    captions: tuple[str, ...]
    further: tuple[tuple[str, ...], ...] = ()
    languages: tuple[str, ...] = ()


class Problem(NamedTuple):
    """A problem of one record (numbered from 1) at one key; a key of None means the whole record."""

    record: int
    key: str | None
    found: str
    expected: str


class Reading(Iterable[Annotation]):
    """An iterable of the valid records of a file, with identities as in the file.

    Args:
        problems: gets the faults of the other records.

    Attributes:
        count: number of records. skipped: number of those in a language that is not read.
    """

    def __init__(self, layout: Layout, opened: AnnotationFile, paths: ImagePaths, problems: list[Problem]) -> None:
        self._layout, self._opened, self._problems = layout, opened, problems
        self._fields = record_fields(layout, paths, is_text=opened.is_text)
        self._further = further_fields(layout, is_text=opened.is_text)
        self._captions = layout.caption_keys[layout.language]
        self.count = self.skipped = 0

    def __iter__(self) -> Iterator[Annotation]:
        layout = self._layout
        for entry in self._opened.entries():
            self.count += 1
            if isinstance(entry, Malformed):
                self._problems.append(Problem(self.count, entry.key, entry.found, entry.expected))
            elif not isinstance(entry, dict):
                expected = f"an object with keys {_names(self._fields)}"
                self._problems.append(Problem(self.count, None, kind_of(entry), expected))
            elif (values := self._values(entry)) is not None:
                language = values.get(layout.language_key) if layout.language_key else None
                if None not in (language, layout.asked_language) and language != layout.asked_language:
                    self.skipped += 1
                    continue
                yield self._annotation(values, language)

    def _values(self, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns key -> value of a record, or None if it has problems."""
        is_table, split = self._opened.is_table, self._layout.split_key
        trained = split is None or entry.get(split) == "train"
        needed = self._fields | self._further if self._further and trained else self._fields
        values: dict[str, Any] = {}
        wrong = len(self._problems)
        for key, field in needed.items():
            if key not in entry:
                found = f"missing (the record has {_names(entry) or 'no keys'})"
            elif is_table and entry[key] in (None, ""):
                if key in self._captions and any(entry[other] not in (None, "") for other in self._captions):
                    continue
                found = "an empty cell"
            else:
                try:
                    values[key] = field.parse(entry[key])
                    continue
                except WrongValueError as error:
                    found = str(error)
            self._problems.append(Problem(self.count, key, found, field.expected))
        return values if len(self._problems) == wrong else None

    def _annotation(self, values: Mapping[str, Any], language: str | None) -> Annotation:
        layout, keys = self._layout, [key for key in self._captions if key in values]
        captions = sum((values[key] for key in keys), ())
        languages: tuple[str, ...] = ()
        if language is not None:
            languages = (language,) * len(captions)
        elif len(self._captions) > 1:
            languages = tuple(layout.language_of(key) for key in keys for _ in values[key])
        return Annotation(
            self.count,
            values[layout.id_key] if layout.id_key else None,  # type: ignore[arg-type]
            values[layout.split_key] if layout.split_key else "train",
            values[layout.path_key],
            captions,
            tuple(values[key] for key in layout.further if key in values),
            languages,
        )


def _names(keys: Iterable[str]) -> str:
    """Returns the first `KEYS_SHOWN` keys as text."""
    first = list(islice(keys, KEYS_SHOWN + 1))
    return ", ".join([*map(short, first[:KEYS_SHOWN]), *(["..."] if len(first) > KEYS_SHOWN else [])])
