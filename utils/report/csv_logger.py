"""A CSV logger for logs/steps.csv. A run that was killed and continued has the same file as one without a kill."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from utils.checkpoints.disk import why_not_written, write_whole
from utils.errors import UserError


class AppendingCSVLogger(CSVLogger):
    """Lightning's CSV logger, changed to keep the rows of earlier starts of the run instead of deleting them.

    A checkpoint stores the number of rows before it. A run that continues from it first removes the later rows,
    because it repeats and logs those steps.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment  # type: ignore[return-value]

    def count_rows(self) -> int:
        """Saves all rows safely to disk and returns their number."""
        self.save()
        return self.experiment.count_rows()

    @rank_zero_only
    def cut_rows(self, rows: int) -> None:
        """Removes all rows after the first `rows`."""
        self.experiment.cut_rows(rows)


class _AppendingWriter(ExperimentWriter):
    """A writer that appends whole lines to the file. If the header gets new columns, it replaces the whole file."""

    NAME_METRICS_FILE = "steps.csv"

    def _check_log_dir_exists(self) -> None:
        self._file = Path(self.metrics_file_path)
        lines = self._lines()
        self._rows = max(0, len(lines) - 1)
        self.metrics_keys = next(csv.reader(lines), [])
        if self._file.exists() and self._file.stat().st_size > len("".join(lines).encode()):
            self._write(lines)  # without the last line, which a kill left incomplete

    def save(self) -> None:
        if not self.metrics:
            return
        if self._record_new_keys() or not self._rows:
            self._write(self._formatted([*csv.DictReader(self._lines()), *self.metrics], header=True))
        else:
            with self._one_sentence(), self._file.open("a", newline="", encoding="utf-8") as file:
                file.write("".join(self._formatted(self.metrics)))
        self._rows += len(self.metrics)
        self.metrics = []

    def count_rows(self) -> int:
        if self._rows:
            with self._one_sentence(), self._file.open("rb") as file:
                os.fsync(file.fileno())
        return self._rows

    def cut_rows(self, rows: int) -> None:
        if rows < self._rows:
            self._write(self._lines()[: 1 + rows])
            self._rows = rows

    def _lines(self) -> list[str]:
        """Returns the complete lines of the file, the header first."""
        if not self._file.exists():
            return []
        with self._file.open(newline="", encoding="utf-8", errors="replace") as file:
            return [line for line in file if line.endswith("\n")]

    def _formatted(self, rows: Iterable[dict[str, Any]], *, header: bool = False) -> list[str]:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().splitlines(keepends=True)

    def _write(self, lines: list[str]) -> None:
        with self._one_sentence():
            write_whole(self._file, "".join(lines))

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._file} cannot be written ({why_not_written(error, self._file.parent)}); make room or permit "
                "it, then continue with ckpt_path=last"
            ) from error
