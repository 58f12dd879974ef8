"""The paired comparison of two rankings of the same queries."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.errors import UserError, check_choice
from utils.ranking.metrics import STANDARD
from utils.ranking.positives import Ranks

DRAWS: Final = 10_000
LEVEL: Final = 0.95
SIGNIFICANT: Final = 0.05  # p-values below show a difference
_BLOCK: Final = 2**22  # random numbers drawn at a time


class PairedTest(NamedTuple):
    """The difference of a metric between two rankings a and b, in percentage points.

    difference: b - a.
    low, high: its 95 % interval, by resampling identities.
    p_value: two-sided, by flipping the sign of each identity's summed difference.
    """

    difference: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        p = f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}], {p}"


def paired_test(
    ranks_a: Sequence[ArrayLike],
    ranks_b: Sequence[ArrayLike],
    pids: ArrayLike,
    metric: str = "R1",
    seed: int = 0,
) -> PairedTest:
    """Returns the difference of a metric between two rankings, a and b, of the same queries.

    Args:
        ranks_a, ranks_b: the sorted ranks of the positives of each of Q queries, as `positive_ranks` returns them.
        pids: identities of the queries. Shape: ``(Q,)``.
        metric: a name in `STANDARD`: R1, R5, R10, mAP or mINP.
        seed: seed of the random flips and draws.

    Raises:
        UserError: if the queries are not the same, one has no positive, or there is no such metric.

    >>> paired_test([[2], [3], [1]], [[1], [1], [1]], [7, 8, 9]).difference
    66.66...
    """
    check_choice("metric", metric, tuple(STANDARD))
    a, b = (_values(name, ranks, metric) for name, ranks in (("ranks_a", ranks_a), ("ranks_b", ranks_b)))
    return values_test(a, b, np.asarray(pids), seed)


def values_test(a: NDArray[Any], b: NDArray[Any], pids: NDArray[Any], seed: int = 0) -> PairedTest:
    """Returns the paired test of a metric's values for the same queries, such as its means over seeds.

    The captions of a person are not independent, so the test flips and draws identities, not queries. It tries all
    flips if there are at most `DRAWS`, else `DRAWS` random ones.

    Args:
        a, b: the metric of each query, in percentage points. Shape: ``(Q,)``.
        pids: identities of the queries. Shape: ``(Q,)``.
        seed: seed of the random flips and draws.

    Raises:
        UserError: if the numbers of queries differ or are 0.
    """
    if not len(a) == len(b) == len(pids) or not len(pids):
        raise UserError(
            f"{len(a)} queries in a, {len(b)} in b, {len(pids)} identities; expected the same number of each, above 0"
        )
    _, own = np.unique(pids, return_inverse=True)
    sums, counts = np.bincount(own, weights=b - a), np.bincount(own)
    rng = np.random.default_rng(seed)
    low, high = np.quantile(_resampled(sums, counts, rng), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return PairedTest(float(sums.sum() / counts.sum()), float(low), float(high), _p_value(sums, rng))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values of several tests, corrected for their number (Holm, 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Returns the tests with their p-values corrected for the number of tests, in the order given; see `holm`."""
    p_values = holm([test.p_value for test in tests])
    return [test._replace(p_value=p) for test, p in zip(tests, p_values, strict=True)]


def _values(name: str, ranks: Sequence[ArrayLike], metric: str) -> NDArray[Any]:
    """Returns the metric of each query in points. Shape: ``(Q,)``."""
    found = Ranks.of([np.asarray(own) for own in ranks])
    if (found.counts == 0).any():
        raise UserError(f"{name}: query {int((found.counts == 0).argmax())} has no positive; leave it out of both")
    return 100 * np.asarray(STANDARD[metric](found), dtype=np.float64)


def _p_value(sums: NDArray[Any], rng: np.random.Generator) -> float:
    """Returns the share of sign flips of `sums` ``(n,)`` with a total at least as far from 0 as the unflipped total."""
    total = abs(sums.sum())
    least = total - 1e-9 * max(1.0, total)
    if 2 ** len(sums) <= DRAWS:
        flips = np.array(list(product((-1, 1), repeat=len(sums))))
        return float((abs(flips @ sums) >= least).mean())
    extreme = sum(
        int((abs((1 - 2 * rng.integers(0, 2, (rows, len(sums)), dtype=np.int8)) @ sums) >= least).sum())
        for rows in _blocks(len(sums))
    )
    return (extreme + 1) / (DRAWS + 1)  # + 1: the unflipped sums


def _resampled(sums: NDArray[Any], counts: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Returns the mean differences ``(DRAWS,)`` of n identities drawn with replacement from the n identities."""
    means = []
    for rows in _blocks(len(sums)):
        drawn = rng.integers(0, len(sums), (rows, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def _blocks(width: int) -> Iterator[int]:
    """Yields numbers of rows that add up to `DRAWS`, each small enough for one block."""
    rows = max(1, _BLOCK // width)
    for start in range(0, DRAWS, rows):
        yield min(rows, DRAWS - start)
