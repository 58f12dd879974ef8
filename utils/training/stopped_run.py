"""Continuation of a run that a signal has ended: a message tells the user how, or SLURM starts the job again.

With ``#SBATCH --signal=USR1@120`` SLURM warns a job before its time is over; submitit asks for another signal.
The job is then queued again. When SLURM starts it again, it continues from the run's last checkpoint.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from utils.config.command_line import quoted
from utils.training.signals import Stopped, stopping


@contextmanager
def continued_when_stopped(cfg: DictConfig) -> Iterator[None]:
    """Makes the job in the block continue where SLURM stopped it; if a signal ends it, says how to go on."""
    last = Path(cfg.run_dir) / "checkpoints" / "last.ckpt"
    checkpoint, is_slurms = _continued_by_slurm(), cfg.task == "train" and _is_job_of_slurm()
    if checkpoint is not None and cfg.ckpt_path is None:  # a job of submitit, which has no command line
        cfg.ckpt_path = str(checkpoint)
    if is_slurms:
        _mark().write_text(str(last.resolve()), encoding="utf-8")
    try:
        yield
    except Stopped as stop:
        stop.tell(_how_to_go_on(cfg, last))
        if is_slurms and stop.is_warning and last.is_file():
            _requeue(stop.signum)
        raise
    except BaseException:
        _forget(is_slurms)
        raise
    _forget(is_slurms)


def arguments_of_slurm() -> list[str]:
    """Returns the arguments to add if SLURM has started this job again: the checkpoint to continue from."""
    checkpoint = _continued_by_slurm()
    return [] if checkpoint is None else [f"ckpt_path={quoted(checkpoint)}"]


def _how_to_go_on(cfg: DictConfig, last: Path) -> str:
    if cfg.task != "train" or not last.is_file():
        return "nothing was saved; start again with the same command"
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return f"saved; continue this job, without the sweep, with its options and ckpt_path={last}"
    is_newest = Path(cfg.run_dir).resolve().parent == (Path(cfg.output_dir) / cfg.run_name).resolve()
    return f"{last} is saved; continue with the same command and ckpt_path={'last' if is_newest else last}"


def _is_job_of_slurm() -> bool:
    """Returns whether this is the first process of a run that SLURM may start again: a single run, or submitit's."""
    is_first = all(os.environ.get(rank, "0") == "0" for rank in ("SLURM_PROCID", "LOCAL_RANK"))
    if "SLURM_JOB_ID" not in os.environ or not is_first:
        return False
    return HydraConfig.get().mode == RunMode.RUN or callable(stopping.handler_before(signal.SIGUSR2))


def _requeue(signum: int) -> None:
    """Asks SLURM to queue this job again."""
    submitit = stopping.handler_before(signum)
    if callable(submitit):
        submitit(signum, None)
        return
    try:
        subprocess.run(["scontrol", "requeue", _job()], check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"SLURM does not queue job {_job()} again ({error}): submit it again", file=sys.stderr, flush=True)


def _continued_by_slurm() -> Path | None:
    """Returns the checkpoint of this job's run if SLURM has started the job again and the file exists, else None."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not _mark().is_file():
        return None
    checkpoint = Path(_mark().read_text(encoding="utf-8"))
    return checkpoint if checkpoint.is_file() else None


def _forget(is_slurms: bool) -> None:
    if is_slurms:
        _mark().unlink(missing_ok=True)


def _job() -> str:
    """Returns the number of this job; in an array, the array's number and the task's."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _mark() -> Path:
    """Returns the file that stores the checkpoint's path. SLURM starts a job again in the same folder."""
    return Path(f".slurm-{_job()}")
