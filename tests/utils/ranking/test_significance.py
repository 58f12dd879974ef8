"""The paired test against slow loops, on small cases and on simulated runs."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from utils.errors import UserError
from utils.ranking import paired_test
from utils.ranking.significance import holm, values_test


def p_by_hand(sums: NDArray[np.float64]) -> float:
    """The share of all sign flips that are at least as extreme."""
    totals = [
        abs(sum(sign * one for sign, one in zip(signs, sums, strict=True)))
        for signs in product((-1, 1), repeat=len(sums))
    ]
    return float(np.mean([total >= abs(sums.sum()) - 1e-9 for total in totals]))


@pytest.mark.parametrize("persons", [1, 3, 8, 13])
def test_few_identities_are_flipped_in_all_ways(persons: int) -> None:
    rng = np.random.default_rng(persons)
    a, b = rng.random(3 * persons), rng.random(3 * persons) + 0.1
    pids = np.repeat(np.arange(persons), 3)
    found = values_test(a, b, pids)
    assert found.p_value == p_by_hand((b - a).reshape(persons, 3).sum(axis=1))
    assert found.difference == pytest.approx((b - a).mean())


def test_random_flips_come_close_to_all_of_them() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.15, 0.3):
        a = rng.random(16)
        b = a + rng.normal(shift, 0.5, 16)
        assert values_test(a, b, np.arange(16)).p_value == pytest.approx(p_by_hand(b - a), abs=0.02)


def test_it_is_the_same_in_whatever_order_queries_come() -> None:
    rng = np.random.default_rng(0)
    a, b, pids = rng.random(60), rng.random(60), rng.integers(0, 20, 60)
    order = rng.permutation(60)
    assert values_test(a, b, pids) == pytest.approx(values_test(a[order], b[order], pids[order]))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Identities with several captions, whose differences go together: 95 % within 3 points."""
    rng = np.random.default_rng(1)
    inside, runs, persons = 0, 400, 60
    for _ in range(runs):
        pids = np.repeat(np.arange(persons), rng.integers(1, 6, persons))
        of_person = rng.normal(0, 1, persons)
        difference = 0.3 + of_person[pids] + rng.normal(0, 1, len(pids))
        found = values_test(np.zeros(len(pids)), difference, pids, seed=int(rng.integers(1000)))
        inside += found.low <= 0.3 <= found.high
    assert inside / runs == pytest.approx(0.95, abs=0.03)


def test_captions_of_one_person_are_no_evidence_of_their_own() -> None:
    better = values_test(np.zeros(50), np.ones(50), np.repeat(np.arange(5), 10))
    assert better.p_value == 2 / 32
    assert (better.difference, better.low, better.high) == (1, 1, 1)


def test_ranks_give_the_metric_in_points() -> None:
    a, b, pids = [[2, 5], [1], [4]], [[1, 5], [1], [2]], [1, 1, 2]
    assert paired_test(a, b, pids).difference == pytest.approx(100 / 3)
    assert paired_test(a, b, pids, "mAP").difference == pytest.approx(
        100 * ((1 + 2 / 5 - 1 / 2 - 2 / 5) / 2 + 1 / 4) / 3
    )
    assert paired_test(a, a, pids) == (0, 0, 0, 1)
    assert str(paired_test(a, a, pids)) == "+0.00 [+0.00, +0.00], p = 1.000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([[1]], [[1], [2]], [1]), "1 queries in a, 2 in b, 1 identities"),
        (([[1], []], [[1], [2]], [1, 2]), "ranks_a: query 1 has no positive"),
        (([[1]], [[1]], [1], "R2"), "metric"),
        (([], [], []), "0 queries"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments: tuple, said: str) -> None:
    with pytest.raises(UserError, match=said):
        paired_test(*arguments)


def test_holm_corrects_for_the_number_of_tests() -> None:
    """Holm (1979): p in ascending order times m, m - 1, ..., 1, never falling, at most 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
