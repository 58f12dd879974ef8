"""Clustering into pseudo labels: int64 ``(N,)``, the cluster of each sample, numbered from 0; -1 for outliers."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from model.prototypes.jaccard import k_reciprocal_jaccard
from model.prototypes.neighbors import unit_features
from utils.errors import UserError
from utils.ranking.retrieval import full_precision
from utils.training.progress import Bar

ROUNDS = 25
ROWS = 1_024
MAX_NEIGHBORS = 100_000_000


@dataclass(frozen=True)
class JaccardDBSCAN:
    """Clustering of features with `dbscan` on their `k_reciprocal_jaccard` distances."""

    k1: int
    k2: int
    eps: float
    min_samples: int

    def __call__(self, features: Tensor, seed: int) -> Tensor:
        """Returns the labels ``(N,)`` of `features` ``(N, D)``, -1 for outliers. `seed` has no influence."""
        return dbscan(k_reciprocal_jaccard(features, self.k1, self.k2, radius=self.eps), self.eps, self.min_samples)


@dataclass(frozen=True)
class KMeans:
    """Clustering of features with `kmeans`."""

    clusters: int

    def __call__(self, features: Tensor, seed: int) -> Tensor:
        """Returns the labels ``(N,)`` of `features` ``(N, D)``."""
        return kmeans(features, self.clusters, seed)


def dbscan(distances: csr_matrix, eps: float, min_samples: int) -> Tensor:
    """Returns the labels ``(N,)`` of DBSCAN (Ester et al., KDD 1996), clusters in order of their first core sample.

    Args:
        distances: symmetric ``(N, N)``, from `k_reciprocal_jaccard`. An absent entry is farther than `eps`; a stored 0
            is a neighbour.
        eps: largest distance between neighbours, above 0 and below 1.
        min_samples: number of neighbours of a core sample, itself included.

    Raises:
        UserError: a number is out of range, or there are more neighbours than fit in memory.
    """
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    if not 0 < eps < 1:
        raise UserError(f"eps: {eps} given, expected a Jaccard distance above 0 and below 1")
    if min_samples < 1:
        raise UserError(f"min_samples: {min_samples} given, expected at least 1")
    near = _within(distances, eps)
    if near.nnz > MAX_NEIGHBORS:
        raise UserError(
            f"{near.nnz:,} pairs of {near.shape[0]:,} features lie within eps {eps}, more than {MAX_NEIGHBORS:,}: the"
            " features have collapsed into one another, or eps is too large; lower the learning rate or eps"
        )
    graph = sort_graph_by_row_values(near, copy=False, warn_when_not_sorted=False)
    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(graph).labels_
    return torch.from_numpy(labels.astype(np.int64))


def _within(distances: csr_matrix, eps: float) -> csr_matrix:
    """Returns a copy of `distances` with only the stored entries up to `eps`. Stored zeros are kept."""
    near = np.flatnonzero(distances.data <= eps)
    indptr = np.searchsorted(near, distances.indptr)
    return csr_matrix((distances.data[near], distances.indices[near], indptr), shape=distances.shape)


@torch.no_grad()
@full_precision()
def kmeans(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Returns the labels ``(N,)`` of K-means on unit features: Lloyd's algorithm, started from random samples.

    There are no outliers. Samples are assigned on the device of the features, and means are summed in the order of the
    samples. The same seed therefore gives the same labels, which scikit-learn's threads do not guarantee. An empty
    cluster keeps its centre. Clusters that are empty at the end get no number. The rounds end when no label changes, at
    the latest after 25.

    Args:
        features: Shape: ``(N, D)``, on any device, of any norm.
        clusters: K, from 1 to N.

    Raises:
        UserError: a feature is not finite, or there are more clusters than samples.
    """
    features = unit_features(features)
    if not 1 <= clusters <= len(features):
        raise UserError(f"clusters: {clusters} given, expected from 1 to the {len(features)} samples there are")
    start = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:clusters]
    centers = features[start.to(features.device)]
    labels = torch.full((len(features),), -1)
    for _ in Bar(range(ROUNDS), desc="clustering, rounds", unit="round", leave=False):
        before, labels = labels, _nearest_center(features, centers)
        if torch.equal(before, labels):
            break
        means, filled = cluster_means(features, labels, clusters)
        centers = torch.where(filled[:, None], means, centers)
    return labels.unique(return_inverse=True)[1]


def cluster_means(features: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Returns the mean of each cluster ``(K, D)``, 0 if it is empty, and bool ``(K,)``, true if it is not empty.

    The CPU sums in the order of the samples, so the result does not depend on the device. Outliers are ignored.
    """
    clustered = (labels >= 0).cpu().numpy()
    members = labels.cpu().numpy()[clustered]
    ones = np.ones(len(members), dtype=np.float32)
    membership = csr_matrix((ones, (members, np.flatnonzero(clustered))), shape=(clusters, len(labels)))
    sums = torch.from_numpy(membership @ features.float().cpu().numpy()).to(features.device)
    sizes = torch.from_numpy(np.bincount(members, minlength=clusters)).to(features.device)
    return sums / sizes.clamp_min(1)[:, None], sizes > 0


def _nearest_center(features: Tensor, centers: Tensor) -> Tensor:
    """Returns the index ``(N,)`` of the centre nearest to each feature, on the CPU. Ties go to the lowest index."""
    offsets = -centers.square().sum(dim=1) / 2
    return torch.cat([torch.addmm(offsets, rows, centers.T).argmax(dim=1) for rows in features.split(ROWS)]).cpu()
