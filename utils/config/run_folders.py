"""Run folders: the checkpoint that `ckpt_path` means, the folder of a run, and a separate folder for each run."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from utils.config.command_line import quoted
from utils.config.multirun_subprocess import started_by_others
from utils.errors import UserError, fail

TIME = "%Y-%m-%d_%H-%M-%S"
LAST = Path("checkpoints", "last.ckpt")


def find_checkpoint(output_dir: str, run_name: str, ckpt_path: str | None) -> Path | None:
    """Returns the checkpoint that `ckpt_path` means: None, a path, or ``last`` for the newest run of `run_name`.

    Raises:
        UserError: if there is no such file, or the newest run has no checkpoint yet.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        if not Path(ckpt_path).is_file():
            raise UserError(
                f"ckpt_path={ckpt_path}: there is no such file; give the path of a .ckpt file under {output_dir}/, or "
                f"'last' for the newest run of {run_name}"
            )
        return Path(ckpt_path)
    runs = sorted((run for run in Path(output_dir, run_name).glob("*") if run.is_dir()), key=_begun, reverse=True)
    with_checkpoint = [run for run in runs if (run / LAST).is_file()]
    if not with_checkpoint:
        raise UserError(
            f"ckpt_path=last: no run of {run_name} under {output_dir}/ has a checkpoint; give the options that it was "
            "started with, output_dir too, or the path of a .ckpt file"
        )
    if runs[0] != with_checkpoint[0]:
        raise UserError(
            f"ckpt_path=last: the newest run, {runs[0]}, has no checkpoint (yet); wait for it, delete its folder, or "
            f"continue the newest that has one with ckpt_path={with_checkpoint[0] / LAST}"
        )
    return runs[0] / LAST


@lru_cache
def run_dir(task: str, output_dir: str, run_name: str, ckpt_path: str | None, dataset: str) -> str:
    """Returns the folder of a run: a new one, or the folder of the checkpoint that it continues or tests.

    Raises:
        UserError: if torchrun or srun started the processes of a new run: each would name a folder by its own time.
    """
    if task in ("plan", "embed"):
        return output_dir  # neither writes into a run's folder
    checkpoint = find_checkpoint(output_dir, run_name, ckpt_path)
    if checkpoint is None:
        if started_by_others():
            raise UserError(
                "run_dir: processes started by torchrun or srun need the same folder, but each would choose its own; "
                f"give it, as in run_dir={output_dir}/{run_name}/my_run"
            )
        return str(Path(output_dir, run_name, datetime.now().strftime(TIME)))
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return str(run / {"test": f"test-{dataset}", "export": "export"}.get(task, ""))


def last_of_first_process(cfg: DictConfig) -> str | None:
    """Returns `cfg.ckpt_path`; in a process that Lightning started, ``last`` becomes the first process's checkpoint.

    Otherwise this process might find a newer run of the same name.
    """
    if cfg.ckpt_path == "last" and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        folder = Path(cfg.run_dir)  # the run's folder, or a test's folder inside it
        return next((str(run / LAST) for run in (folder, folder.parent) if (run / LAST).is_file()), "last")
    return cfg.ckpt_path


def claim(wanted: str | Path) -> Path:
    """Creates and returns the folder `wanted` or, if it exists, `wanted` with the suffix -2, -3, ...

    Processes that ask for the same folder at the same time get different folders.

    Raises:
        UserError: if the folder cannot be created.
    """
    for folder in _numbered(Path(wanted)):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"{folder} cannot be created ({error.strerror}); name a place with room and the right to write: "
                "output_dir=..."
            ) from error
        return folder
    raise AssertionError("there is always a next number")


def settle(cfg: DictConfig) -> None:
    """Sets `cfg.run_dir` to the folder of a new run or test, and creates it if Hydra has not.

    Raises:
        UserError: if that folder holds the records of another run.
    """
    if any(int(os.environ.get(name, "0")) > 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        return  # the first process does it
    if OmegaConf.is_interpolation(cfg, "run_dir"):  # other code composed the config and named no folder
        cfg.run_dir = str(claim(cfg.run_dir))
    left = [name for name in ("config.yaml", "metrics.json", "checkpoints") if Path(cfg.run_dir, name).exists()]
    if left:
        raise UserError(
            f"run_dir: {cfg.run_dir} is the folder of another run, it has {', '.join(left)}; name another folder, or "
            f"continue that run with ckpt_path={Path(cfg.run_dir) / LAST}"
        )
    Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)


def remove_if_empty(folder: str | Path) -> None:
    """Removes the folder of a run that failed at its start, if it holds nothing but Hydra's empty log."""
    with suppress(OSError):
        left = list(Path(folder).iterdir())
        if all(file.suffix == ".log" and file.stat().st_size == 0 for file in left):
            for file in left:
                file.unlink()
            Path(folder).rmdir()


class ClaimFolder(Callback):
    """A callback that gives each new run, test and sweep a separate folder, even if two start in the same second.

    It leaves a folder that the command line names, and the folder of a continued run, as they are. The first process
    of a run creates the folder; Lightning passes it to the others as `hydra.run.dir`.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        named = any(override.lstrip("+").startswith("run_dir=") for override in config.hydra.overrides.task)
        is_new = config.task in ("test", "export") or config.ckpt_path is None
        if not named and config.task not in ("plan", "embed") and is_new:
            self._claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._claim(config, "sweep")

    def _claim(self, config: DictConfig, kind: str) -> None:
        key = f"hydra.{kind}.dir="
        if started_by_others() or any(override.startswith(key) for override in config.hydra.overrides.hydra):
            return
        try:
            wanted = config.hydra[kind].dir
        except OmegaConfBaseException:
            return  # Hydra reports this error next; if a callback raises it, Hydra only warns
        try:
            folder = str(claim(wanted))
        except UserError as error:
            fail(str(error))
        with read_write(config.hydra):
            config.hydra[kind].dir = folder
            if kind == "sweep":  # each job composes its config again
                config.hydra.overrides.hydra.append(f"{key}{quoted(folder)}")


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _begun(run: Path) -> tuple[str, int]:
    """Returns the sort key of a run's start: the time in its name or, without one, the time of its folder."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:-(\d+))?", run.name)
    if match is None:
        return datetime.fromtimestamp(run.stat().st_mtime).strftime(TIME), 0
    return match[1], int(match[2] or 1)
