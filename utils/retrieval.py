"""Ranking metrics and nearest neighbours, exact and streamed: the whole (Q, G) score matrix never exists."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from utils.errors import UserError
from utils.metrics import RetrievalMetrics

CHUNK_SIZE = 128
TILE = 64


@contextmanager
def full_precision() -> Iterator[None]:
    """Keeps matrix products in fp32 where training has allowed TF32 or bf16 for speed."""
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [product.fp32_precision for product in products]
    for product in products:
        product.fp32_precision = "ieee"
    try:
        yield
    finally:
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision


@torch.no_grad()
@full_precision()
def retrieval_metrics(
    query: Tensor,
    gallery: Tensor,
    query_pids: Tensor,
    gallery_pids: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    skip_unmatched: bool = False,
) -> RetrievalMetrics:
    """Metrics of ranking `gallery` by inner product for every query, exact in fp32.

    With r_1 < ... < r_K the ranks (1 = best) of a query's K positives: R@k is r_1 <= k, AP the mean of
    i / r_i, INP = K / r_K (AGW, Ye et al., TPAMI 2021); each averaged over queries. Ties count against the
    query: an item of another identity with the same score as a positive ranks before it. Ties among
    positives do not matter.

    A positive's rank is 1 + the positives before it + the negatives that score at least as much. Counting
    those takes one comparison pass per positive over a chunk that is still in cache; nothing is sorted but
    the positives. Time grows with Q x G x (D + K), memory with chunk_size x G.

    Args:
        query: Features. Shape: ``(Q, D)``, unit norm (or K unit-norm blocks), on any device.
        gallery: Features. Shape: ``(G, D)``, same device.
        query_pids: Identities. Shape: ``(Q,)``, integers.
        gallery_pids: Identities. Shape: ``(G,)``, integers.
        chunk_size: queries that are scored at once, rounded up to whole tiles of 64.
        skip_unmatched: leave out queries without a positive, and count them, instead of raising.

    Raises:
        UserError: shapes or devices that do not fit, an empty side, features that are not finite, ids that
            are not integers, a query without a positive.

    >>> features = torch.eye(3)
    >>> ranking = torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    >>> metrics = retrieval_metrics(ranking, features, torch.tensor([1, 2]), torch.tensor([0, 1, 2]))
    >>> metrics.R1, metrics.R5, metrics.mAP
    (50.0, 100.0, 75.0)
    """
    _check_features(query, gallery)
    _check_pids(query, query_pids, "query")
    _check_pids(gallery, gallery_pids, "gallery")

    by_pid = gallery_pids.argsort(stable=True)
    sorted_pids = gallery_pids[by_pid].long()
    first = torch.searchsorted(sorted_pids, query_pids.long())
    count = torch.searchsorted(sorted_pids, query_pids.long(), right=True) - first
    by_count = count.argsort(stable=True)
    skipped = int((count == 0).sum())
    if skipped and not skip_unmatched:
        lost = int((count == 0).nonzero()[0])
        raise UserError(
            f"query {lost} (pid {int(query_pids[lost])}) has no positive in the gallery ({skipped} such of"
            f" {len(query)} queries): add its identity to the gallery or pass skip_unmatched=True"
        )
    if skipped == len(query):
        raise UserError(f"no query of {skipped} has a positive in the gallery: are both of one split?")

    chunks = score_chunks(query, by_count[skipped:], gallery, by_pid, chunk_size)
    measured = [_measure(_ranks(scores, first[rows], count[rows]), count[rows]) for rows, scores in chunks]
    r1, r5, r10, ap, inp = (100 * torch.cat(measured).mean(dim=0)).tolist()
    return RetrievalMetrics(r1, r5, r10, ap, inp, queries=len(query) - skipped, skipped=skipped)


@torch.no_grad()
@full_precision()
def top_k(query: Tensor, gallery: Tensor, k: int, *, chunk_size: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Gallery indices ``(Q, min(k, G))`` by falling score, and those scores, for features as above."""
    _check_features(query, gallery)
    rows, columns = (torch.arange(len(side), device=side.device) for side in (query, gallery))
    chunks = score_chunks(query, rows, gallery, columns, chunk_size)
    best = [scores.topk(min(k, len(gallery)), dim=1) for _, scores in chunks]
    return torch.cat([found.indices for found in best]), torch.cat([found.values for found in best])


def score_chunks(
    query: Tensor, rows: Tensor, gallery: Tensor, columns: Tensor, chunk_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (c of the rows, their fp32 scores ``(c, G)`` against gallery[columns]), in one buffer.

    All products have one shape, of whole tiles: a matrix product may round the elements of a ragged edge
    differently, and equal features must get equal scores wherever they stand.
    """
    width, dim = gallery.shape
    height = min(chunk_size, len(rows))
    block = gallery.new_zeros(_whole_tiles(width), dim, dtype=torch.float32)
    block[:width] = gallery[columns]
    chunk = query.new_zeros(_whole_tiles(height), dim, dtype=torch.float32)
    scores = chunk.new_empty(len(chunk), len(block))
    for some in rows.split(height):
        chunk[: len(some)] = query[some]
        torch.mm(chunk, block.T, out=scores)
        yield some, scores[: len(some), :width]


def _whole_tiles(size: int) -> int:
    return -(-size // TILE) * TILE


def _ranks(scores: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Ranks ``(C, K)`` of each row's positives, best first; a row with fewer than K ends in filling.

    Row i's positives are the columns first[i] .. first[i] + count[i] - 1 of `scores` ``(C, G)``, which is
    used up.
    """
    slots = torch.arange(int(count.max()), device=scores.device)
    columns = first[:, None] + slots.minimum(count[:, None] - 1)
    positives = scores.gather(1, columns).masked_fill_(slots >= count[:, None], -torch.inf)
    positives = positives.sort(dim=1, descending=True).values
    scores.scatter_(1, columns, -torch.inf)
    # Comparing into a float buffer keeps comparison and sum vectorised; sums are exact below 2^24 items.
    at_least = torch.empty_like(scores)
    ranks = torch.empty_like(positives)
    for slot in range(len(slots)):
        torch.ge(scores, positives[:, slot, None], out=at_least)
        torch.sum(at_least, dim=1, out=ranks[:, slot])
    return ranks + slots + 1


def _measure(ranks: Tensor, count: Tensor) -> Tensor:
    """(R@1, R@5, R@10, AP, INP) of each query, fp64 ``(C, 5)`` on the CPU, from `_ranks`."""
    ranks, count = ranks.cpu().double(), count.cpu()
    slots = torch.arange(ranks.shape[1])
    precision = ((slots + 1) / ranks).masked_fill(slots >= count[:, None], 0)
    hardest = ranks.gather(1, count[:, None] - 1)[:, 0]
    hits = [ranks[:, 0] <= k for k in (1, 5, 10)]
    return torch.stack([*hits, precision.sum(dim=1) / count, count / hardest], dim=1)


def _check_features(query: Tensor, gallery: Tensor) -> None:
    for name, features in (("query", query), ("gallery", gallery)):
        if features.ndim != 2 or not features.is_floating_point():
            raise UserError(
                f"{name} features must be floating point of shape (number, dimension),"
                f" got {features.dtype} of shape {tuple(features.shape)}"
            )
        if len(features) == 0:
            raise UserError(f"there are no {name} features to rank: the split is empty")
        finite = features.isfinite().all(dim=1)
        if not finite.all():
            raise UserError(
                f"{name} feature {int(finite.logical_not().nonzero()[0])} is not finite"
                f" ({int((~finite).sum())} such of {len(features)}): the model that made it holds NaN or inf"
            )
    if query.shape[1] != gallery.shape[1] or query.device != gallery.device:
        raise UserError(
            f"query features {tuple(query.shape)} on {query.device} and gallery features"
            f" {tuple(gallery.shape)} on {gallery.device} must share dimension and device"
        )


def _check_pids(features: Tensor, pids: Tensor, name: str) -> None:
    if pids.is_floating_point() or pids.is_complex() or pids.dtype == torch.bool:
        raise UserError(f"{name} pids must be integers, got {pids.dtype}")
    if pids.shape != features.shape[:1] or pids.device != features.device:
        raise UserError(
            f"{name} pids {tuple(pids.shape)} on {pids.device} must be one per feature"
            f" {tuple(features.shape)} on {features.device}"
        )
