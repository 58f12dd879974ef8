"""The result of a run's test, from which its report and its pictures are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from utils.config.resolvers import RunInfo
from utils.ranking.changes import Changed
from utils.ranking.metrics import RetrievalMetrics
from utils.ranking.positives import Ranks
from utils.ranking.rerank import Reranked
from utils.ranking.retrieval import Retrieval
from utils.report.efficiency import Efficiency
from utils.report.plots.pictures import Picture, spread
from utils.report.plots.similarity import PairSimilarities, pair_similarities


@dataclass
class Tested:
    """A tested split.

    run: the settings that distinguish the run from others, see `save_metrics`.
    retrieval: the encoded split. ranks, metrics: direction -> its ranks, its metrics.
    reranked: the result of the re-ranker, if one was used.
    changed: the results of changed captions and images, and of captions by length.
    efficiency: what the encoder costs.
    shown_queries: the number of captions that pictures show, or their indices.
    module, data: the `LitRanker` and the `TBPSDataModule`, for the plots of `lightning_plots`, which use the model.
    """

    run: RunInfo
    retrieval: Retrieval
    ranks: Mapping[str, Ranks]
    metrics: Mapping[str, RetrievalMetrics]
    reranked: Reranked | None = None
    changed: list[Changed] = field(default_factory=list)
    efficiency: Efficiency | None = None
    shown_queries: int | Sequence[int] = 0
    module: Any = None
    data: Any = None

    @property
    def name(self) -> str:
        """A short title of the run."""
        return f"{self.run['strategy']} on {self.run['dataset']}"

    @property
    def rankings(self) -> dict[str, RetrievalMetrics]:
        """The metrics of each ranking, by its name in tables; the re-ranked one is the last."""
        again = self.reranked
        return {**self.metrics, **({} if again is None else {f"t2i, {again.name}": again.metrics})}

    @property
    def shown(self) -> Sequence[int]:
        """The indices of the captions that pictures show."""
        wanted = self.shown_queries
        return spread(len(self.retrieval.captions), wanted) if isinstance(wanted, int) else list(wanted)

    @cached_property
    def pairs(self) -> PairSimilarities:
        """The similarities of captions and images of the same person, and of different persons."""
        found = self.retrieval
        return pair_similarities(found.texts, found.images, found.text_pids, found.image_pids)


Plot = Callable[[Tested], Picture | None]
