"""The matrices of methods that were tested on other datasets than their own."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from utils.report.comparison.groups import Group, columns
from utils.report.comparison.records import SHARES

SHARED_NOTE: Final = f"{SHARES.strip()} training and test have images of the same collection"


class Matrix(NamedTuple):
    """The R@1 of text to image of one method.

    header: the method, then the datasets of the tests.
    rows: the dataset and the variant of a training, then a cell for each test; "" if there is none.
    """

    header: list[str]
    rows: list[list[str]]


def cross_domain(groups: Sequence[Group]) -> list[Matrix]:
    """Returns a matrix for each method, none if all groups were tested on their own dataset.

    `SHARES` marks a test whose images come from a collection of the training. Rows that the table keeps apart share a
    cell, with a slash between them.
    """
    if not any(group.info["trained_on"] for group in groups):
        return []
    names = [name for name in columns(groups) if name not in ("dataset", "variant", "trained_on")]
    cells: dict[str, dict[str, dict[str, list[str]]]] = {}
    for group in groups:
        method = " ".join(group.info[name] for name in names)
        source = group.info["trained_on"].removesuffix(SHARES) or group.info["dataset"]
        source = " ".join([source, *_without_dataset(group.info["variant"])])
        mark = SHARES if is_shared(group) else ""
        row = cells.setdefault(method, {}).setdefault(source, {})
        row.setdefault(group.info["dataset"], []).append(f"{group.spreads['t2i'].get('R1', '-')}{mark}")
    tested = sorted({group.info["dataset"] for group in groups})
    return [
        Matrix(
            [f"{method}, t2i R1: trained on", *tested],
            [[source, *(" / ".join(row.get(name, [])) for name in tested)] for source, row in sorted(rows.items())],
        )
        for method, rows in cells.items()
    ]


def is_shared(group: Group) -> bool:
    """Returns whether the training and the test on another dataset share a collection of images."""
    return group.info["trained_on"].endswith(SHARES)


def _without_dataset(variant: str) -> list[str]:
    return [part for part in variant.split() if not part.startswith(("dataset=", "dataset."))]
