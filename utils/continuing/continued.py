"""The checkpoint that a run continues: its checks, its position, and the differences of the options."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from utils.checkpoints.schema import check_progress
from utils.checkpoints.weights import load_weights, read_checkpoint, refused_to_continue
from utils.config.multirun_subprocess import needs_own_command
from utils.continuing.taken_over import continued_config
from utils.errors import UserError
from utils.report.provenance import checkpoint_info
from utils.report.run_record import KEY


class Continued:
    """A checkpoint whose training continues, and the config of this training.

    Args:
        cfg: the command's config.
        path: path of the checkpoint.

    Raises:
        UserError: if the config does not fit the checkpoint, or nothing is left to train.
    """

    def __init__(self, cfg: DictConfig, path: Path) -> None:
        checkpoint: dict[str, Any] = dict(read_checkpoint(path))
        with refused_to_continue(path):
            check_progress(checkpoint)
        self.config, self._differences = continued_config(cfg, checkpoint["config"], path)
        self.info = checkpoint_info(path, checkpoint)
        self._checkpoint = checkpoint
        self.path = path
        self._epochs = _count(checkpoint, "loops", "fit_loop", "epoch_progress", "current", "processed")
        self._step = _count(checkpoint, "global_step")
        self._refuse_finished()
        if HydraConfig.initialized() and needs_own_command(self.config.trainer) != needs_own_command(cfg.trainer):
            raise UserError(
                f"ckpt_path: {path} was trained with trainer.devices={self.config.trainer.devices} trainer.num_nodes="
                f"{self.config.trainer.num_nodes}, and a multirun needs both on its command line: add them"
            )

    def check(self, module: nn.Module, data: Mapping[str, Any]) -> None:
        """Loads the weights as a test, so that errors come before loggers start and files are written.

        Args:
            module: the module to train.
            data: facts about the dataset, see `utils.report.provenance.provenance`.

        Raises:
            UserError: if the weights belong to another model, or the annotations, the noise or the shards have changed.
        """
        load_weights(module, self._checkpoint["state_dict"], source=self.path)
        earlier = self._checkpoint.get(KEY)
        before = earlier.get("data") if isinstance(earlier, dict) else None
        before = before if isinstance(before, dict) else {}
        if before.get("annotations") not in (None, data["annotations"]):
            raise UserError(
                f"the annotations of {self.config.dataset.name} have changed since {self.path} was trained: restore "
                f"the old {data['file']}, or start a new run without ckpt_path"
            )
        if before.get("noise") != data.get("noise"):
            raise UserError(
                f"{self.config.dataset.noise_file or 'the noise'} moves other captions than when {self.path} was "
                "trained: restore the old file, or start a new run without ckpt_path"
            )
        if before.get("shards") != data.get("shards"):
            raise UserError(
                f"dataset.shards has other shards or another mixture than when {self.path} was trained: restore them, "
                "or start a new run without ckpt_path"
            )

    def take_checkpoint(self) -> dict[str, Any]:
        """Returns the content of the checkpoint and drops this object's reference to it."""
        checkpoint, self._checkpoint = self._checkpoint, {}
        return checkpoint

    def lines(self) -> list[str]:
        """Returns the lines on this checkpoint for the start of the run's output."""
        done = f"{self._epochs} of {self.config.trainer.max_epochs} epochs done, goes on at step {self._step}"
        return [f"from    {self.path}: {done}", *(f"differs {line}" for line in self._differences)]

    def _refuse_finished(self) -> None:
        done = {"max_epochs": self._epochs, "max_steps": self._step}
        limits = {key: OmegaConf.select(self.config, f"trainer.{key}") for key in done}
        reached = any(isinstance(limit, int) and 0 < limit <= done[key] for key, limit in limits.items())
        stopped_early = not any(line.startswith(("trainer.m", "callbacks.")) for line in self._differences)
        metrics = Path(self.config.run_dir, "metrics.json")
        is_own = self.path.resolve().is_relative_to(Path(self.config.run_dir).resolve())
        tested = _tested_step(metrics, self._step) == self._step
        if (reached and (tested or not is_own)) or (stopped_early and tested):
            raise UserError(
                f"ckpt_path: nothing is left to train of {self.path}: its {self._epochs} epochs are done; train "
                f"longer with trainer.max_epochs={2 * max(self._epochs, 1)}, or test it with task=test"
            )


def _tested_step(metrics: Path, default: int) -> int | None:
    """Returns the optimizer step after which a run was tested, None if it was not, `default` for older records."""
    try:
        report = json.loads(metrics.read_text(encoding="utf-8"))
        return report[KEY]["training"]["steps"] if KEY in report else default
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _count(values: Any, *keys: str) -> int:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, int) else 0
