"""The record of what a run has really done: steps, learning rates, time, and how the run was made."""

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from utils.checkpoints.disk import write_whole
from utils.config.dataset_name import dataset_name
from utils.continuing.plain_values import is_plain
from utils.report.provenance import checkpoint_info, provenance
from utils.training.callbacks import peak_memory

KEY = "provenance"  # of checkpoints and of metrics.json
COUNTED = ("images", "seconds", "peak_gib")  # accumulated over all starts of a run


class RunRecord(Callback):
    """A callback that keeps the run's provenance and counts its training; checkpoints store it, so counting goes on.

    It writes config.yaml when training begins, so a start that fails before leaves the run's record unchanged.
    Seconds count training only, without validation and without steps that a kill has undone.

    Args:
        cfg: the config of the training or test.
        data: facts about the dataset, see `provenance`.
        continued: facts about the continued checkpoint, if any, see `checkpoint_info`.
    """

    def __init__(self, cfg: DictConfig, data: Mapping[str, Any], continued: Mapping[str, Any] | None = None) -> None:
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        self.made_with = {**provenance(config, data), "continued": continued}
        self._cfg = cfg
        self._training: dict[str, Any] = {}
        self._counted = dict.fromkeys(COUNTED, 0.0)
        self._since: float | None = None
        self._wall_before, self._start = 0.0, time.perf_counter()

    def as_dict(self) -> dict[str, Any]:
        """Returns the record as plain containers."""
        wall = self._wall_before + time.perf_counter() - self._start
        return {**self.made_with, "training": dict(self._training), "wall_seconds": round(wall, 3)}

    def of_test(self, path: str | Path | None, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the record and the tested checkpoint; if another run trained it, with that run's training record.

        Args:
            path, checkpoint: file and content; None and empty if a backbone is tested without training.
        """
        record = self.as_dict() | {"tested": None if path is None else checkpoint_info(path, checkpoint)}
        if path is not None and not self._training:
            earlier = earlier_record(checkpoint)
            record |= {"training": earlier["training"], "options": earlier["options"]}
            record["tested"] |= trained_on(checkpoint, self._cfg.dataset.description.images_from)
        return record

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            path = Path(self._cfg.run_dir, "config.yaml")
            write_whole(path, OmegaConf.to_yaml(self._cfg, resolve=True))
        self._since = time.perf_counter()  # a continued run may start within an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counted["images"] += len(batch["index"]) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.training:
            self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._note(trainer)
        checkpoint[KEY] = self.as_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        earlier = earlier_record(checkpoint)
        self._training = dict(earlier["training"])
        self._counted = {key: _number(self._training.get(key)) for key in COUNTED}
        self._wall_before = float(earlier["wall_seconds"])

    def _pause(self) -> None:
        if self._since is not None:
            self._counted["seconds"] += time.perf_counter() - self._since
            self._since = None

    def _note(self, trainer: L.Trainer) -> None:
        if self._since is not None:
            self._pause()
            self._since = time.perf_counter()
        counted = self._counted
        counted["peak_gib"] = max(counted["peak_gib"], peak_memory(trainer.strategy.root_device) / 2**30)
        progress: Any = trainer.fit_loop.epoch_progress.current
        batches = trainer.fit_loop.epoch_loop.batch_progress
        validates = progress.started > progress.processed and batches.is_last_batch  # the epoch's last batch is done
        self._training = {
            "epochs": progress.processed + validates,
            "steps": trainer.global_step,
            "images": int(counted["images"]),
            "seconds": round(counted["seconds"], 3),
            "images_per_s": round(counted["images"] / counted["seconds"], 3) if counted["seconds"] else None,
            "peak_gib": round(counted["peak_gib"], 3),
            "learning_rates": {group["group"]: float(group["lr"]) for group in trainer.optimizers[0].param_groups},
        }


def earlier_record(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the training, options and wall time in a checkpoint's record; empty, None and 0 if they are absent."""
    record = checkpoint.get(KEY)
    record = record if isinstance(record, dict) else {}
    training, options = record.get("training"), record.get("options")
    return {
        "options": options if isinstance(options, str) and options.isalnum() else None,
        "training": training if isinstance(training, dict) and is_plain(training) else {},
        "wall_seconds": _number(record.get("wall_seconds")),
    }


def trained_on(checkpoint: Mapping[str, Any], images_from: Collection[str]) -> dict[str, Any]:
    """Returns the dataset that a checkpoint was trained on, and whether it shares a collection of images with a test.

    Args:
        images_from: the collections of the test's images.
    """
    config, record = (_mapping(checkpoint.get(name)) for name in ("config", KEY))
    dataset = _mapping(config.get("dataset"))
    name, known, recorded = dataset.get("name"), dataset.get("language"), _mapping(record.get("data")).get("language")
    language = next((text for text in (recorded, known) if _is_name(text)), None)
    if not _is_name(name):
        return {}
    collections = _mapping(dataset.get("description")).get("images_from")
    shares = isinstance(collections, list) and any(collection in images_from for collection in collections)
    return {"trained_on": name if language is None else dataset_name(name, language), "shares_images": shares}


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _is_name(value: Any) -> TypeGuard[str]:
    return type(value) is str and 0 < len(value) <= 100 and value.isprintable()


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0
