"""Exact ranks of positives and nearest neighbours, in blocks: the whole (Q, G) score matrix never exists."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError
from utils.ranking.checks import check_features, check_positives, check_sides
from utils.ranking.metrics import RetrievalMetrics, measure
from utils.ranking.positives import Ranks
from utils.ranking.ranks import RankBlock, count_ranks, group_by_identity, whole_tiles

CHUNK_SIZE = 128


@dataclass(frozen=True)
class Retrieval:
    """One encoded split, in the order of its records: the result of encoding and the input of all evaluation.

    Scores are inner products. They are computed in blocks, as the best of a query or as ranks, never as a whole matrix.

    images, texts: Embeddings. Shapes: ``(G, E)``, ``(Q, E)``, unit norm (or K unit-norm blocks), on one device.
    image_pids, text_pids: Identities. Shapes: ``(G,)``, ``(Q,)``.
    captions, paths: texts and image files, Q and G of them.
    """

    images: Tensor
    image_pids: Tensor
    texts: Tensor
    text_pids: Tensor
    captions: Sequence[str] = ()
    paths: Sequence[Path] = ()

    def ranks(self) -> dict[str, Ranks]:
        """Returns the ranks of the positives of all texts ("t2i") and of all images ("i2t")."""
        t2i, i2t = rank_both(self.texts, self.images, self.text_pids, self.image_pids)
        return {"t2i": t2i, "i2t": i2t}

    def query_pids(self) -> dict[str, NDArray[Any]]:
        """Returns direction -> identities of its queries."""
        return {"t2i": self.text_pids.cpu().numpy(), "i2t": self.image_pids.cpu().numpy()}

    def best_images(self, texts: Tensor | Sequence[int] | slice, k: int) -> tuple[Tensor, Tensor]:
        """Returns the min(k, G) best images of the given texts, best first, and their scores."""
        return top_k(self.texts[texts], self.images, k)


@contextmanager
def full_precision() -> Iterator[None]:
    """Computes matrix products in fp32 inside the block, even if training allows TF32 or bf16 for speed."""
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [product.fp32_precision for product in products]
    for product in products:
        product.fp32_precision = "ieee"
    older = torch.get_float32_matmul_precision()
    if older != "highest":  # CUDA raises an error if the older and the newer setting contradict each other
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
        for product, precision in zip(products, before, strict=True):
            product.fp32_precision = precision


def retrieval_metrics(
    query: Tensor,
    gallery: Tensor,
    query_pids: Tensor,
    gallery_pids: Tensor,
    *,
    chunk_size: int | None = None,
    skip_unmatched: bool = False,
) -> RetrievalMetrics:
    """Returns the metrics of ranking `gallery` by inner product for every query, exact in fp32.

    Let r_1 < ... < r_K be the ranks (1 = best) of a query's K positives. R@k is r_1 <= k, AP is the mean of i / r_i,
    and INP = K / r_K (AGW, Ye et al., TPAMI 2021). Each is averaged over queries. Arguments and errors are the same
    as in `rank_positives`.

    >>> features = torch.eye(3)
    >>> ranking = torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    >>> metrics = retrieval_metrics(ranking, features, torch.tensor([1, 2]), torch.tensor([0, 1, 2]))
    >>> metrics.R1, metrics.R5, metrics.mAP
    (50.0, 100.0, 75.0)
    """
    ranks = rank_positives(
        query, gallery, query_pids, gallery_pids, chunk_size=chunk_size, skip_unmatched=skip_unmatched
    )
    return measure(ranks)


def positive_ranks(
    query: Tensor,
    gallery: Tensor,
    query_pids: Tensor,
    gallery_pids: Tensor,
    *,
    chunk_size: int | None = None,
    skip_unmatched: bool = False,
) -> list[NDArray[Any]]:
    """Returns, for every query, the sorted ranks of its positives as an array of integers; 1 is best.

    Arguments and errors are the same as in `rank_positives`.

    >>> query, gallery = torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]), torch.eye(3)
    >>> [ranks.tolist() for ranks in positive_ranks(query, gallery, torch.tensor([1, 2]), torch.tensor([2, 1, 2]))]
    [[2], [1, 3]]
    """
    ranks = rank_positives(
        query, gallery, query_pids, gallery_pids, chunk_size=chunk_size, skip_unmatched=skip_unmatched
    )
    return ranks.as_list()


@torch.no_grad()
@full_precision()
def rank_positives(
    query: Tensor,
    gallery: Tensor,
    query_pids: Tensor,
    gallery_pids: Tensor,
    *,
    chunk_size: int | None = None,
    skip_unmatched: bool = False,
) -> Ranks:
    """Returns the ranks of every query's positives in `gallery`, ranked by inner product, exact in fp32.

    Ties count against the query: an item of another identity with the same score as a positive ranks before it. Ties
    among positives do not matter.

    A positive's rank is 1 + the positives before it + the negatives that score at least as much. Counting the
    negatives takes one comparison pass per positive over a block of scores that is still in cache. Only the positives
    are sorted. Time grows with Q x G x (D + K), memory with the gallery, the positive pairs and chunk_size squared.

    Args:
        query: Features. Shape: ``(Q, D)``, unit norm (or K unit-norm blocks), on any device.
        gallery: Features. Shape: ``(G, D)``, same device.
        query_pids: Identities. Shape: ``(Q,)``, integers.
        gallery_pids: Identities. Shape: ``(G,)``, integers.
        chunk_size: queries, and also gallery items, in one block of scores, rounded up to a multiple of 64;
            None: 512 on a CPU, 4096 on a GPU.
        skip_unmatched: whether queries without a positive get no ranks instead of an error.

    Raises:
        UserError: if shapes or devices do not fit, a side is empty, a feature is not finite, identities are not
            integers, or a query has no positive.
    """
    check_sides({"query": query, "gallery": gallery}, {"query": query_pids, "gallery": gallery_pids})
    sides = group_by_identity(query_pids, gallery_pids)
    if not skip_unmatched:
        check_positives(sides[0], query_pids, "query", "gallery", "pass skip_unmatched=True")
    elif not sides[0].matches.any():
        raise UserError(f"no query of {len(query)} has a positive in the gallery: are both of one split?")
    size = chunk_size or _block_size(query.device)
    return _as_ranks(count_ranks(query, gallery, sides, size, both=False)[0])


@torch.no_grad()
@full_precision()
def rank_both(
    texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor, *, chunk_size: int | None = None
) -> tuple[Ranks, Ranks]:
    """Returns (text-to-image, image-to-text) ranks as `rank_positives` does, but computes the scores once for both.

    Args:
        texts: Features. Shape: ``(Q, D)``.
        images: Features. Shape: ``(G, D)``, same device.
        text_pids: Identities. Shape: ``(Q,)``, integers.
        image_pids: Identities. Shape: ``(G,)``, integers.
        chunk_size: as in `rank_positives`.

    Raises:
        UserError: as in `rank_positives`; also if a text or an image has no positive.
    """
    check_sides({"text": texts, "image": images}, {"text": text_pids, "image": image_pids})
    sides = group_by_identity(text_pids, image_pids)
    check_positives(sides[0], text_pids, "text", "images", "leave it out")
    check_positives(sides[1], image_pids, "image", "texts", "leave it out")
    text_strips, image_strips = count_ranks(texts, images, sides, chunk_size or _block_size(texts.device), both=True)
    return _as_ranks(text_strips), _as_ranks(image_strips)


def both_directions(
    texts: Tensor, images: Tensor, text_pids: Tensor, image_pids: Tensor, *, chunk_size: int | None = None
) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    """Returns (text-to-image, image-to-text) metrics; arguments and errors are the same as in `rank_both`."""
    t2i, i2t = rank_both(texts, images, text_pids, image_pids, chunk_size=chunk_size)
    return measure(t2i), measure(i2t)


@torch.no_grad()
@full_precision()
def top_k(query: Tensor, gallery: Tensor, k: int, *, chunk_size: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Returns gallery indices ``(Q, min(k, G))`` by descending score, and the scores; features as in `Retrieval`."""
    check_features({"query": query, "gallery": gallery})
    rows, columns = (torch.arange(len(side), device=side.device) for side in (query, gallery))
    chunks = score_chunks(query, rows, gallery, columns, chunk_size)
    best = [scores.topk(min(k, len(gallery)), dim=1) for _, scores in chunks]
    return torch.cat([found.indices for found in best]), torch.cat([found.values for found in best])


def score_chunks(
    query: Tensor, rows: Tensor, gallery: Tensor, columns: Tensor, chunk_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (c of the rows, their fp32 scores ``(c, G)`` against gallery[columns]); all scores share one buffer.

    All products have the same shape, a multiple of the tile: a matrix product may round the elements of a ragged
    edge differently, and equal features must get equal scores wherever they stand.
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
    """Returns the items of a side in one block of scores: it fits in a CPU's cache, or keeps a GPU busy."""
    return 512 if device.type == "cpu" else 2048


def _as_ranks(blocks: list[RankBlock]) -> Ranks:
    """Returns the ranks of all items of a side, in the caller's order."""
    values = torch.cat([block.flat_ranks() for block in blocks]).int().cpu().numpy()
    order, counts = (torch.cat(parts).cpu() for parts in zip(*((s.order, s.matches) for s in blocks), strict=True))
    return Ranks(values, counts.numpy()).take(order.argsort().numpy())
