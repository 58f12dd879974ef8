"""The page of a comparison: its table, differences to the baseline, and the captions on which rows differ."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import escape

from utils.errors import UserError
from utils.ranking.metrics import DIRECTIONS
from utils.ranking.positives import RANKS_FILE, load_captions, load_ranks
from utils.ranking.significance import PairedTest
from utils.report.comparison.differences import row_names
from utils.report.comparison.groups import Group, columns
from utils.report.comparison.tables import Comparison
from utils.report.page.render import PAGE_FILE, render


def comparison_page(comparison: Comparison, folder: Path | None = None) -> str:
    """Returns the page; its links to the pages of runs are relative to `folder`, the present one if None."""
    names = [group.strategy for group in comparison.groups]
    if len({*names}) < len(names):
        names = row_names(comparison.groups)
    if len({*names}) < len(names):
        names = [f"{name}, {group.info['dataset']}" for name, group in zip(names, comparison.groups, strict=True)]
    return render(
        "comparison.html",
        title=comparison.title(),
        header=comparison.header(),
        words=len(columns(comparison.groups)),
        blocks=comparison.blocks(lambda text: str(escape(text)), "<b>{}</b>"),
        notes=comparison.notes(),
        matrices=comparison.cross_domain(),
        baseline=comparison.baseline,
        metric=comparison.metric,
        runs=[
            (name, run.seed, _link(run.file.parent, folder or Path()), dict(group.sources))
            for name, group in zip(names, comparison.groups, strict=True)
            for run in group.runs
        ],
        data={
            "differences": _differences(comparison, names),
            "contrasts": _contrasts(comparison.groups, names),
        },
    )


def _link(run: Path, folder: Path) -> str | None:
    """Returns the address of a run's page, None if it has none."""
    page = run / PAGE_FILE
    return Path(os.path.relpath(page, folder)).as_posix() if page.exists() else None


def _differences(comparison: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the tested differences of all rows, direction by direction."""
    return [
        {"name": name, "direction": direction, **test._asdict()}
        for direction in DIRECTIONS
        for name, group in zip(names, comparison.groups, strict=True)
        if isinstance(test := group.differences.get(direction), PairedTest)
    ]


def _contrasts(groups: Sequence[Group], names: Sequence[str]) -> dict[str, Any]:
    """Returns the captions of the first row, and the mean rank of their first right image in each row that has them.

    Rows that ranked other captions, and rows of runs that have no captions or no ranks, are left out.
    """
    captions: list[str] = []
    rows: dict[str, list[float]] = {}
    for name, group in zip(names, groups, strict=True):
        try:
            found = [_first_ranks(run.file.with_name(RANKS_FILE)) for run in group.runs]
        except UserError:
            continue
        captions = captions or found[0][0]  # of the first row that has some
        if captions and all(own == captions for own, _ in found):
            rows[name] = [round(float(rank), 1) for rank in np.mean([ranks for _, ranks in found], axis=0)]
    return {"captions": captions, "rows": rows if len(rows) > 1 else {}}


def _first_ranks(file: Path) -> tuple[list[str], Any]:
    """Returns the captions that have a right image, and the rank of the first one ``(Q,)``.

    Raises:
        UserError: if there is no such file, or it is damaged.
    """
    directions = load_ranks(file)
    if "t2i" not in directions:
        return [], []
    ranks, _ = directions["t2i"]
    captions = load_captions(file)
    if len(captions) != len(ranks.counts):
        return [], ranks.matched().first
    return [captions[query] for query in np.flatnonzero(ranks.counts)], ranks.matched().first
