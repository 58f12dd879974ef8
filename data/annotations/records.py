"""Reading of an annotation file into checked annotations, and a list of all its problems."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from data.annotations.fields import further_fields, record_fields
from data.annotations.layouts import IMAGE_FOLDER, SPLITS, Layout
from data.annotations.paths import ImagePaths
from data.annotations.values import WrongValueError, kind_of, short
from utils.errors import UserError, nearest

KEYS_SHOWN: Final = 8


class Annotation(NamedTuple):
    """An image's annotation in the file: record number from 1, raw identity, split, path below imgs/, captions.

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


@dataclass(frozen=True)
class Annotations:
    """The content of one annotation file.

    records: number of records in the file. per_split: number of valid records in each split.
    images: one annotation per image, in file order; records of the same image are merged.
    problems: everything that must be corrected before training, in order of discovery.
    ids_restart: whether the identities of every split are numbered from 0.
    respelled: path in the file -> path on disk, if the spelling differs.
    """

    name: str
    layout: Layout
    folder: Path
    file: Path
    records: int
    per_split: dict[str, int]
    images: list[Annotation]
    problems: list[Problem]
    ids_restart: bool
    respelled: dict[str, str]

    def sentence(self, problem: Problem) -> str:
        """Returns `problem` as a clause that names file, record, key and expectation."""
        key = "" if problem.key is None else f", key {short(problem.key)}"
        where = f"{self.file}, record {problem.record} of {self.records}{key}"
        return f"{where}: {problem.found}; expected {problem.expected}"


def load_annotations(name: str, layout: Layout, root: str | Path) -> Annotations:
    """Returns the annotations of dataset `name` below `root`; bad records are listed as problems.

    Raises:
        UserError: if the folder or the file is missing, or the file is not a JSON list.
    """
    folder = Path(root) / layout.folder
    file = _find_file(name, layout, folder)
    entries = read_entries(file)
    problems: list[Problem] = []
    paths = ImagePaths(folder / IMAGE_FOLDER)
    sound = list(_check_records(entries, layout, paths, problems))
    images = _merge(sound, problems)
    ids_restart = layout.ids_may_restart and _restarts(images)
    if not ids_restart:
        _check_leaks(images, problems)
    per_split = {split: sum(annotation.split == split for annotation in sound) for split in SPLITS}
    return Annotations(
        name, layout, folder, file, len(entries), per_split, images, problems, ids_restart, paths.respelled
    )


def _find_file(name: str, layout: Layout, folder: Path) -> Path:
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(
            f"Dataset {name} was expected in the folder {folder.absolute()}, which does not exist: "
            f"{layout.source}, or point dataset_root_dir to the folder that holds {layout.folder}/."
            + nearest(layout.folder, siblings, cutoff=0.8)
        )
    for file in layout.files:
        if (folder / file).is_file():
            return folder / file
        if (folder / file).exists():
            raise UserError(f"{folder / file} is not a file; put the annotation file there.")
    others = ", ".join(sorted(path.name for path in folder.glob("*.json")))
    raise UserError(
        f"Dataset {name} needs the annotation file {folder.absolute() / layout.files[0]}, which is missing"
        + (f" (the folder has {others} instead, which cannot replace it)" if others else "")
        + f": {layout.source}."
    )


def read_entries(file: Path) -> list[Any]:
    """Returns the records of an annotation file.

    Raises:
        UserError: if it is not a JSON list of records.
    """
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"{file} is not valid JSON ({where}); fetch or export the file again.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file} is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a list of records ({error}); fetch the file again.") from error
    if not isinstance(content, list):
        raise UserError(f"{file} holds {kind_of(content)}; expected a JSON list of records, one per image.")
    if not content:
        raise UserError(f"{file} holds an empty list; expected a JSON list of records, one per image.")
    return content


class _AmbiguousObject(dict[str, Any]):
    """A JSON object that has `key` more than once."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object from its pairs, as an `_AmbiguousObject` if a key is repeated."""
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    ambiguous = _AmbiguousObject(content)
    ambiguous.key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return ambiguous


def _check_records(
    entries: list[Any], layout: Layout, paths: ImagePaths, problems: list[Problem]
) -> Iterator[Annotation]:
    """Yields the valid records and adds the faults of the others to `problems`."""
    fields, further = record_fields(layout, paths), further_fields(layout)
    keys = layout.caption_keys[layout.language]
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            problems.append(Problem(number, None, kind_of(entry), f"an object with keys {_names(fields)}"))
            continue
        if isinstance(entry, _AmbiguousObject):
            problems.append(Problem(number, entry.key, "a key that the record has more than once", "one value"))
            continue
        values: dict[str, Any] = {}
        needed = fields | further if further and entry.get("split") == "train" else fields
        for key, field in needed.items():
            if key not in entry:
                found = f"missing (the record has {_names(entry) or 'no keys'})"
                problems.append(Problem(number, key, found, field.expected))
                continue
            try:
                values[key] = field.parse(entry[key])
            except WrongValueError as wrong:
                problems.append(Problem(number, key, str(wrong), field.expected))
        if len(values) == len(needed):
            captions = sum((values[key] for key in keys), ())
            more = tuple(values[key] for key in layout.further if key in values)
            languages = tuple(layout.language_of(key) for key in keys for _ in values[key]) if len(keys) > 1 else ()
            yield Annotation(number, values["id"], values["split"], values[layout.path_key], captions, more, languages)


def _names(keys: Iterable[str]) -> str:
    """Returns the first `KEYS_SHOWN` keys as text."""
    first = list(islice(keys, KEYS_SHOWN + 1))
    return ", ".join([*map(short, first[:KEYS_SHOWN]), *(["..."] if len(first) > KEYS_SHOWN else [])])


def _merge(annotations: Iterable[Annotation], problems: list[Problem]) -> list[Annotation]:
    """Returns one annotation per image, in file order; new captions of later records are appended.

    It adds a problem if records of one image have different identities or splits.
    """
    images: dict[str, Annotation] = {}
    several: dict[str, list[Annotation]] = {}  # the records of images that have more than one
    for annotation in annotations:
        first = images.setdefault(annotation.path, annotation)
        if first is annotation:
            continue
        for key, here, there in (("id", annotation.pid, first.pid), ("split", annotation.split, first.split)):
            if here != there:
                found = f"{here!r} for the image {short(annotation.path)}"
                expected = f"{there!r} as in record {first.number}, which names the same image"
                problems.append(Problem(annotation.number, key, found, expected))
        if (first.pid, first.split) == (annotation.pid, annotation.split):
            several.setdefault(annotation.path, [first]).append(annotation)
    return [_joined(several[path]) if path in several else image for path, image in images.items()]


def _joined(annotations: list[Annotation]) -> Annotation:
    """Returns the first annotation of an image with the new captions of the later ones."""
    first, *later = annotations
    captions, languages, known = list(first.captions), list(first.languages), set(first.captions)
    for annotation in later:
        new = [place for place, caption in enumerate(annotation.captions) if caption not in known]
        captions += [annotation.captions[place] for place in new]
        languages += [annotation.languages[place] for place in new if annotation.languages]
        known.update(annotation.captions)
    columns = zip(*(annotation.further for annotation in annotations), strict=True)
    further = tuple(tuple(dict.fromkeys(chain.from_iterable(column))) for column in columns)
    return first._replace(captions=tuple(captions), further=further, languages=tuple(languages))


def _restarts(images: list[Annotation]) -> bool:
    """Returns whether each split numbers its identities 0, 1, 2, ... without gaps."""
    ids = {split: {image.pid for image in images if image.split == split} for split in SPLITS}
    return all(numbers == set(range(len(numbers))) for numbers in ids.values())


def _check_leaks(images: list[Annotation], problems: list[Problem]) -> None:
    """Adds one problem for every identity that is in more than one split."""
    first: dict[int, Annotation] = {}
    leaked: set[int] = set()
    for image in images:
        seen = first.setdefault(image.pid, image)
        if seen.split != image.split and image.pid not in leaked:
            leaked.add(image.pid)
            found = f"identity {image.pid} is in split {image.split!r}"
            expected = f"{seen.split!r} as in record {seen.number}: an identity belongs to one split"
            problems.append(Problem(image.number, "id", found, expected))
