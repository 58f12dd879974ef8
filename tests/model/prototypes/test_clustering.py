"""DBSCAN on sparse distances against the dense matrix, and K-means against scikit-learn's."""

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.cluster import DBSCAN, KMeans
from torch import Tensor
from torch.nn import functional as F

from model.prototypes import clustering, dbscan, k_reciprocal_jaccard, kmeans
from model.prototypes.clustering import cluster_means
from utils.errors import UserError


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def persons(count: int, size: int, noise: float) -> Tensor:
    """`size` samples of each of `count` persons, then a third of them once more as exact duplicates."""
    features = drawn(1, count, 32).repeat(size, 1) + noise * drawn(2, count * size, 32)
    return torch.cat([features, features[: len(features) // 3]])


def stored(full: list[list[float | None]]) -> csr_matrix:
    """The matrix with an entry, zero or not, wherever `full` holds a number."""
    rows, columns = zip(
        *((i, j) for i, row in enumerate(full) for j, x in enumerate(row) if x is not None), strict=True
    )
    data = np.array([x for row in full for x in row if x is not None], dtype=np.float32)
    return csr_matrix((data, (rows, columns)), shape=(len(full), len(full)))


def dense(distances: csr_matrix) -> np.ndarray:
    full = np.ones(distances.shape, dtype=np.float32)
    rows = np.repeat(np.arange(distances.shape[0]), np.diff(distances.indptr))
    full[rows, distances.indices] = distances.data
    return full


@pytest.mark.parametrize(("eps", "min_samples"), [(0.5, 2), (0.6, 4), (1e-6, 2), (0.9, 8)])
@pytest.mark.parametrize("noise", [0.4, 1.2])
def test_dbscan_equals_the_dense_matrix(noise: float, eps: float, min_samples: int) -> None:
    distances = k_reciprocal_jaccard(persons(60, 5, noise))
    expected = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(dense(distances)).labels_
    labels = dbscan(distances, eps, min_samples)
    assert labels.dtype == torch.int64
    assert labels.tolist() == expected.tolist()
    assert dbscan(k_reciprocal_jaccard(persons(60, 5, noise), radius=max(eps, 0.1)), eps, min_samples).equal(labels)


def test_dbscan_finds_the_persons() -> None:
    features = persons(30, 6, 0.2)
    labels = dbscan(k_reciprocal_jaccard(features), 0.5, 2)
    ids = torch.arange(30).repeat(8)
    assert labels.equal(ids)


def test_a_stored_zero_is_a_neighbour_and_an_absent_entry_is_not() -> None:
    distances = stored([[0, 0, None, None], [0, 0, None, None], [None, None, 0, 0.7], [None, None, 0.7, 0]])
    assert distances.nnz == 8
    assert dbscan(distances, 0.5, 2).tolist() == [0, 0, -1, -1]
    assert dbscan(distances, 0.8, 2).tolist() == [0, 0, 1, 1]
    assert distances.nnz == 8


def test_dbscan_on_all_outliers_and_on_one_cluster() -> None:
    lonely: list[list[float | None]] = [[0.0 if i == j else None for j in range(5)] for i in range(5)]
    assert dbscan(stored(lonely), 0.5, 2).tolist() == [-1] * 5
    assert dbscan(stored(lonely), 0.5, 1).tolist() == [0, 1, 2, 3, 4]
    assert dbscan(k_reciprocal_jaccard(torch.ones(30, 4)), 0.5, 2).tolist() == [0] * 30
    assert dbscan(k_reciprocal_jaccard(torch.ones(1, 4)), 0.5, 2).tolist() == [-1]


def test_dbscan_warns_of_nothing() -> None:
    distances = k_reciprocal_jaccard(persons(20, 5, 0.4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dbscan(distances, 0.6, 4)


@pytest.mark.parametrize(
    ("eps", "min_samples", "message"), [(1.0, 2, "eps: 1.0"), (0.0, 2, "eps: 0.0"), (0.5, 0, "min_s")]
)
def test_dbscan_refuses_numbers_out_of_range(eps: float, min_samples: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dbscan(stored([[0.0]]), eps, min_samples)


def test_collapsed_features_stop_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "MAX_NEIGHBORS", 800)
    with pytest.raises(UserError, match="have collapsed into one another"):
        dbscan(k_reciprocal_jaccard(torch.ones(30, 4)), 0.5, 2)


def test_kmeans_equals_scikit_learn_from_the_same_start() -> None:
    features = F.normalize(persons(12, 20, 0.6), dim=1)
    start = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(3))[:12]]
    labels = kmeans(features, 12, seed=3)
    reference = KMeans(12, init=start.numpy(), n_init=1, max_iter=clustering.ROUNDS, tol=0).fit_predict(
        features.numpy()
    )
    assert labels.unique().tolist() == list(range(labels.max() + 1))
    assert len(set(zip(labels.tolist(), reference.tolist(), strict=True))) == len(set(reference.tolist()))
    assert labels.equal(kmeans(features, 12, seed=3))


def test_kmeans_gives_duplicates_one_cluster_and_numbers_without_gaps() -> None:
    features = drawn(1, 3, 8).repeat(5, 1)
    labels = kmeans(features, 9, seed=0)
    assert labels.unique().tolist() == [0, 1, 2][: len(labels.unique())]
    assert labels.view(5, 3).unique(dim=0).shape == (1, 3)


def test_a_cluster_of_kmeans_that_loses_all_its_samples_keeps_its_centre() -> None:
    """Both start at one of two duplicates, and the first takes all; once its mean has moved, the second has them."""
    first, second, other = torch.randperm(3, generator=torch.Generator().manual_seed(0)).tolist()
    features = torch.empty(3, 2)
    features[[first, second]] = torch.tensor([1.0, 0.0])
    features[other] = torch.tensor([0.5, 0.75**0.5])
    labels = kmeans(features, 2, seed=0)
    assert [labels[first], labels[second], labels[other]] == [1, 1, 0]


@pytest.mark.parametrize("clusters", [1, 6])
def test_kmeans_at_its_limits(clusters: int) -> None:
    assert kmeans(drawn(1, 6, 8), clusters, seed=0).unique().tolist() == list(range(clusters))


@pytest.mark.parametrize("clusters", [0, 7])
def test_kmeans_refuses_another_number_of_clusters(clusters: int) -> None:
    with pytest.raises(UserError, match=f"clusters: {clusters} given, expected from 1 to the 6 samples"):
        kmeans(drawn(1, 6, 8), clusters, seed=0)


def test_cluster_means_leave_outliers_out() -> None:
    features = torch.tensor([[1.0, 0], [3, 2], [100, 100], [5, 5]])
    means, filled = cluster_means(features, torch.tensor([1, 1, -1, 0]), 3)
    assert means.tolist() == [[5, 5], [2, 1], [0, 0]]
    assert filled.tolist() == [True, True, False]


def test_kmeans_keeps_fp32_where_training_has_allowed_less(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = [], torch.get_float32_matmul_precision()
    nearest = clustering._nearest_center

    def watched(features: Tensor, centers: Tensor) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return nearest(features, centers)

    monkeypatch.setattr(clustering, "_nearest_center", watched)
    torch.set_float32_matmul_precision("medium")
    try:
        kmeans(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), 3, seed=0)
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}
