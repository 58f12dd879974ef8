"""Re-ranking: the best images of every caption in a new order, beside the plain ranking and never in place of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from utils.ranking.metrics import STANDARD, Metric, RetrievalMetrics, measure
from utils.ranking.positives import Ranks
from utils.ranking.retrieval import Retrieval, full_precision
from utils.training.progress import Bar

CAPTIONS = 64


class Reranker(Protocol):
    """Gives the best images of captions new scores.

    top: how many images of a caption that are.
    name, options: what records say of it.
    """

    top: int
    name: str
    options: Mapping[str, Any]

    def __call__(self, texts: Tensor, images: Tensor) -> Tensor:
        """Returns scores ``(B, n)``, higher being better.

        Args:
            texts: embeddings. Shape: ``(B, E)``.
            images: those of the best images of each, the best first. Shape: ``(B, n, E)``.
        """


@dataclass(frozen=True)
class Reranked:
    """What a re-ranker made of a split's captions: their ranks and metrics, and how long it took.

    name, options: of the re-ranker.
    """

    name: str
    options: Mapping[str, Any]
    ranks: Ranks
    metrics: RetrievalMetrics
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """What files keep of it."""
        own = {"name": self.name, "options": dict(self.options), "seconds": round(self.seconds, 3)}
        return own | {"t2i": self.metrics.as_row()}


def rerank(
    retrieval: Retrieval,
    plain: Ranks,
    reranker: Reranker,
    metrics: Mapping[str, Metric] = STANDARD,
) -> Reranked:
    """Returns text-to-image retrieval with the new scores; see `reranked_ranks`."""
    start = time.perf_counter()
    ranks = reranked_ranks(retrieval, plain, reranker)
    return Reranked(reranker.name, reranker.options, ranks, measure(ranks, metrics), time.perf_counter() - start)


@torch.no_grad()
@full_precision()
def reranked_ranks(retrieval: Retrieval, plain: Ranks, reranker: Reranker) -> Ranks:
    """Returns the ranks of all captions' positives, the best images of each ordered by `reranker`.

    The other images stay behind them, in their order. Ties count against the query. No more than `CAPTIONS` times
    `top` images are held at a time.

    Args:
        plain: the ranks without it, "t2i".
    """
    top = min(reranker.top, len(retrieval.images))
    found, inside = [], []
    blocks = torch.arange(len(retrieval.texts), device=retrieval.texts.device).split(CAPTIONS)
    for some in Bar(blocks, desc="re-ranking", unit="block", leave=False):
        best, _ = retrieval.best_images(some, top)
        scores = reranker(retrieval.texts[some].float(), retrieval.images[best].float())
        right = retrieval.image_pids[best] == retrieval.text_pids[some][:, None]
        counts = right.sum(dim=1)
        found.append(_ranks_within(scores, right, counts).cpu())
        inside.append(counts.cpu())
    return _joined(plain, torch.cat(found).numpy(), torch.cat(inside).numpy(), top)


def _ranks_within(scores: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """Returns the ranks among n images of the `counts` ``(B,)`` right ones of each row, row after row."""
    slots = torch.arange(int(counts.max()), device=scores.device)
    positives = scores.masked_fill(~right, -torch.inf).sort(dim=1, descending=True).values[:, : len(slots)]
    negatives = scores.masked_fill(right, -torch.inf)
    ahead = (negatives[:, None, :] >= positives[:, :, None]).sum(dim=2)  # (B, K)
    return (ahead + slots + 1)[slots < counts[:, None]].int()


def _joined(plain: Ranks, within: np.ndarray, inside: np.ndarray, top: int) -> Ranks:
    """Returns `plain` with new ranks for the best `inside` ``(Q,)`` positives of each query, which are in its top.

    Plain ranks count what is before a positive, so they hold for one behind the top whatever the order in there.
    Where scores are equal up to rounding, the top may have been cut elsewhere: behind it means behind it.
    """
    behind = plain.place - np.repeat(inside, plain.counts)
    values = np.where(behind > 0, np.maximum(plain.values, top + behind), plain.values)
    values[behind <= 0] = within
    return Ranks(values.astype(plain.values.dtype), plain.counts)
