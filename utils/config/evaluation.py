"""Builders for the metrics, plots and re-ranker of `cfg.evaluation`. They run before training, so errors come early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig

from utils.errors import check_choice, library_errors

if TYPE_CHECKING:
    from utils.ranking.changes import Change
    from utils.ranking.metrics import Metric
    from utils.ranking.rerank import Reranker
    from utils.report.tested import Plot


FIGURES: Final = ("none", "pdf", "svg")


def build_measures(evaluation: DictConfig) -> dict[str, Metric]:
    """Returns the metrics by name, without those set to null."""
    return _named(evaluation.metrics)


class Reporting(NamedTuple):
    """What is made of a test beside its metrics; see `config/evaluation/default.yaml`."""

    reranker: Reranker | None
    plots: dict[str, Plot]
    changes: list[Change]
    page: bool
    figures: str


def build_reporting(evaluation: DictConfig) -> Reporting:
    """Returns what `evaluation` asks for.

    Raises:
        UserError: a change has an invalid setting, or the format of figures is unknown.
    """
    check_choice("evaluation.figures", evaluation.figures, FIGURES)
    reranker, plots = build_reranker(evaluation), build_plots(evaluation)
    return Reporting(reranker, plots, build_changes(evaluation), evaluation.page, evaluation.figures)


def build_plots(evaluation: DictConfig) -> dict[str, Plot]:
    """Returns the plots by name, without those set to null."""
    return _named(evaluation.plots)


def build_reranker(evaluation: DictConfig) -> Reranker | None:
    """Returns the re-ranker that `evaluation.rerank` names, or None if it is "none"."""
    name = evaluation.rerank
    return None if name == "none" else instantiate(evaluation.rerankers[name])


def build_changes(evaluation: DictConfig) -> list[Change]:
    """Returns the changes of test captions and images, without those set to null.

    Raises:
        UserError: see `Change.checked`.
    """
    from utils.ranking.changes import Change

    changes = []
    for name, options in _named(evaluation.changes).items():
        with library_errors(f"evaluation.changes.{name} is not complete", "see config/evaluation/robustness.yaml"):
            change = Change(name, **options)
        changes.append(change.checked())
    return changes


def _named(functions: DictConfig) -> dict[str, Any]:
    found = instantiate(functions, _convert_="all")
    return {name: function for name, function in found.items() if function is not None}
