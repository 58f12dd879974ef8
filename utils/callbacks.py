"""Lightning callbacks: the resumable checkpoint, the progress bar, throughput and memory."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_warn


class LastCheckpoint(Checkpoint):
    """Keeps `folder`/last.ckpt, from which ``ckpt_path=last`` continues a killed run.

    Args:
        folder: where it lies.
        every_n_steps: also save within an epoch, every so many optimizer steps; 0: after each epoch only.
    """

    def __init__(self, folder: str, every_n_steps: int = 0) -> None:
        self._path = Path(folder) / "last.ckpt"
        self._every_n_steps = every_n_steps
        self._seen_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        stepped = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        if stepped and self._every_n_steps and trainer.global_step % self._every_n_steps == 0:
            trainer.save_checkpoint(self._path)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self._path)


SHOWN = {
    "train/loss": ("loss", "{:.3f}"),
    "val/t2i/R1": ("val R@1", "{:.2f}"),
    "throughput/images_per_s": ("img/s", "{:.0f}"),
}


def _shown(trainer: L.Trainer) -> dict[str, str]:
    metrics = trainer.callback_metrics
    return {label: form.format(float(metrics[key])) for key, (label, form) in SHOWN.items() if key in metrics}


class Progress(TQDMProgressBar):
    """One line on a terminal: epoch, loss, validation R@1 and images per second.

    The bar moves with every step, its figures every so many: reading one waits for the device.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else 0)
        self._every_n_steps = every_n_steps
        self._figures: dict[str, str] = {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        if not self._figures or not trainer.training or trainer.global_step % self._every_n_steps == 0:
            self._figures = _shown(trainer)
        return dict(self._figures)


class EpochLine(Callback):
    """One line an epoch with the same figures, where there is no terminal to draw a progress bar on."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not sys.stderr.isatty() and trainer.is_global_zero:
            figures = "  ".join(f"{label} {value}" for label, value in _shown(trainer).items())
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {figures}", flush=True)


class Throughput(Callback):
    """Logs images per second and peak memory; a sample counts once, whatever its number of views."""

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._since = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["index"])
        if (batch_idx + 1) % self._every_n_steps == 0:
            rate = self._images * trainer.world_size / max(time.perf_counter() - self._since, 1e-9)
            pl_module.log("throughput/images_per_s", rate)
            pl_module.log("memory/peak_gib", peak_memory(pl_module.device) / 2**30)
            self._restart()

    def _restart(self) -> None:
        self._since, self._images = time.perf_counter(), 0


class AmpOverflow(Callback):
    """Reports fp16 overflows: the loss scale, and how often it had to be lowered (steps skipped)."""

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._scale: float | None = None
        self._skipped = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or trainer.global_step % self._every_n_steps:
            return
        scale = scaler.get_scale()
        if self._scale is not None and scale < self._scale:
            self._skipped += 1
            rank_zero_warn(f"fp16 gradients overflowed before step {trainer.global_step}: loss scale now {scale:g}")
        self._scale = scale
        pl_module.log_dict({"amp/scale": scale, "amp/overflows": float(self._skipped)})


def peak_memory(device: torch.device) -> int:
    """Returns the peak in bytes: of the GPU's allocator, or the resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
