"""Ranking metrics and nearest neighbours, exact and streamed: the whole (Q, G) score matrix never exists."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from utils.errors import UserError
from utils.ranking.metrics import RetrievalMetrics
from utils.ranking.ranks import Grouped, Strip, count_ranks, group_by_identity, whole_tiles

CHUNK_SIZE = 128


@contextmanager
def full_precision() -> Iterator[None]:
    """Keeps matrix products in fp32 where training has allowed TF32 or bf16 for speed."""
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [product.fp32_precision for product in products]
    for product in products:
        product.fp32_precision = "ieee"
    older = torch.get_float32_matmul_precision()
    if older != "highest":  # CUDA refuses to read settings of which the older and the newer kind contradict each other
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
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
    chunk_size: int | None = None,
    skip_unmatched: bool = False,
) -> RetrievalMetrics:
    """Metrics of ranking `gallery` by inner product for every query, exact in fp32.

    With r_1 < ... < r_K the ranks (1 = best) of a query's K positives: R@k is r_1 <= k, AP the mean of
    i / r_i, INP = K / r_K (AGW, Ye et al., TPAMI 2021); each averaged over queries. Ties count against the
    query: an item of another identity with the same score as a positive ranks before it. Ties among
    positives do not matter.

    A positive's rank is 1 + the positives before it + the negatives that score at least as much. Counting
    those takes one comparison pass per positive over a block of scores that is still in cache; nothing is sorted
    but the positives. Time grows with Q x G x (D + K), memory with the gallery, the positive pairs and
    chunk_size squared.

    Args:
        query: Features. Shape: ``(Q, D)``, unit norm (or K unit-norm blocks), on any device.
        gallery: Features. Shape: ``(G, D)``, same device.
        query_pids: Identities. Shape: ``(Q,)``, integers.
        gallery_pids: Identities. Shape: ``(G,)``, integers.
        chunk_size: queries, and items of the gallery, of a block that is scored at once, rounded up to whole tiles
            of 64; None: 512 on a CPU, 4096 on a GPU.
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
    _check_sides({"query": query, "gallery": gallery}, {"query": query_pids, "gallery": gallery_pids})
    sides = group_by_identity(query_pids, gallery_pids)
    if not skip_unmatched:
        _check_positives(sides[0], query_pids, "query", "gallery", "pass skip_unmatched=True")
    elif not sides[0].matches.any():
        raise UserError(f"no query of {len(query)} has a positive in the gallery: are both of one split?")
    size = chunk_size or _block_size(query.device)
    return _metrics(count_ranks(query, gallery, sides, size, both=False)[0])


@torch.no_grad()
@full_precision()
def both_directions(
    texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor, *, chunk_size: int | None = None
) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    """Returns (text-to-image, image-to-text) metrics as of `retrieval_metrics`, from one pass over the scores.

    Args:
        texts: Features. Shape: ``(Q, D)``.
        images: Features. Shape: ``(G, D)``, same device.
        text_pids: Identities. Shape: ``(Q,)``, integers.
        image_pids: Identities. Shape: ``(G,)``, integers.
        chunk_size: as of `retrieval_metrics`.

    Raises:
        UserError: as `retrieval_metrics`; a text or an image without a positive.
    """
    _check_sides({"text": texts, "image": images}, {"text": text_pids, "image": image_pids})
    sides = group_by_identity(text_pids, image_pids)
    _check_positives(sides[0], text_pids, "text", "images", "leave it out")
    _check_positives(sides[1], image_pids, "image", "texts", "leave it out")
    text_strips, image_strips = count_ranks(texts, images, sides, chunk_size or _block_size(texts.device), both=True)
    return _metrics(text_strips), _metrics(image_strips)


@torch.no_grad()
@full_precision()
def top_k(query: Tensor, gallery: Tensor, k: int, *, chunk_size: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Gallery indices ``(Q, min(k, G))`` by falling score, and those scores, for features as above."""
    _check_features({"query": query, "gallery": gallery})
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
    block = gallery.new_zeros(whole_tiles(width), dim, dtype=torch.float32)
    block[:width] = gallery[columns]
    chunk = query.new_zeros(whole_tiles(height), dim, dtype=torch.float32)
    scores = chunk.new_empty(len(chunk), len(block))
    for some in rows.split(height):
        chunk[: len(some)] = query[some]
        torch.mm(chunk, block.T, out=scores)
        yield some, scores[: len(some), :width]


def _block_size(device: torch.device) -> int:
    """Returns how many items of a side a block of scores spans: one stays in cache, one keeps a GPU busy."""
    return 512 if device.type == "cpu" else 4096


def _metrics(strips: list[Strip]) -> RetrievalMetrics:
    """Returns the averages over all items of the strips that have a positive."""
    counts = torch.cat([strip.matches for strip in strips]).cpu()
    measured = torch.cat([_measure(strip.ranks(), strip.matches) for strip in strips])[counts > 0]
    r1, r5, r10, ap, inp = (100 * measured.mean(dim=0)).tolist()
    return RetrievalMetrics(r1, r5, r10, ap, inp, queries=len(measured), skipped=len(counts) - len(measured))


def _measure(ranks: Tensor, count: Tensor) -> Tensor:
    """(R@1, R@5, R@10, AP, INP) of each item, fp64 ``(n, 5)`` on the CPU; without meaning where `count` is 0.

    Args:
        ranks: of its positives, the best first. Shape: ``(n, K)``.
        count: how many of them there are. Shape: ``(n,)``.
    """
    ranks, count = ranks.cpu().double(), count.cpu()
    if ranks.shape[1] == 0:
        return ranks.new_zeros(len(ranks), 5)
    slots = torch.arange(ranks.shape[1])
    precision = ((slots + 1) / ranks).masked_fill(slots >= count[:, None], 0)
    hardest = ranks.gather(1, (count[:, None] - 1).clamp_min(0))[:, 0]
    hits = [ranks[:, 0] <= k for k in (1, 5, 10)]
    return torch.stack([*hits, precision.sum(dim=1) / count, count / hardest], dim=1)


def _check_positives(side: Grouped, pids: Tensor, name: str, others: str, way_out: str) -> None:
    lost = side.order[side.matches == 0]
    if len(lost):
        first = int(lost.min())
        raise UserError(
            f"{name} {first} (pid {int(pids[first])}) has no positive in the {others} ({len(lost)} such of"
            f" {len(pids)}): add its identity to the {others} or {way_out}"
        )


def _check_sides(features: dict[str, Tensor], pids: dict[str, Tensor]) -> None:
    _check_features(features)
    for name, side in features.items():
        _check_pids(side, pids[name], name)


def _check_features(sides: dict[str, Tensor]) -> None:
    """Passes what can be ranked: two sides by name."""
    for name, features in sides.items():
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
    (name, one), (other_name, other) = sides.items()
    if one.shape[1] != other.shape[1] or one.device != other.device:
        raise UserError(
            f"{name} features {tuple(one.shape)} on {one.device} and {other_name} features"
            f" {tuple(other.shape)} on {other.device} must share dimension and device"
        )


def _check_pids(features: Tensor, pids: Tensor, name: str) -> None:
    if pids.is_floating_point() or pids.is_complex() or pids.dtype == torch.bool:
        raise UserError(f"{name} pids must be integers, got {pids.dtype}")
    if pids.shape != features.shape[:1] or pids.device != features.device:
        raise UserError(
            f"{name} pids {tuple(pids.shape)} on {pids.device} must be one per feature"
            f" {tuple(features.shape)} on {features.device}"
        )
