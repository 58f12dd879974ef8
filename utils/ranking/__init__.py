"""Ranking of a gallery for each query: ranks of positives, metrics, significance tests, re-ranking."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.ranking.metrics import RetrievalMetrics, measure
    from utils.ranking.positives import Ranks
    from utils.ranking.retrieval import Retrieval, positive_ranks, retrieval_metrics
    from utils.ranking.significance import PairedTest, paired_test

__all__ = [
    "PairedTest",
    "Ranks",
    "Retrieval",
    "RetrievalMetrics",
    "measure",
    "paired_test",
    "positive_ranks",
    "retrieval_metrics",
]

_MODULES = {
    "PairedTest": "significance",
    "Ranks": "positives",
    "Retrieval": "retrieval",
    "RetrievalMetrics": "metrics",
    "measure": "metrics",
    "paired_test": "significance",
    "positive_ranks": "retrieval",
    "retrieval_metrics": "retrieval",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use, so that reports can use the metrics' names without PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
