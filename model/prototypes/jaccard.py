"""k-reciprocal Jaccard distance (Zhong et al., CVPR 2017) with sparse matrices throughout."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, identity
from torch import Tensor

from model.prototypes.neighbors import nearest_neighbors, pair_cosines, unit_features
from utils.errors import UserError
from utils.training.progress import Bar

CANDIDATES = 500_000
MAX_STORED = 600_000_000


def k_reciprocal_jaccard(features: Tensor, k1: int = 20, k2: int = 6, *, radius: float = 1.0) -> csr_matrix:
    """Returns the symmetric fp32 distances ``(N, N)``. An absent entry means distance 1; a stored 0 means 0.

    Symbols: d = 2 - 2 cos. N(i, k) is i and its k nearest others. R(i, k) = {j in N(i, k): i in N(j, k)}.
    For each c in R(i, k1), the set R(c, round(k1 / 2)) is added to R(i, k1) if more than 2/3 of it lies in R(i, k1).
    V_i = exp(-d) on the resulting set, normalised to sum 1. Then V_i is replaced by the mean of V over the k2 nearest
    of i, itself included. J_ij = 1 - s / (2 - s) with s = sum_k min(V_ik, V_jk).
    Decisions: ties go to the lower index. k1 / 2 is rounded half to even. If there are fewer samples than neighbours,
    all samples are neighbours.

    Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding (CVPR 2017).

    Args:
        features: Shape: ``(N, D)``, on any device, of any norm.
        k1, k2: number of neighbours of the encoding and of its averaging, at least 1.
        radius: distances above it are not stored. 1 stores all. Clustering passes its `eps`, which takes a tenth of
            the memory.

    Raises:
        UserError: a feature is not finite, a number is out of range, or there are more close pairs than fit in memory.
    """
    for name, value in (("k1", k1), ("k2", k2)):
        if value < 1:
            raise UserError(f"{name}: {value} given, expected at least 1 neighbour")
    features = unit_features(features)
    neighbors = nearest_neighbors(features, max(k1, k2 - 1))
    return jaccard_distances(k_reciprocal_encoding(features, neighbors, k1, k2), radius)


def k_reciprocal_encoding(features: Tensor, neighbors: Tensor, k1: int, k2: int) -> csr_matrix:
    """Returns V ``(N, N)``, fp64 with rows that sum to 1, as `k_reciprocal_jaccard` defines it.

    Args:
        features: Shape: ``(N, D)``, unit norm.
        neighbors: from `nearest_neighbors`, with at least max(k1, k2 - 1) others.
    """
    nearest = neighbors.numpy().astype(np.int32)
    reciprocal = _reciprocal(nearest, k1)
    half = _reciprocal(nearest, round(k1 / 2))
    overlap = (reciprocal @ half).multiply(reciprocal).tocsr()  # at (i, c): |R(c, k1 / 2) within R(i, k1)|
    overlap.data = (3 * overlap.data > 2 * np.diff(half.indptr)[overlap.indices]).astype(np.int32)
    overlap.eliminate_zeros()
    weights = (reciprocal + overlap @ half).astype(np.float64)
    weights.sort_indices()
    rows = np.repeat(np.arange(len(nearest)), np.diff(weights.indptr))
    cosines = pair_cosines(features, torch.from_numpy(rows), torch.from_numpy(weights.indices.astype(np.int64)))
    weights.data = np.exp(np.minimum(2 * cosines.double().cpu().numpy() - 2, 0))
    weights.data /= np.repeat(np.add.reduceat(weights.data, weights.indptr[:-1]), np.diff(weights.indptr))
    return (_indicator(nearest[:, :k2]) @ weights) / min(k2, len(nearest))


def jaccard_distances(weights: csr_matrix, radius: float = 1.0) -> csr_matrix:
    """Returns fp32 distances ``(N, N)`` up to `radius` between the rows of `weights`, absent if rows share no column.

    For each entry of a row, the list of its column gives all rows that share this column. Time and memory grow with
    the number of such shared entries, not with N^2.
    """
    indices, data, indptr = bytearray(), bytearray(), [np.zeros(1, dtype=np.int64)]
    with Bar(total=weights.shape[0], desc="clustering, distances", unit="row", leave=False) as bar:
        for shared in _minimum_sums(weights):
            bar.update(shared.shape[0])
            s = shared.data.astype(np.float32)
            distances = np.maximum(1 - s / (2 - s), 0)
            near = np.flatnonzero(distances <= radius)
            indices.extend(shared.indices[near].astype(np.int32))
            data.extend(distances[near])
            indptr.append(indptr[-1][-1] + np.searchsorted(near, shared.indptr[1:]))
            if indptr[-1][-1] > MAX_STORED:
                raise UserError(
                    f"more than {MAX_STORED:,} pairs of {weights.shape[0]:,} features lie within Jaccard distance"
                    f" {radius}: the features have collapsed into one another, or the radius is too large; lower the"
                    " learning rate or pseudo_label eps"
                )
    return csr_matrix(
        (np.frombuffer(data, np.float32), np.frombuffer(indices, np.int32), np.concatenate(indptr)),
        shape=weights.shape,
    )


def _minimum_sums(weights: csr_matrix) -> Iterator[csr_matrix]:
    """Yields s_ij = sum_k min(V_ik, V_jk) for consecutive blocks of rows i, sorted by j, without zeros."""
    weights.sort_indices()
    columns = weights.tocsc()
    count = len(columns.indptr) - 1
    unit = identity(count, format="csr")
    lengths = np.diff(columns.indptr)[weights.indices]  # number of entries in the column of each entry
    meetings = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    row_meetings = meetings[weights.indptr]
    first = 0
    while first < count:
        last = int(np.searchsorted(row_meetings, row_meetings[first] + CANDIDATES, side="right")) - 1
        last = max(last, first + 1)
        entries = slice(weights.indptr[first], weights.indptr[last])
        indptr = row_meetings[first : last + 1] - row_meetings[first]
        starts = columns.indptr[weights.indices[entries]] - (meetings[:-1][entries] - row_meetings[first])
        at = np.repeat(starts, lengths[entries]) + np.arange(indptr[-1])
        minima = np.minimum(np.repeat(weights.data[entries], lengths[entries]), columns.data[at])
        met = csr_matrix((minima, columns.indices[at], indptr), shape=(last - first, count))
        shared = met @ unit  # adds up entries of the same column, without sorting
        shared.sort_indices()
        yield shared
        first = last


def _reciprocal(nearest: NDArray[np.int32], k: int) -> csr_matrix:
    """Returns int32 ``(N, N)``, 1 at (i, j) if i = j, or if i and j are each among the k nearest of the other."""
    among = _indicator(nearest[:, : k + 1])
    return among.multiply(among.T).tocsr()


def _indicator(columns: NDArray[np.int32]) -> csr_matrix:
    """Returns int32 ``(N, N)``, 1 at the `columns` ``(N, k)`` of each row."""
    rows, k = columns.shape
    ones = np.ones(columns.size, dtype=np.int32)
    return csr_matrix((ones, columns.ravel(), np.arange(rows + 1, dtype=np.int32) * k), shape=(rows, rows))
