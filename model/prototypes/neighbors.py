"""Exact nearest neighbours of every sample among all others, computed in blocks of rows."""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.errors import UserError
from utils.ranking.retrieval import full_precision, score_chunks
from utils.training.progress import Bar

ROWS = 128
PAIRS = 1_024


def unit_features(features: Tensor) -> Tensor:
    """Returns `features` ``(N, D)`` as fp32 rows of unit norm.

    Raises:
        UserError: there are no samples, the shape is another one, or a value is not finite.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise UserError(
            "features to cluster must be floating point of shape (number, dimension),"
            f" got {features.dtype} of shape {tuple(features.shape)}"
        )
    if len(features) == 0:
        raise UserError("there are no features to cluster: the training set is empty")
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        raise UserError(
            f"feature {int(finite.logical_not().nonzero()[0])} is not finite ({int((~finite).sum())} such of"
            f" {len(features)}): the model that made it holds NaN or inf"
        )
    return F.normalize(features.float(), dim=1)


@torch.no_grad()
@full_precision()
def nearest_neighbors(features: Tensor, k: int) -> Tensor:
    """Returns int64 ``(N, min(k, N - 1) + 1)`` on the CPU: each sample, then its k nearest others, nearest first.

    The result is exact and deterministic: of samples at the same distance, the one with the lower index comes first.
    Time grows with N^2 D, memory with 128 N.

    Args:
        features: Shape: ``(N, D)``, unit norm, on any device.
    """
    rows = torch.arange(len(features), device=features.device)
    kept = min(k, len(features) - 1) + 1
    found = torch.empty(len(features), kept, dtype=torch.int64)
    chunks = score_chunks(features, rows, features, rows, ROWS)
    blocks = -(-len(features) // ROWS)
    for some, scores in Bar(chunks, desc="clustering, neighbours", total=blocks, unit="block", leave=False):
        scores[torch.arange(len(some), device=some.device), some] = torch.inf
        found[some.cpu()] = _best(scores, kept).cpu()
    return found


@torch.no_grad()
def pair_cosines(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the cosine ``(P,)`` of each pair (rows[p], columns[p]) of unit `features`, the same in either order."""
    rows, columns = rows.to(features.device), columns.to(features.device)
    cosines = features.new_empty(len(rows))
    for part, i, j in zip(cosines.split(PAIRS), rows.split(PAIRS), columns.split(PAIRS), strict=True):
        torch.sum(features[i] * features[j], dim=1, out=part)
    return cosines


def _best(scores: Tensor, k: int) -> Tensor:
    """Returns the columns ``(C, k)`` of the highest `scores` ``(C, N)``, sorted by falling score, then rising column.

    `topk` alone would choose arbitrarily among columns that tie for the last place.
    """
    last = scores.topk(k, dim=1).values[:, -1:]
    above, level = scores > last, scores == last
    room = k - above.sum(dim=1, keepdim=True)
    if not torch.equal(level.sum(dim=1, keepdim=True), room):
        level &= level.cumsum(dim=1, dtype=torch.int32) <= room
    columns = (above | level).nonzero()[:, 1].view(len(scores), k)
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)
