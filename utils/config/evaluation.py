"""Builders for the metrics, plots and re-ranker of `cfg.evaluation`. They run before training, so errors come early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

if TYPE_CHECKING:
    from utils.ranking.metrics import Metric
    from utils.ranking.rerank import Reranker
    from utils.report.tested import Plot


def build_measures(evaluation: DictConfig) -> dict[str, Metric]:
    """Returns the metrics by name, without those set to null."""
    return _named(evaluation.metrics)


def build_plots(evaluation: DictConfig) -> dict[str, Plot]:
    """Returns the plots by name, without those set to null."""
    return _named(evaluation.plots)


def build_reranker(evaluation: DictConfig) -> Reranker | None:
    """Returns the re-ranker that `evaluation.rerank` names, or None if it is "none"."""
    name = evaluation.rerank
    return None if name == "none" else instantiate(evaluation.rerankers[name])


def _named(functions: DictConfig) -> dict[str, Any]:
    found = instantiate(functions, _convert_="all")
    return {name: function for name, function in found.items() if function is not None}
