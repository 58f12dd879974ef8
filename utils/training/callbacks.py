"""Lightning callbacks: the progress bar, throughput and memory."""

import resource
import sys
import time
from collections.abc import Sequence
from math import log
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities import rank_zero_warn

from utils.training.progress import Clock, clock_time

SHOWN = {
    "train/loss": ("loss", "{:.3f}"),
    "val/t2i/R1": ("val R@1", "{:.2f}"),
    "throughput/images_per_s": ("img/s", "{:.0f}"),
}


def _shown(trainer: L.Trainer) -> dict[str, str]:
    metrics, data = trainer.callback_metrics, getattr(trainer, "datamodule", None)
    part = " (of a part)" if data is not None and data.dataset.limits else ""
    return {
        label + part * key.startswith("val/"): form.format(float(metrics[key]))
        for key, (label, form) in SHOWN.items()
        if key in metrics
    }


def _done(trainer: L.Trainer) -> float:
    """Returns the share of the training that is done."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    in_epoch = min(batches / max(trainer.num_training_batches, 1), 1.0)
    return min((trainer.fit_loop.epoch_progress.current.completed + in_epoch) / (trainer.max_epochs or 1), 1.0)


class Progress(TQDMProgressBar):
    """A progress bar on a terminal: epoch, loss, validation R@1, images per second, and the time left.

    The bar moves at every step. Its metrics change every `every_n_steps`, because reading them waits for the device.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else 0)
        self._every_n_steps = every_n_steps
        self._figures: dict[str, str] = {}
        self._clock: Clock | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._clock = Clock(_done(trainer))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        if not self._figures or not trainer.training or trainer.global_step % self._every_n_steps == 0:
            self._figures = _shown(trainer)
            left = None if self._clock is None or not trainer.training else self._clock.left(_done(trainer))
            if left is not None:
                self._figures["ends in"] = clock_time(left)
        return dict(self._figures)


class EpochLine(Callback):
    """A callback that prints the metrics of `Progress` as lines if there is no terminal.

    It prints a line at the end of each epoch, and whenever `every_seconds` have passed without one.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._training = self._epoch = Clock()
        self._last_line = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training = Clock(_done(trainer))
        self._last_line = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch = Clock()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._due(trainer):
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._print(trainer, f"batch {done:,}/{trainer.num_training_batches:,}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _without_terminal(trainer):
            self._print(trainer, took=f"took {clock_time(self._epoch.seconds)}")

    def on_validation_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self._evaluated(trainer, "validating", trainer.num_val_batches, *rest[3:])

    def on_test_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self._evaluated(trainer, "testing", trainer.num_test_batches, *rest[3:])

    def _evaluated(self, trainer: L.Trainer, what: str, batches: Sequence[float], batch: int, loader: int = 0) -> None:
        if self._due(trainer):
            side = ("images", "captions")[loader]
            print(f"{what}  {side}, batch {batch + 1:,}/{batches[loader]:,}", flush=True)
            self._last_line = time.monotonic()

    def _due(self, trainer: L.Trainer) -> bool:
        return time.monotonic() - self._last_line >= self._every_seconds and _without_terminal(trainer)

    def _print(self, trainer: L.Trainer, place: str = "", took: str = "") -> None:
        left = self._training.left(_done(trainer))
        ends = f"training ends in {clock_time(left)}" if left else ""
        figures = (f"{label} {value}" for label, value in _shown(trainer).items())
        parts = (f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", place, *figures, took, ends)
        print("  ".join(filter(None, parts)), flush=True)
        self._last_line = time.monotonic()


def _without_terminal(trainer: L.Trainer) -> bool:
    return trainer.is_global_zero and not sys.stderr.isatty()


class Throughput(Callback):
    """A callback that logs images per second and peak memory. A sample counts once, whatever its number of views."""

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._since = 0.0
        self._images = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()  # a continued run may start within an epoch

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
    """A callback that logs the fp16 loss scale and the number of overflows, at which steps are skipped.

    It reads the scale every `every_n_steps`, because reading waits for the device. The drop of the scale since then
    gives the number of overflows.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._scale: float | None = None
        self._skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self._scale, "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._scale, self._skipped = state_dict["scale"], state_dict["skipped"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and self._scale is None:  # None unless the run is continued
            self._scale = scaler.get_scale()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or trainer.global_step % self._every_n_steps:
            return
        scale = scaler.get_scale()
        if self._scale is not None and scale < self._scale:
            self._skipped += round(log(scale / self._scale, scaler.get_backoff_factor()))
            rank_zero_warn(f"fp16 gradients overflowed before step {trainer.global_step}: loss scale now {scale:g}")
        self._scale = scale
        pl_module.log_dict({"amp/scale": scale, "amp/overflows": float(self._skipped)})


class NoSignals(_SignalConnector):
    """A disabled signal connector: Lightning's would end on SIGTERM, unsaved, with status 0. See `signals`."""

    def register_signal_handlers(self) -> None:
        pass

    def teardown(self) -> None:
        pass


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory in bytes: of the GPU's allocator, or of the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
