"""What the test of a run found: all that its report and its pictures are functions of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from utils.config.resolvers import RunInfo
from utils.ranking.metrics import RetrievalMetrics
from utils.ranking.positives import Ranks
from utils.ranking.rerank import Reranked
from utils.ranking.retrieval import Retrieval
from utils.report.plots.pictures import Picture, spread
from utils.report.plots.similarity import PairSimilarities, pair_similarities


@dataclass(frozen=True)
class Tested:
    """A tested split.

    run: what tells the run from others, see `save_metrics`.
    retrieval, ranks, metrics: the split, and by direction what its ranking gave.
    reranked: what a re-ranker made of it, where there is one.
    shown_queries: how many captions pictures show.
    module, data: the `LitRanker` and the `TBPSDataModule`, for pictures that look into the model; of `lightning_plots`.
    """

    run: RunInfo
    retrieval: Retrieval
    ranks: Mapping[str, Ranks]
    metrics: Mapping[str, RetrievalMetrics]
    reranked: Reranked | None = None
    shown_queries: int = 0
    module: Any = None
    data: Any = None

    @property
    def name(self) -> str:
        """The run in a few words, for titles."""
        return f"{self.run['strategy']} on {self.run['dataset']}"

    @property
    def shown(self) -> Sequence[int]:
        """The captions that pictures show, by their places."""
        return spread(len(self.retrieval.captions), self.shown_queries)

    @cached_property
    def pairs(self) -> PairSimilarities:
        """How similar captions and images of the same and of another person are."""
        found = self.retrieval
        return pair_similarities(found.texts, found.images, found.text_pids, found.image_pids)


Plot = Callable[[Tested], Picture | None]
