import signal
from pathlib import Path

import pytest

from tests.forked import die, forked
from tests.same_run import steady_rows
from utils.report.csv_logger import AppendingCSVLogger


def logger(folder: Path) -> AppendingCSVLogger:
    return AppendingCSVLogger(folder, name="logs", version="", flush_logs_every_n_steps=1)


def test_rows_after_the_checkpoint_and_a_torn_line_are_cut(tmp_path: Path) -> None:
    first = logger(tmp_path)
    for step in range(3):
        first.log_metrics({"loss": step / 2}, step)
    counted = first.count_rows()
    first.log_metrics({"val": 7.0}, 2)
    file = tmp_path / "logs" / "steps.csv"
    with file.open("a") as lines:
        lines.write("0.5,3")
    again = logger(tmp_path)
    assert again.count_rows() == 4
    again.cut_rows(counted)
    again.log_metrics({"loss": 9.0}, 3)
    rows = steady_rows(file)
    assert [(row["loss"], row["step"], row["val"]) for row in rows[-2:]] == [("1.0", "2", ""), ("9.0", "3", "")]
    assert len(rows) == 4


def test_a_kill_while_the_header_grows_keeps_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = logger(tmp_path)
    first.log_metrics({"loss": 1.0}, 0)
    before = (tmp_path / "logs" / "steps.csv").read_bytes()
    monkeypatch.setattr("utils.checkpoints.disk.os.fsync", die)
    assert forked(lambda: first.log_metrics({"val": 2.0}, 1)) == -signal.SIGKILL
    assert (tmp_path / "logs" / "steps.csv").read_bytes() == before
