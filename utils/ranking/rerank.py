"""Re-ranking of every caption's best images; its metrics are reported in addition to the plain ranking's."""

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
    """A function that gives new scores to the best images of captions.

    top: the number of images for each caption.
    name, options: its description in records.
    """

    top: int
    name: str
    options: Mapping[str, Any]

    def __call__(self, texts: Tensor, images: Tensor) -> Tensor:
        """Returns scores ``(B, n)``; higher is better.

        Args:
            texts: embeddings of the captions. Shape: ``(B, E)``.
            images: embeddings of the best images of each caption, the best first. Shape: ``(B, n, E)``.
        """


@dataclass(frozen=True)
class Reranked:
    """The result of a re-ranker on a split: the captions' ranks, their metrics, and the seconds it took.

    name, options: the re-ranker's own.
    """

    name: str
    options: Mapping[str, Any]
    ranks: Ranks
    metrics: RetrievalMetrics
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the part that metrics.json stores."""
        own = {"name": self.name, "options": dict(self.options), "seconds": round(self.seconds, 3)}
        return own | {"t2i": self.metrics.as_row()}


def rerank(
    retrieval: Retrieval,
    plain: Ranks,
    reranker: Reranker,
    metrics: Mapping[str, Metric] = STANDARD,
) -> Reranked:
    """Returns ranks and metrics of text-to-image retrieval with the new scores; see `reranked_ranks`."""
    start = time.perf_counter()
    ranks = reranked_ranks(retrieval, plain, reranker)
    return Reranked(reranker.name, reranker.options, ranks, measure(ranks, metrics), time.perf_counter() - start)


@torch.no_grad()
@full_precision()
def reranked_ranks(retrieval: Retrieval, plain: Ranks, reranker: Reranker) -> Ranks:
    """Returns the ranks of all captions' positives after `reranker` has ordered the best images of each caption.

    The other images follow in their plain order. Ties count against the query. At most `CAPTIONS` times `top` images
    are in memory at a time.

    Args:
        plain: the "t2i" ranks without re-ranking.
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
    """Returns the ranks, row after row, of the `counts` ``(B,)`` right images among the n images of each row."""
    slots = torch.arange(int(counts.max()), device=scores.device)
    positives = scores.masked_fill(~right, -torch.inf).sort(dim=1, descending=True).values[:, : len(slots)]
    negatives = scores.masked_fill(right, -torch.inf)
    ahead = (negatives[:, None, :] >= positives[:, :, None]).sum(dim=2)  # (B, K)
    return (ahead + slots + 1)[slots < counts[:, None]].int()


def _joined(plain: Ranks, within: np.ndarray, inside: np.ndarray, top: int) -> Ranks:
    """Returns `plain` with new ranks `within` for each query's best `inside` ``(Q,)`` positives, those in its top.

    A positive behind the top keeps its plain rank: a new order within the top does not change how many are ahead.
    If scores are equal up to rounding, the top may hold other images; the rank is then at least top + 1.
    """
    behind = plain.place - np.repeat(inside, plain.counts)
    values = np.where(behind > 0, np.maximum(plain.values, top + behind), plain.values)
    values[behind <= 0] = within
    return Ranks(values.astype(plain.values.dtype), plain.counts)
