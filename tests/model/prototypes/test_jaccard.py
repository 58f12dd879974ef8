"""k-reciprocal Jaccard distance against a dense textbook implementation in fp64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, isspmatrix_csr
from torch import Tensor

from model.prototypes import jaccard, k_reciprocal_jaccard
from model.prototypes.neighbors import nearest_neighbors, pair_cosines, unit_features
from utils.errors import UserError

N, D = 500, 32


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def random(count: int = N) -> Tensor:
    return drawn(1, count, D)


def clustered(count: int = N) -> Tensor:
    centers = drawn(2, max(count // 6, 1), D)
    return centers[torch.arange(count) % len(centers)] + 0.4 * drawn(3, count, D)


def duplicated(count: int = N) -> Tensor:
    """Twelve copies of each of some, more than k1 copies of a few, and single ones."""
    single = clustered(count)
    single[: count // 2] = single[torch.arange(count // 2) // 12]
    single[count // 2 : 3 * count // 4] = single[torch.arange(count // 4) // 42 + count // 2]
    return single[torch.randperm(count, generator=torch.Generator().manual_seed(4))]


FEATURES: dict[str, Callable[[], Tensor]] = {"random": random, "clustered": clustered, "duplicated": duplicated}


def textbook(features: Tensor, k1: int, k2: int) -> NDArray[np.float64]:
    """J, dense and loop by loop; distances are rounded so that duplicates tie."""
    unit = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    d = np.round(2 - 2 * unit @ unit.T, 10)
    count = len(d)
    rank = []
    for i in range(count):
        others = sorted((j for j in range(count) if j != i), key=lambda j: (d[i, j], j))
        rank.append([i, *others])

    def near(i: int, k: int) -> set[int]:
        return set(rank[i][: k + 1])

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in near(i, k) if i in near(j, k)}

    v = np.zeros((count, count))
    for i in range(count):
        core = mutual(i, k1)
        joined = set(core)
        for c in core:
            candidate = mutual(c, round(k1 / 2))
            if len(candidate & core) > 2 / 3 * len(candidate):
                joined |= candidate
        for j in joined:
            v[i, j] = np.exp(-max(d[i, j], 0))
        v[i] /= v[i].sum()
    v = np.stack([v[rank[i][:k2]].mean(axis=0) for i in range(count)])
    s = np.stack([np.minimum(v[i], v).sum(axis=1) for i in range(count)])
    return 1 - s / (2 - s)


def dense(distances: csr_matrix) -> NDArray[np.float64]:
    """Absent is 1, a stored 0 is 0."""
    full = np.ones(distances.shape)
    rows = np.repeat(np.arange(distances.shape[0]), np.diff(distances.indptr))
    full[rows, distances.indices] = distances.data
    return full


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 1), (3, 9)])
@pytest.mark.parametrize("kind", FEATURES)
def test_equals_the_textbook(kind: str, k1: int, k2: int) -> None:
    features = FEATURES[kind]()
    np.testing.assert_allclose(
        dense(k_reciprocal_jaccard(features, k1, k2)), textbook(features, k1, k2), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("count", [1, 2, 5, 21])
@pytest.mark.parametrize("make", [random, duplicated], ids=["random", "duplicated"])
def test_fewer_samples_than_neighbours(make: Callable[[int], Tensor], count: int) -> None:
    features = make(count)
    np.testing.assert_allclose(
        dense(k_reciprocal_jaccard(features, 20, 6)), textbook(features, 20, 6), atol=1e-6, rtol=0
    )


def test_nothing_but_duplicates() -> None:
    features = torch.ones(60, D)
    np.testing.assert_allclose(
        dense(k_reciprocal_jaccard(features, 20, 6)), textbook(features, 20, 6), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("kind", FEATURES)
def test_is_symmetric_sorted_and_stores_distances_below_one_with_zeros_on_the_diagonal(kind: str) -> None:
    distances = k_reciprocal_jaccard(FEATURES[kind](), 20, 6)
    assert isspmatrix_csr(distances)
    assert distances.dtype == np.float32
    assert distances.has_sorted_indices
    full = dense(distances)
    assert np.array_equal(full, full.T)
    assert np.array_equal(full.diagonal(), np.zeros(N))
    assert distances.data.min() == 0
    assert distances.data.max() < 1
    rows = np.repeat(np.arange(N), np.diff(distances.indptr))
    assert (rows == distances.indices).sum() == N  # the zeros of the diagonal are stored


@pytest.mark.parametrize("kind", FEATURES)
def test_a_radius_leaves_out_what_is_farther_and_nothing_else(kind: str) -> None:
    features = FEATURES[kind]()
    full, near = dense(k_reciprocal_jaccard(features)), dense(k_reciprocal_jaccard(features, radius=0.5))
    assert np.array_equal(near, np.where(full <= np.float32(0.5), full, 1))
    assert (near < 1).sum() < (full < 1).sum()


@pytest.mark.parametrize("candidates", [1, 999])
def test_blocks_leave_no_trace(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = duplicated()
    whole = k_reciprocal_jaccard(features)
    monkeypatch.setattr(jaccard, "CANDIDATES", candidates)
    blocked = k_reciprocal_jaccard(features)
    for part in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(blocked, part), getattr(whole, part))


def test_neither_scale_nor_precision_of_the_features_matters() -> None:
    features = unit_features(clustered())
    expected = dense(k_reciprocal_jaccard(features))
    for scaled in (8 * features, features.double()):
        np.testing.assert_allclose(dense(k_reciprocal_jaccard(scaled)), expected, atol=1e-6)


def test_neighbours_are_the_nearest_and_ties_go_to_the_lower_index() -> None:
    features = unit_features(torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [1, 1], [1, 0]]))
    expected = [[0, 2, 3], [1, 4, 0], [2, 0, 3], [3, 0, 2], [4, 0, 1], [5, 0, 2]]
    expected[4] = [4, *sorted(range(6), key=lambda j: (j == 4, -float(features[4] @ features[j]), j))[:2]]
    assert nearest_neighbors(features, 2).tolist() == expected
    assert nearest_neighbors(features, 100).shape == (6, 6)


def test_neighbours_of_duplicates_in_many_blocks() -> None:
    features = unit_features(drawn(5, 7, D))[torch.arange(400) % 7]
    nearest = nearest_neighbors(features, 20)
    for i in (0, 130, 399):
        twins = [j for j in range(i % 7, 400, 7) if j != i]
        assert nearest[i].tolist() == [i, *twins[:20]]


def test_pair_cosines_are_the_same_in_either_order() -> None:
    features = unit_features(random())
    rows, columns = torch.randint(N, (2, 5000), generator=torch.Generator().manual_seed(6))
    cosines = pair_cosines(features, rows, columns)
    assert torch.equal(cosines, pair_cosines(features, columns, rows))
    torch.testing.assert_close(cosines, (features @ features.T)[rows, columns])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(0, D), "no features to cluster"),
        (torch.zeros(4), "of shape"),
        (torch.zeros(4, D, dtype=torch.int64), "must be floating point"),
        (torch.tensor([[1.0], [torch.nan]]), "feature 1 is not finite"),
    ],
)
def test_unusable_features_are_refused(features: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        k_reciprocal_jaccard(features)


@pytest.mark.parametrize("name", ["k1", "k2"])
def test_neighbours_are_counted_from_one(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: 0 given"):
        k_reciprocal_jaccard(random(10), **{name: 0})


def test_collapsed_features_stop_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaccard, "MAX_STORED", 3000)
    with pytest.raises(UserError, match="have collapsed into one another"):
        k_reciprocal_jaccard(torch.ones(60, D))
