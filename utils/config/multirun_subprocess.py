"""Multi-process jobs of a multirun, each run as a separate command.

Lightning starts the other processes of a job by repeating the command line. In a multirun, the command line is the
whole sweep, so every process would start the sweep again. The processes of one job would also still be connected when
the next job begins. A separate command, whose command line is one job, avoids both problems with every launcher.
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
    """Returns whether torchrun, srun or Lightning started this process as one of several."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def needs_own_command(trainer: DictConfig) -> bool:
    """Returns whether this job belongs to a multirun and Lightning would start processes for it."""
    several = trainer.devices != 1 or trainer.num_nodes != 1
    return HydraConfig.get().mode == RunMode.MULTIRUN and several and not started_by_others()


def run_own_command(script: Path) -> Any:
    """Runs `script` as a command with this job's overrides and in its folder; returns what the script returns.

    Raises:
        UserError: if the command fails; it has printed the reason.
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
    """A callback that writes the job's return value to `file`, in the process with local rank 0."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status == JobStatus.COMPLETED and os.environ.get("LOCAL_RANK", "0") == "0":
            self._file.write_text(json.dumps(job_return.return_value), encoding="utf-8")


def _arguments(hydra: Any, returned: Path) -> list[str]:
    """Returns the command line of this single job."""
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
