"""Statistics of pseudo labels, and their agreement with true identities where these exist."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import gammaln
from torch import Tensor

Sizes = NDArray[np.int64]


def cluster_statistics(labels: Tensor, ids: Tensor | None = None) -> Mapping[str, float]:
    """Returns "clusters" and "outliers"; with true `ids` also "purity", "nmi" and "ami", at most 1.

    The last three are computed over clustered samples, and absent if there are none. Purity is the share of samples
    whose identity is the most frequent one in their cluster. NMI and AMI (Vinh et al., JMLR 2010) use the arithmetic
    mean of both entropies. They are 1 if there is only one cluster and one identity.

    Args:
        labels: pseudo labels, -1 for outliers. Shape: ``(N,)``.
        ids: true identities, for reporting only. Shape: ``(N,)``.
    """
    members = labels[labels >= 0].cpu().numpy()
    figures = {"clusters": float(len(np.unique(members))), "outliers": float(len(labels) - len(members))}
    if ids is not None and len(members):
        true = np.unique(ids[labels >= 0].cpu().numpy(), return_inverse=True)[1]
        shared = csr_matrix((np.ones(len(true), dtype=np.int64), (true, members)))
        persons, clusters = np.bincount(true), np.bincount(members)
        clusters = clusters[clusters > 0]
        information, expected = _information(shared), _expected_information(persons, clusters)
        entropy = (_entropy(persons) + _entropy(clusters)) / 2
        figures["purity"] = float(shared.max(axis=0).sum()) / len(members)
        figures["nmi"] = information / entropy if entropy > 0 else 1.0
        figures["ami"] = (information - expected) / (entropy - expected) if entropy - expected > 1e-12 else 1.0
    return figures


def _information(shared: csr_matrix) -> float:
    """Returns the mutual information in nats of a contingency table."""
    rows, columns = (np.asarray(shared.sum(axis=axis)).ravel() for axis in (1, 0))
    table, total = shared.tocoo(), shared.sum()
    chance = rows[table.row] * columns[table.col] / total
    return float((table.data / total * np.log(table.data / chance)).sum())


def _entropy(sizes: Sizes) -> float:
    """Returns the entropy in nats of a partition into parts of these `sizes`."""
    shares = sizes / sizes.sum()
    return float(-(shares * np.log(shares)).sum())


def _expected_information(first: Sizes, second: Sizes) -> float:
    """Returns the expected mutual information of two random partitions into parts of these sizes.

    Source: Vinh et al., eq. (24a). The number of samples that two parts share is hypergeometric and depends only on
    their sizes. Thousands of parts have few different sizes, so each pair of sizes is computed once.
    """
    total = int(first.sum())
    a, times_a = (column[:, None, None] for column in np.unique(first, return_counts=True))
    b, times_b = (column[None, :, None] for column in np.unique(second, return_counts=True))
    n = np.arange(1, min(a.max(), b.max()) + 1)
    possible = (n >= a + b - total) & (n <= np.minimum(a, b))
    a, b, n = (array[possible] for array in np.broadcast_arrays(a, b, n))
    times = np.broadcast_to(times_a * times_b, possible.shape)[possible]
    choices = _log_choose(a, n) + _log_choose(total - a, b - n) - _log_choose(np.int64(total), b)
    return float((times * n / total * np.log(total * n / (a * b)) * np.exp(choices)).sum())


def _log_choose(of: NDArray[np.int64] | np.int64, some: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the logarithm of the binomial coefficient, elementwise."""
    return gammaln(of + 1) - gammaln(some + 1) - gammaln(of - some + 1)
