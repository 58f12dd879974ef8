"""The end of a Hydra multirun: one table of all its jobs."""

import atexit
import csv
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from utils.errors import one_line
from utils.training.signals import stopping

ERROR_FILE = "error.txt"

log = logging.getLogger(__name__)


class CompareRuns(Callback):
    """A callback that prints and saves the comparison of a multirun's jobs, and names the failed jobs.

    Each folder in `hydra.sweep.dir` is a job. A job without metrics.json has failed, and the process ends with
    status 1. When all jobs have run, sweepers raise the error of the first failed job, and Hydra does not call
    `on_multirun_end`; then the table is printed when the process exits. The W&B run of a job ends with the job, as
    failed or not. The table shows differences to `baseline`, else to `itc`, if one of them is a row.
    """

    def __init__(self) -> None:
        self._sweep = Path()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._sweep = Path(config.hydra.sweep.dir)
        atexit.register(self._report)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        failed = job_return.status == JobStatus.FAILED
        if failed:
            _record_failure(config, job_return)
        if wandb := sys.modules.get("wandb"):
            wandb.finish(exit_code=int(failed))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        atexit.unregister(self._report)
        failed = self._report()
        with _told("W&B has no table of the sweep"):
            self._log(config)
        if failed:
            sys.exit(1)

    def _log(self, config: DictConfig) -> None:
        """Logs the table and the page on W&B if a job has logged there."""
        table = self._sweep / "comparison.csv"
        if not table.exists() or not any(self._sweep.glob("*/wandb")):
            return
        from utils.report.loggers import log_comparison

        with table.open(encoding="utf-8", newline="") as file:
            log_comparison(config.logger, self._sweep, list(csv.DictReader(file)), table.with_suffix(".html"))

    def _report(self) -> list[Path]:
        """Prints and saves the comparison and returns the folders of the failed jobs."""
        from utils.checkpoints.disk import write_whole
        from utils.report.comparison import METRICS_FILE, compare_runs, find_metrics, with_differences
        from utils.report.page.comparison_page import comparison_page

        jobs = sorted(folder for folder in self._sweep.glob("[!.]*") if folder.is_dir() and folder.name != "wandb")
        failed = [job for job in jobs if not (job / METRICS_FILE).exists()]
        files = find_metrics(job for job in jobs if job not in failed)
        if files:
            comparison = with_differences(compare_runs(files))
            (self._sweep / "comparison.txt").write_text(f"{comparison}\n", encoding="utf-8")
            (self._sweep / "comparison.csv").write_text(comparison.csv(), encoding="utf-8")
            print(f"\n{comparison}", flush=True)
        for job in failed:
            reason = job / ERROR_FILE
            why = reason.read_text(encoding="utf-8").strip() if reason.exists() else "see its messages above"
            what = "failed" if reason.exists() or stopping.received is None else "stopped"
            print(f"{what} and missing from the table: {job} ({why})", file=sys.stderr, flush=True)
        if stopping.received is not None:
            done = ", ".join(file.parent.name for file in files) or "none"
            print(f"the sweep was stopped as a whole; done are: {done}", file=sys.stderr, flush=True)
        if files:
            with _told("comparison.html is not written"):
                write_whole(self._sweep / "comparison.html", comparison_page(comparison, self._sweep))
        return failed


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Prints an error in the block. Hydra would make it a warning, and the sweep would end well with failed jobs."""
    try:
        yield
    except Exception as error:
        print(one_line(f"{what}: {type(error).__name__}: {error}"), file=sys.stderr, flush=True)


def _record_failure(config: DictConfig, job_return: JobReturn) -> None:
    """Logs the reason why a job failed and writes it into the job's folder."""
    try:
        _ = job_return.return_value
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.error("job %s failed: %s", config.hydra.job.num, reason)
        Path(config.hydra.runtime.output_dir, ERROR_FILE).write_text(reason + "\n", encoding="utf-8")
