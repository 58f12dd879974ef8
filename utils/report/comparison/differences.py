"""The difference of each row of a comparison to a baseline, tested on the same queries."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError, check_choice, nearest
from utils.ranking.metrics import DIRECTIONS, STANDARD, Metric, recall
from utils.ranking.positives import RANKS_FILE, load_ranks
from utils.ranking.significance import LEVEL, SIGNIFICANT, PairedTest, corrected, values_test
from utils.report.comparison.groups import QUERIES, Group, columns
from utils.report.comparison.records import SOURCES, Run
from utils.report.comparison.tables import Comparison

NATURAL: Final = ("baseline", "itc")  # the first one that is a row is the baseline, if none is chosen
BASELINE: Final = "baseline"  # in the baseline's own row
TOLERANCE: Final = 1e-6  # between a recorded metric and the same metric from the ranks, in points


class Measured(NamedTuple):
    """A metric of Q queries, in points ``(Q,)``, their identities and their numbers of positives, each ``(Q,)``."""

    values: NDArray[Any]
    pids: NDArray[Any]
    counts: NDArray[Any]


def with_differences(comparison: Comparison, baseline: str | None = None, metric: str = "R1") -> Comparison:
    """Returns the comparison with the difference of each group to the baseline that has the same queries.

    Args:
        baseline: a strategy, with what else tells its row from others (backbone, LoRA, variant); None: the first of
            `NATURAL` that is a row, and no difference if none is.
        metric: the metric that is tested.

    Raises:
        UserError: if the chosen baseline is no row or several, or the metric cannot be tested.
    """
    strategies = [group.info["strategy"] for group in comparison.groups]
    name, asked = baseline or next(filter(strategies.__contains__, NATURAL), ""), baseline or metric != "R1"
    try:
        if not name:
            raise UserError(f"--metric {metric} is tested against a row: name it with --baseline")
        check_choice("--metric", metric, tuple(comparison.metrics))
        _function(metric)
        baselines = _baselines(comparison.groups, name)
    except UserError as error:
        if asked:
            raise
        return replace(comparison, note=f"no differences to a baseline: {error}" if name else "")
    if not baseline and len(baselines) == len(comparison.groups):
        return comparison
    groups, number = _tested(comparison.groups, baselines, metric)
    chosen = "" if baseline else " (the default; --baseline names another)"
    note = (
        f"Δ {metric}: paired difference to {name}{chosen} in points, of each query's means over seeds, with its"
        f" {100 * LEVEL:.0f} % interval over identities; p is corrected for the number of tests, {number} (Holm);"
        f" † p < {SIGNIFICANT}"
    )
    return replace(comparison, groups=groups, baseline=name, metric=metric, note=note)


def measure_queries(file: str | Path, metric: str) -> dict[str, Measured]:
    """Returns for each direction in a run's `RANKS_FILE` the metric of the queries that have a positive, in points.

    Raises:
        UserError: if the file is damaged.
    """
    measured = {}
    for direction, (ranks, pids) in load_ranks(file).items():
        found = ranks.matched()
        values = 100 * np.asarray(_function(metric)(found), dtype=np.float64)
        measured[direction] = Measured(values, pids[ranks.counts > 0], found.counts)
    return measured


def mean_over_seeds(runs: Sequence[Measured]) -> Measured:
    """Returns the mean metric of each query over runs.

    Raises:
        UserError: if the runs' queries differ.
    """
    if not all(_same_queries(runs[0], run) for run in runs):
        raise UserError("other queries")
    return runs[0]._replace(values=np.mean([run.values for run in runs], axis=0))


def compare_means(baseline: Measured, other: Measured) -> PairedTest:
    """Returns the test of `other` - `baseline`.

    Raises:
        UserError: if the queries differ.
    """
    if not _same_queries(baseline, other):
        raise UserError("other queries")
    return values_test(baseline.values, other.values, other.pids)


def _same_queries(a: Measured, b: Measured) -> bool:
    return np.array_equal(a.pids, b.pids) and np.array_equal(a.counts, b.counts)


def _function(metric: str) -> Metric:
    """Returns the metric that runs record under this name.

    Raises:
        UserError: if it is none of `STANDARD` and no other R@k.
    """
    if metric not in STANDARD and not re.fullmatch(r"R[1-9]\d{0,8}", metric):
        raise UserError(f"--metric {metric} cannot be tested: name R and a number, or {' or '.join(STANDARD)}")
    return STANDARD.get(metric) or partial(recall, k=int(metric[1:]))


def _baselines(groups: Sequence[Group], wanted: str) -> list[Group]:
    """Returns the groups that `wanted` names, each with other queries.

    Raises:
        UserError: if there are none, or several with the same queries.
    """
    names = row_names(groups)
    strategies = [group.info["strategy"] for group in groups]
    found = [row for row, name in enumerate(names) if name == wanted]
    found = found or [row for row, strategy in enumerate(strategies) if strategy == wanted]
    if not found:
        hint = nearest(wanted, {*names, *strategies})
        raise UserError(f"--baseline {wanted!r} is no row of the table; expected {_quoted(names)}.{hint}")
    for row in found:
        same = [names[other] for other in found if groups[other].queries == groups[row].queries]
        if len(same) > 1:
            raise UserError(f"--baseline {wanted!r} is the name of several rows; expected {_quoted(same)}")
    return [groups[row] for row in found]


def row_names(groups: Sequence[Group]) -> list[str]:
    """Returns for each row its strategy, and what else tells it from others, but for the dataset."""
    shown = [name for name in columns(groups) if name not in ("strategy", "dataset")]
    return [" ".join(filter(None, [group.strategy, *(group.info[name] for name in shown)])) for group in groups]


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(map(repr, dict.fromkeys(names)))


def _tested(groups: Sequence[Group], baselines: Sequence[Group], metric: str) -> tuple[list[Group], int]:
    """Returns the groups with their differences, and the number of tests, for which the p-values are corrected."""
    found: list[dict[str, PairedTest | str]] = []
    for group in groups:
        baseline = next((b for b in baselines if b.queries == group.queries), baselines[0])
        found.append(
            {d: BASELINE if group is baseline else _difference(baseline, group, d, metric) for d in DIRECTIONS}
        )
    tests = [test for own in found for test in own.values() if isinstance(test, PairedTest)]
    left = iter(corrected(tests))
    found = [{d: next(left) if isinstance(test, PairedTest) else test for d, test in own.items()} for own in found]
    return [replace(group, differences=own) for group, own in zip(groups, found, strict=True)], len(tests)


def _difference(baseline: Group, group: Group, direction: str, metric: str) -> PairedTest | str:
    """Returns the test of a group against the baseline, or why there is none."""
    if differs := [why for name, why in QUERIES.items() if group.info[name] != baseline.info[name]]:
        return differs[0]
    annotations = {run.sources[list(SOURCES).index("data")] for run in (*baseline.runs, *group.runs)}
    if len(annotations - {""}) > 1:
        return "other annotations"
    try:
        a = mean_over_seeds([_measured(run, direction, metric, f"{BASELINE}, ") for run in baseline.runs])
        return compare_means(a, mean_over_seeds([_measured(run, direction, metric) for run in group.runs]))
    except UserError as error:
        return str(error)


def _measured(run: Run, direction: str, metric: str, whose: str = "") -> Measured:
    """Returns the metric of a run's queries.

    Raises:
        UserError: with a few words, if its ranks are absent, damaged, or not those of its metrics.json.
    """
    whose, file = f"{whose}seed {run.seed}", run.file.with_name(RANKS_FILE)
    if not file.exists():
        raise UserError(f"{whose}: no {RANKS_FILE}")
    try:
        measured = measure_queries(file, metric).get(direction)
    except UserError:
        raise UserError(f"{whose}: damaged {RANKS_FILE}") from None
    if measured is None:
        raise UserError(f"{whose}: no ranks of {direction}")
    recorded = run.metrics[direction].get(metric)
    if recorded is not None and not (len(measured.values) and abs(measured.values.mean() - recorded) <= TOLERANCE):
        raise UserError(f"{whose}: {RANKS_FILE} of another test")
    return measured
