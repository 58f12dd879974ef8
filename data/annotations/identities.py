"""The images of an annotation file and their identities: numbers, names or none; splits are cut between identities."""

from collections.abc import Iterable, Mapping
from itertools import chain
from random import Random
from typing import Final, NamedTuple

from data.annotations.entries import Annotation, Problem
from data.annotations.layouts import SPLITS, Layout
from data.annotations.values import kind_of, short

TEST_SHARE: Final = 0.1
TEST_LIMIT: Final = 1_000
NO_IDENTITIES: Final = "no identities: each image counts as a person"


class Numbered(NamedTuple):
    """The numbers of identities: identity in the file -> number, and number -> name, if they are names.

    others: the identities that have another type than the first one. They have no number.
    """

    numbers: Mapping[int | str, int]
    names: Mapping[int, str]
    others: frozenset[int | str]


def numbered(identities: Iterable[int | str], *, is_text: bool) -> Numbered:
    """Returns the numbers of identities: numbers keep their own, names are numbered in sorted order.

    Args:
        identities: the identities of all records, in file order.
        is_text: whether numbers were written as text. Then they are names if any other identity is one.
    """
    distinct = list(dict.fromkeys(identities))
    if is_text and any(isinstance(identity, str) for identity in distinct):
        are_names, others = True, frozenset[int | str]()
    else:
        kind = type(distinct[0]) if distinct else int
        are_names = kind is str
        others = frozenset(identity for identity in distinct if type(identity) is not kind)
    if not are_names:
        return Numbered({number: number for number in distinct if isinstance(number, int)}, {}, others)
    names = dict(enumerate(sorted(str(identity) for identity in distinct if identity not in others)))
    number_of = {name: number for number, name in names.items()}
    return Numbered(
        {identity: number_of[str(identity)] for identity in distinct if identity not in others}, names, others
    )


def shown(pid: int, names: Mapping[int, str]) -> str:
    """Returns an identity for a message: its name in quotes, or its number."""
    return short(names[pid]) if names else str(pid)


def shuffled(identities: set[int], purpose: str, seed: int) -> list[int]:
    """Returns the identities in an order that depends only on the identities, the purpose and the seed."""
    order = sorted(identities)
    Random(f"{purpose} {seed}").shuffle(order)
    return order


def cut_for_test(identities: set[int], seed: int) -> set[int]:
    """Returns the identities of the test split: a tenth by `seed`, at least one, at most `TEST_LIMIT`."""
    count = max(1, min(TEST_LIMIT, round(TEST_SHARE * len(identities))))
    return set(shuffled(identities, "test", seed)[:count])


def identified(
    annotations: list[Annotation], layout: Layout, problems: list[Problem], *, is_text: bool
) -> tuple[list[Annotation], Mapping[int, str]]:
    """Returns the annotations with numbers as identities, and number -> name; those without a number are problems."""
    if layout.id_key is None:
        places: dict[str, int] = {}
        return [one._replace(pid=places.setdefault(one.path, len(places))) for one in annotations], {}
    found = numbered((annotation.pid for annotation in annotations), is_text=is_text)
    if not found.names and not found.others:
        return annotations, {}
    identified = []
    for annotation in annotations:
        if annotation.pid in found.others:
            first = "a name" if found.names else "a number"
            wrong = f"{kind_of(annotation.pid)} {short(annotation.pid)}"
            expected = f"{first} as in record {annotations[0].number}: identities are numbers or names, not both"
            problems.append(Problem(annotation.number, layout.id_key, wrong, expected))
        else:
            identified.append(annotation._replace(pid=found.numbers[annotation.pid]))
    return identified, found.names


def merge(
    annotations: Iterable[Annotation], problems: list[Problem], layout: Layout, names: Mapping[int, str]
) -> list[Annotation]:
    """Returns one annotation per image, in file order; new captions of later records are appended.

    It adds a problem if records of one image have different identities or splits.
    """
    images: dict[str, Annotation] = {}
    several: dict[str, list[Annotation]] = {}  # the records of images that have more than one
    for annotation in annotations:
        first = images.setdefault(annotation.path, annotation)
        if first is annotation:
            continue
        for key, here, there in (
            (layout.id_key, shown(annotation.pid, names), shown(first.pid, names)),
            (layout.split_key, repr(annotation.split), repr(first.split)),
        ):
            if key is not None and here != there:
                found = f"{here} for the image {short(annotation.path)}"
                expected = f"{there} as in record {first.number}, which names the same image"
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


def restarts(images: list[Annotation]) -> bool:
    """Returns whether each split numbers its identities 0, 1, 2, ... without gaps."""
    ids = {split: {image.pid for image in images if image.split == split} for split in SPLITS}
    return all(numbers == set(range(len(numbers))) for numbers in ids.values())


def check_leaks(images: list[Annotation], problems: list[Problem], key: str, names: Mapping[int, str]) -> None:
    """Adds one problem for every identity that is in more than one split."""
    first: dict[int, Annotation] = {}
    leaked: set[int] = set()
    for image in images:
        seen = first.setdefault(image.pid, image)
        if seen.split != image.split and image.pid not in leaked:
            leaked.add(image.pid)
            found = f"identity {shown(image.pid, names)} is in split {image.split!r}"
            expected = f"{seen.split!r} as in record {seen.number}: an identity belongs to one split"
            problems.append(Problem(image.number, key, found, expected))
