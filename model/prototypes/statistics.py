"""What to watch of pseudo labels, and how they compare with true identities where these exist."""

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor


def cluster_statistics(labels: Tensor, ids: Tensor | None = None) -> Mapping[str, float]:
    """Returns "clusters" and "outliers"; with true `ids` also "purity", "nmi" and "ami" from 0 to 1.

    The last three are of the samples in clusters, and absent where there are none. Purity is the share of
    samples whose identity is the most frequent one of their cluster.

    Args:
        labels: pseudo labels, -1 for outliers. Shape: ``(N,)``.
        ids: true identities, for reporting only. Shape: ``(N,)``.
    """
    members = labels[labels >= 0].cpu().numpy()
    figures = {"clusters": float(len(np.unique(members))), "outliers": float(len(labels) - len(members))}
    if ids is not None and len(members):
        true = ids[labels >= 0].cpu().numpy()
        figures["purity"] = float(contingency_matrix(true, members, sparse=True).max(axis=0).sum()) / len(members)
        figures["nmi"] = float(normalized_mutual_info_score(true, members))
        figures["ami"] = float(adjusted_mutual_info_score(true, members))
    return figures
