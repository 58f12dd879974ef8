"""Notebook backends, small /dev/shm, terminals without UTF-8, few open files, a home that cannot be written."""

import os
import resource
import signal
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import Dataset

from data.loading.loader import evaluation_loader
from tests.figures import figures
from tests.small_run import SMALL
from utils.config.surroundings import HOME_CACHES, check_room_for_workers, settle_surroundings
from utils.errors import UserError
from utils.report.reports import save_metrics
from utils.report.sweep import CompareRuns

ROOT = Path(__file__).parents[3]
MIB = 2**20


def test_too_little_shared_memory_is_told_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_bavail=64 * MIB // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: {"/dev/shm": disk}[path])
    check_room_for_workers(0, 100 * MIB)
    check_room_for_workers(4, 8 * MIB)
    with pytest.raises(UserError, match=r"up to 72\.0 MiB of batches in /dev/shm, which has 64\.0 MiB left") as caught:
        check_room_for_workers(4, 9 * MIB)
    assert "docker run --shm-size=1g), or set dataset.num_workers=0" in str(caught.value)
    with pytest.raises(UserError, match="up to 128"):
        check_room_for_workers(4, 8 * MIB, processes=2)


def test_too_few_open_files_are_told_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (48, 48))
    check_room_for_workers(0, MIB)
    with pytest.raises(UserError, match=r"num_workers=2 needs about \d+ open files, and this shell allows 48: allow"):
        check_room_for_workers(2, MIB)


class CannotBeHandedOver(Dataset[Any]):
    """Its samples cannot leave the process that loads them, like those for which shared memory is too small."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return lambda: index


@pytest.mark.timeout(60)
def test_a_batch_that_is_lost_on_its_way_ends_the_run_in_a_sentence() -> None:
    loader = evaluation_loader(CannotBeHandedOver(), list, batch_size=2, num_workers=1)
    with pytest.raises(UserError, match=r"a loading process died, .* --shm-size"):
        list(loader)


def test_a_run_goes_through_in_a_notebooks_ascii_environment_without_a_home(small_root: Path, tmp_path: Path) -> None:
    """One sweep of one job for all: what it prints, what it draws, what it writes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MPL", "LC_"))}
    environment |= {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONIOENCODING": "ascii",
        "HOME": str(tmp_path / "nowhere"),
        "TMPDIR": str(tmp_path / "no_tmp"),
        "WANDB_MODE": "offline",
    }
    options = (
        f"dataset_root_dir={small_root}",
        f"output_dir={tmp_path / 'ổ'}",
        "dataset.num_workers=1",
        "logger=wandb",
    )
    command = [sys.executable, "trainer.py", "-m", *SMALL, *options]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    [sweep] = (tmp_path / "ổ" / "sweeps").iterdir()
    assert f"run     {tmp_path}/\\u1ed5/sweeps/" in result.stdout
    assert (sweep / "comparison.txt").is_file()
    assert len(list(sweep.glob("*/similarities.png"))) == 1


def test_a_terminal_that_lacks_a_letter_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = figures(1, 2, 3, 4, 5, queries=3)
    facts = {"strategy": "irra", "dataset": "toy", "backbone": "clip", "lora": "full", "val_protocol": "held_out"}
    for seed in (1, 2):
        save_metrics(tmp_path / str(seed), {"t2i": ranked, "i2t": ranked}, facts | {"seed": seed})
    terminal = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    sweep = CompareRuns()
    sweep._sweep = tmp_path
    with pytest.raises(UnicodeEncodeError):
        sweep._report()
    assert "mean ± sample" in (tmp_path / "comparison.txt").read_text(encoding="utf-8")
    for name in ("MPLBACKEND", "PYTHONIOENCODING", *HOME_CACHES):
        monkeypatch.setenv(name, "")
    settle_surroundings()
    sweep._report()
    terminal.seek(0)
    assert "mean \\xb1 sample standard deviation over n seeds" in terminal.read()


def test_what_a_dead_process_leaves_behind_is_the_same_sentence() -> None:
    class Dies(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"set dataset.num_workers=0"):
        list(evaluation_loader(Dies(), list, batch_size=2, num_workers=1))
