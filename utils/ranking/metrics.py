"""Metrics as functions of ranks, by name. Imports nothing heavy, so that reports start at once.

A metric takes the `Ranks` of Q queries, each with at least one positive, and returns an array ``(Q,)``: one value from
0 to 1 for each query. The config's `evaluation.metrics` lists the metrics that are computed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from utils.ranking.positives import Ranks

Metric = Callable[["Ranks"], "NDArray[Any]"]

DIRECTIONS = ("t2i", "i2t")


@dataclass(frozen=True)
class RetrievalMetrics:
    """Metrics in percent, by name and as attributes such as `.R1` and `.mAP`.

    They are means over `queries` queries; `skipped` further queries had no positive in the gallery.
    """

    values: Mapping[str, float]
    queries: int
    skipped: int = 0

    def __getattr__(self, name: str) -> float:
        if name in (values := self.__dict__.get("values", {})):
            return values[name]
        raise AttributeError(f"no metric {name!r} here, only {', '.join(values)}")

    def as_dict(self) -> dict[str, float]:
        """Returns the percentages by name."""
        return dict(self.values)

    def as_row(self) -> dict[str, float]:
        """Returns the percentages and the numbers of queries by name, as metrics.json and metrics.csv store them."""
        return {**self.values, "queries": self.queries, "skipped": self.skipped}


def recall(ranks: "Ranks", k: int) -> "NDArray[Any]":
    """Returns R@k: whether a positive is among the first k."""
    return ranks.first <= k


def average_precision(ranks: "Ranks") -> "NDArray[Any]":
    """Returns AP: the mean of i / r_i over the positives, where r_i is the rank of the i-th positive."""
    return ranks.mean(ranks.place / ranks.values)


def inverse_negative_penalty(ranks: "Ranks") -> "NDArray[Any]":
    """Returns INP: K / r_K, where r_K is the rank of the last of K positives (AGW, Ye et al., TPAMI 2021)."""
    return ranks.counts / ranks.last


STANDARD: Mapping[str, Metric] = {
    "R1": partial(recall, k=1),
    "R5": partial(recall, k=5),
    "R10": partial(recall, k=10),
    "mAP": average_precision,
    "mINP": inverse_negative_penalty,
}
METRICS = tuple(STANDARD)


def measure(ranks: "Ranks", metrics: Mapping[str, Metric] = STANDARD) -> RetrievalMetrics:
    """Returns the means of `metrics` over the queries that have a positive."""
    found = ranks.matched()
    values = {name: 100 * float(metric(found).mean()) for name, metric in metrics.items()}
    return RetrievalMetrics(values, queries=len(found.counts), skipped=len(ranks.counts) - len(found.counts))
