"""What a tested run leaves: its table, result files and pictures, on disk and where its figures go.

=====================  ===================================================================================
key on W&B             what it shows (TensorBoard: the same as pictures)
=====================  ===================================================================================
`test/ranked`          a table of test captions with their best images, right and wrong marked; ranked.jpg
`test/similarities`    the similarities of all test pairs, of the same and of another person; similarities.png
`test/similarity/*`    their means (`same_mean`, `other_mean`) and `overlap`; in metrics.json too
`test/part_attention`  what a part head attends to in images and captions; part_attention.jpg
`test/tsne`            ten persons, images and captions, by t-SNE; tsne.png
`test/outliers`        clusters and outliers over the epochs, where training went by pseudo labels; outliers.png
`test/word_maps`       words of a caption on the patches of its image, where a loss is EFA; word_maps.jpg
=====================  ===================================================================================
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from PIL import Image

from utils.ranking.metrics import RetrievalMetrics
from utils.report.loggers import log_picture, log_provenance, log_ranked
from utils.report.plots.pictures import RankedQuery, ranked_picture
from utils.report.plots.similarity import PairSimilarities, histogram_picture
from utils.report.reports import metrics_table, save_metrics


class RunReport:
    """Prints, saves and logs what the test of a run found; only the process of rank 0 makes one.

    Args:
        folder: of the run.
        facts: what tells the run from others, see `save_metrics`.
        loggers: of the run.
        step: at which everything is logged.
        provenance: what the run was made with and has done, for its files and for W&B's config.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: Mapping[str, Any],
        loggers: Sequence[Logger],
        step: int,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._facts = facts
        self._loggers = loggers
        self._step = step
        self._provenance = provenance
        self._saved: list[Path] = []

    def metrics(self, metrics: Mapping[str, RetrievalMetrics], pairs: PairSimilarities) -> None:
        """Saves the table with the similarities of all test pairs, prints it, and draws these."""
        figures = pairs.as_dict()
        self._saved.append(
            save_metrics(self._folder, metrics, self._facts, similarity=figures, provenance=self._provenance)
        )
        if self._provenance is not None:
            log_provenance(self._loggers, self._provenance)
        print(metrics_table(metrics, self._facts), flush=True)
        for logger in self._loggers:
            logger.log_metrics({f"test/similarity/{name}": value for name, value in figures.items()}, self._step)
        title = f"{self._facts['strategy']} on {self._facts['dataset']}, test"
        self.draw("similarities.png", histogram_picture, pairs, title)

    def ranked(self, queries: Sequence[RankedQuery]) -> None:
        """Draws how queries rank."""
        self._saved.append(self._folder / "ranked.jpg")
        ranked_picture(queries, self._saved[-1])
        log_ranked(self._loggers, queries, key="test/ranked", step=self._step)

    def draw(self, file_name: str, picture: Callable[..., Image.Image], *what: Any) -> None:
        """Saves `picture`, a function of `what` and a path, as `file_name`, and logs it as ``test/<stem>``."""
        path = self._folder / file_name
        log_picture(self._loggers, picture(*what, path), key=f"test/{path.stem}", step=self._step)
        self._saved.append(path)

    def close(self) -> None:
        """Prints one line on what was saved."""
        print(f"saved   {self._folder}: {', '.join(path.name for path in self._saved)}", flush=True)
