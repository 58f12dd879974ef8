"""A job of a multirun that takes several processes runs as a command of its own.

Lightning starts the other processes of a job by repeating the command line. That of a multirun is the whole sweep, so
every process would start the sweep again; and the processes of one job would still be joined when the next one begins.
A command for each job has neither trouble, whatever Hydra's launcher is: its command line is that of the job alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from utils.checkpoints.disk import scratch_folder
from utils.config.command_line import quoted
from utils.errors import UserError
from utils.training.signals import END_WITH_PARENT

OF_THE_SWEEP = ("hydra.mode=", "hydra.run.dir=")


def started_by_others() -> bool:
    """Whether torchrun or srun has started this process as one of several, or Lightning has."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def needs_own_command(trainer: DictConfig) -> bool:
    """Whether this job is one of a multirun and Lightning is to start processes for it."""
    several = trainer.devices != 1 or trainer.num_nodes != 1
    return HydraConfig.get().mode == RunMode.MULTIRUN and several and not started_by_others()


def run_own_command(script: Path) -> Any:
    """Returns what `script` returns for this job, run as a command with the job's overrides in the job's folder.

    Raises:
        UserError: it fails; it has said why.
    """
    hydra = HydraConfig.get()
    with scratch_folder(Path(hydra.runtime.output_dir) / "returned") as folder:
        returned = folder / "returned.json"
        command = [sys.executable, str(script), *_arguments(hydra, returned)]
        process = subprocess.Popen(command, cwd=hydra.runtime.cwd, env={**os.environ, END_WITH_PARENT: "1"})
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if status != 0:
            raise UserError(f"the command of this job ended with status {status}; its own message stands above")
        return json.loads(returned.read_text(encoding="utf-8"))


class SaveReturned(Callback):
    """Writes what a job returned to `file`, from the first of its processes."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status == JobStatus.COMPLETED and os.environ.get("LOCAL_RANK", "0") == "0":
            self._file.write_text(json.dumps(job_return.return_value), encoding="utf-8")


def _arguments(hydra: Any, returned: Path) -> list[str]:
    """Returns the command line of the job alone."""
    places = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    callback = f"{{_target_: {__name__}.SaveReturned, file: {quoted(returned)}}}"
    return [
        *places,
        f"--config-name={hydra.job.config_name}",
        *hydra.overrides.task,
        *(override for override in hydra.overrides.hydra if not override.startswith(OF_THE_SWEEP)),
        f"hydra.run.dir={quoted(hydra.runtime.output_dir)}",
        f"+hydra.callbacks.returned={callback}",
    ]
