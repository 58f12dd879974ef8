"""Metrics of a made-up run."""

from utils.ranking.metrics import METRICS, RetrievalMetrics


def figures(*percent: float, queries: int = 1, skipped: int = 0) -> RetrievalMetrics:
    """The five usual metrics; a single value is that of all of them."""
    values = percent * len(METRICS) if len(percent) == 1 else percent
    return RetrievalMetrics(dict(zip(METRICS, values, strict=True)), queries, skipped)
