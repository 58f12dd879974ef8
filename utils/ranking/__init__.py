"""Ranking: who is found for a query, at which rank, and what that is worth."""

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
    """Imports a public name when it is first asked for: reports need the metrics' names and no PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
