"""The page of a tested run: its results, curves, queries, pictures, and how it was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.checkpoints.disk import write_whole
from utils.report.page.curves import read_charts
from utils.report.page.queries import query_table
from utils.report.page.render import PAGE_FILE, picture_uri, render
from utils.report.tested import Tested


def write_run_page(
    folder: Path,
    tested: Tested,
    provenance: Mapping[str, Any],
    pictures: Sequence[Path],
) -> Path:
    """Writes `PAGE_FILE` into the run's `folder` and returns its path.

    Args:
        provenance: the run's record.
        pictures: files of the pictures that the page shows.
    """
    config = folder / "config.yaml"
    found = tested.pairs
    page = render(
        "run.html",
        title=tested.name,
        run=tested.run,
        table=tested.rankings,
        changed=_changed(tested),
        facts=flat({**provenance, **({} if tested.efficiency is None else {"cost": tested.efficiency})}),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        pictures={path.stem: picture_uri(path) for path in pictures},
        data={
            "charts": [chart._asdict() for chart in read_charts(folder)],
            "similarities": {
                "edges": _rounded(found.edges.tolist()),
                "same": _rounded(found.same.tolist()),
                "other": _rounded(found.other.tolist()),
            },
            "queries": query_table(tested.retrieval, tested.ranks["t2i"]),
        },
    )
    write_whole(folder / PAGE_FILE, page.encode(errors="replace").decode())
    return folder / PAGE_FILE


def _changed(tested: Tested) -> list[list[Any]]:
    """Returns [change, level, direction -> metrics] of the changed tests, the plain one first."""
    if not tested.changed:
        return []
    rows = [("none", "", tested.metrics), *((found.change, found.level, found.metrics) for found in tested.changed)]
    return [[change, level, {d: own.values for d, own in metrics.items()}] for change, level, metrics in rows]


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns the values of a nested record under names such as ``data, splits, train``, without those of None."""
    found: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            found |= flat(value, f"{prefix}{name}, ")
        elif isinstance(value, Mapping):
            found[f"{prefix}{name}"] = ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
        elif value is not None:
            found[f"{prefix}{name}"] = str(value)
    return found


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
