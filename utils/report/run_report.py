"""The report of a tested run: its table, result files and pictures, on disk and in its loggers.

=====================  ===================================================================================
key on W&B             what it shows (TensorBoard: the same as pictures)
=====================  ===================================================================================
`test/ranked`          a table of test captions with their best images, marked right or wrong; ranked.jpg
`test/similarities`    the similarities of all test pairs, of the same and of different persons; similarities.png
`test/similarity/*`    their means (`same_mean`, `other_mean`) and `overlap`; in metrics.json too
`test/part_attention`  the attention of a part head over images and captions; part_attention.jpg
`test/report`          a page with all of this; report.html (not on TensorBoard)
`test/tsne`            images and captions of some persons, by t-SNE; tsne.png
`test/outliers`        clusters and outliers over the epochs, if training used pseudo labels; outliers.png
`test/word_maps`       similarity of a caption's words to the patches of its image, if a loss is EFA; word_maps.jpg
`test/robustness`      the result at each level of changed captions and images, if there are any; robustness.png
=====================  ===================================================================================
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from utils.errors import one_line
from utils.ranking.changes import changes_table
from utils.ranking.positives import save_ranks
from utils.report.loggers import log_page, log_picture, log_provenance
from utils.report.page.run_page import write_run_page
from utils.report.plots.figure import as_image, save_vector
from utils.report.reports import metrics_table, save_metrics
from utils.report.tested import Plot, Tested


class RunReport:
    """A report that prints, saves and logs the result of a run's test; only the process of rank 0 makes one.

    Args:
        folder: the run's folder.
        loggers: the run's loggers.
        step: the step at which everything is logged.
        provenance: the run's record, for its files and for W&B's config.
        vector: the format in which each picture is also saved: pdf, svg or none.
    """

    def __init__(
        self,
        folder: str | Path,
        loggers: Sequence[Logger],
        step: int,
        provenance: Mapping[str, Any] | None = None,
        vector: str = "none",
    ) -> None:
        self._folder = Path(folder)
        self._loggers = loggers
        self._step = step
        self._provenance = provenance
        self._vector = vector
        self._saved: list[Path] = []
        self._pictures: list[Path] = []

    def save(self, tested: Tested) -> None:
        """Writes the metrics and ranks. A second call writes what was measured since."""
        found, pids = tested.ranks, tested.retrieval.query_pids()
        again = tested.reranked
        if again is not None:
            found, pids = {**found, f"t2i_{again.name}": again.ranks}, {**pids, f"t2i_{again.name}": pids["t2i"]}
        metrics = save_metrics(
            self._folder,
            tested.metrics,
            tested.run,
            similarity=tested.pairs.as_dict(),
            provenance=self._provenance,
            reranked=None if again is None else again.as_dict(),
            changed=[changed.as_dict() for changed in tested.changed],
            efficiency=None if tested.efficiency is None else tested.efficiency._asdict(),
        )
        if not self._saved or again is not None:
            self._saved = [metrics, save_ranks(self._folder, found, pids, tested.retrieval.captions)]

    def show(self, tested: Tested) -> None:
        """Prints the tables, and logs the similarities of all test pairs."""
        if self._provenance is not None:
            log_provenance(self._loggers, self._provenance)
        print(metrics_table(tested.rankings, tested.run), flush=True)
        if tested.changed:
            print(changes_table(tested.metrics, tested.changed, next(iter(tested.metrics["t2i"].values))), flush=True)
        if tested.efficiency is not None:
            print(f"cost    {tested.efficiency}", flush=True)
        logged = {f"test/similarity/{name}": value for name, value in tested.pairs.as_dict().items()}
        if (again := tested.reranked) is not None:
            print(f"reranked {len(tested.retrieval.texts):,} captions by {again.name} in {again.seconds:.1f} s")
            logged |= {f"test/{again.name}/t2i/{name}": value for name, value in again.metrics.values.items()}
            logged[f"test/{again.name}/seconds"] = again.seconds
        for logger in self._loggers:
            logger.log_metrics(logged, self._step)

    def draw(self, name: str, plot: Plot, tested: Tested) -> None:
        """Saves the picture that `plot` returns, if any, under `name`, and logs it as ``test/<name>``."""
        picture = plot(tested)
        if picture is None:
            return
        image, file = as_image(picture.figure), self._folder / f"{name}{picture.suffix}"
        image.save(file, quality=90)
        self._pictures.append(file)
        self._saved.append(file)
        if self._vector != "none":
            self._saved.append(self._folder / f"{name}.{self._vector}")
            save_vector(picture.figure, self._saved[-1])
        log_picture(self._loggers, image, key=f"test/{name}", step=self._step, queries=picture.queries)

    def page(self, tested: Tested) -> None:
        """Writes report.html with all that was saved and drawn so far, and logs it. A failure is only printed."""
        try:
            page = write_run_page(self._folder, tested, self._provenance or {}, self._pictures)
            log_page(self._loggers, page, key="test/report", step=self._step)
        except Exception as error:  # whatever it is, the result of the run is saved
            why = one_line(f"{type(error).__name__}: {error}")
            print(f"page    not complete ({why}); the results are saved", flush=True)
            return
        self._saved.append(page)

    def close(self) -> None:
        """Prints one line that lists the saved files."""
        print(f"saved   {self._folder}: {', '.join(path.name for path in self._saved)}", flush=True)
