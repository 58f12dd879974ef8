"""Comparison of finished runs over seeds, from their metrics.json and ranks.npz files."""

from collections.abc import Iterable
from pathlib import Path

from utils.report.comparison.differences import with_differences
from utils.report.comparison.groups import group_runs
from utils.report.comparison.records import METRICS_FILE, find_metrics, read_runs
from utils.report.comparison.tables import CHOSEN_ON_TEST, FORMATS, Comparison, as_csv

__all__ = [
    "CHOSEN_ON_TEST",
    "FORMATS",
    "METRICS_FILE",
    "Comparison",
    "as_csv",
    "compare_runs",
    "find_metrics",
    "with_differences",
]


def compare_runs(files: Iterable[str | Path], *, mixed: bool = False) -> Comparison:
    """Returns the comparison of the runs with these metrics.json files; its `str()` is the table.

    Args:
        mixed: whether to average runs with different code, data or options; else they form separate groups.

    Raises:
        UserError: if there is no file, or one is not a metrics.json.
    """
    runs = read_runs(files)
    groups = group_runs(runs, mixed=mixed)
    return Comparison(groups, older=len(runs) - sum(len(group.runs) for group in groups))
