"""The callback that writes a run's checkpoints: last.ckpt to continue from, and the best one."""

import re
import shutil
import signal
from itertools import chain, count
from pathlib import Path
from typing import Any, Final, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from utils.checkpoints.disk import sweep, whole_file
from utils.checkpoints.schema import STATE
from utils.checkpoints.weights import check_intact
from utils.continuing.loop_state import settle
from utils.errors import UserError, check_choice, nearest
from utils.report.csv_logger import AppendingCSVLogger
from utils.training.signals import Stopped, stopping

LAST: Final = "last.ckpt"
_BEST: Final = re.compile(r"best-\d+(-v\d+)?\.ckpt")


class Validation(NamedTuple):
    """A validation result that is not in a checkpoint yet."""

    epoch: int
    score: float


class Checkpoints(Checkpoint):
    """A callback that writes `folder`/last.ckpt, for ``ckpt_path=last``, and best-NNN.ckpt, where NNN is the epoch.

    last.ckpt stores the name of the best file. The callback writes a new best file beside the old one, then last.ckpt,
    and then removes best files that last.ckpt does not name. So a kill leaves either the old or the new state.

    It saves only when no step is incomplete: before a batch, after the previous batch was trained, logged and
    validated; or between epochs, before clustering makes the pseudo labels.

    Args:
        folder: the folder of the checkpoints.
        every_n_steps: also save within an epoch, after this number of optimizer steps; 0: only after each epoch.
        monitor: the logged metric that decides which checkpoint is best.
        mode: "max" if a higher value is better, else "min".
    """

    def __init__(self, folder: str, every_n_steps: int = 0, monitor: str = "val/t2i/R1", mode: str = "max") -> None:
        check_choice("callbacks.last.mode", mode, ("max", "min"))
        self._folder = Path(folder)
        self._every_n_steps = every_n_steps
        self._monitor = monitor
        self._sign = 1 if mode == "max" else -1
        self.best_model_path = ""  # the name that Lightning uses; empty if there is no best file yet
        self._best_score = float("nan")
        self._validation: Validation | None = None
        self._is_unsaved = False  # whether a batch or validation began after last.ckpt was written
        self._is_due = False
        self._step = 0  # global step at which the last batch began
        self._rows: int | None = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(STATE) or _state_of_older(checkpoint)
        if not _is_state(state):
            raise UserError(
                f"ckpt_path: {trainer.ckpt_path} does not name its best checkpoint as trainer.py does; start a new run"
            )
        self._rows = state.get("rows")
        if state.get("best"):
            self._find_best(state["best"], Path(str(trainer.ckpt_path)))
            self._best_score = state["score"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop |= any(_has_stopped(callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tidy(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tidy(trainer)  # in case training had no steps left

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_between_batches(trainer, is_end=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_between_batches(trainer, is_end=True)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # After some restarts Lightning's counter is one too high here, and metrics would be logged at the wrong step.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._save_between_batches(trainer)
        self._step = trainer.global_step
        self._hold()

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._has_stepped(trainer) and _is_to_stop(trainer):
            self._save_last(trainer)
            raise Stopped(stopping.received or signal.SIGTERM)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        figures = trainer.callback_metrics
        if self._monitor not in figures:
            raise UserError(
                f"callbacks.last.monitor: {self._monitor} is not a metric of the validation."
                f"{nearest(self._monitor, set(figures))} Choose one that begins with val/"
            )
        self._validation = Validation(trainer.current_epoch, float(figures[self._monitor]))
        self._hold()  # a continued run may begin with a validation

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        settle(checkpoint, batches_per_epoch=trainer.num_training_batches, validation_due=trainer.validating)
        csv = _csv_logger(trainer)
        checkpoint[STATE] = {
            "best": Path(self.best_model_path).name,
            "score": self._best_score,
            "rows": None if csv is None else csv.count_rows(),
        }

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        stopping.release()

    def _hold(self) -> None:
        self._is_unsaved = True
        stopping.hold()

    def _has_stepped(self, trainer: L.Trainer) -> bool:
        """Returns whether the previous batch ended in an optimizer step that last.ckpt does not include."""
        return self._is_unsaved and trainer.global_step > self._step

    def _save_between_batches(self, trainer: L.Trainer, *, is_end: bool = False) -> None:
        """Saves the checkpoints that are due, and ends the process if a signal has asked for it."""
        if not self._is_unsaved:
            return
        if self._validation is not None:
            self._save_best(trainer, self._validation)
            self._validation, self._is_due = None, True
        if not (is_end or self._has_stepped(trainer)):
            return  # checkpoints do not store accumulated gradients
        is_to_stop = _is_to_stop(trainer)
        is_nth = self._every_n_steps > 0 and trainer.global_step % self._every_n_steps == 0
        if is_end or is_nth or self._is_due or is_to_stop:
            self._save_last(trainer)
        if is_to_stop:
            raise Stopped(stopping.received or signal.SIGTERM)

    def _save_best(self, trainer: L.Trainer, validation: Validation) -> None:
        """Saves the model as the best one if its score in `validation` is better."""
        if self.best_model_path and not self._sign * (validation.score - self._best_score) > 0:
            return
        self._best_score = validation.score
        self.best_model_path = str(trainer.strategy.broadcast(_free_name(self._folder, validation.epoch)))
        trainer.save_checkpoint(self.best_model_path)

    def _save_last(self, trainer: L.Trainer) -> None:
        best = Path(self.best_model_path)
        if self.best_model_path and best.parent != self._folder:  # the run continues in another folder
            self.best_model_path = str(self._folder / best.name)
            if trainer.is_global_zero:
                with whole_file(self._folder / best.name) as file, best.open("rb") as source:
                    shutil.copyfileobj(source, file)
        trainer.save_checkpoint(self._folder / LAST)
        self._is_unsaved = self._is_due = False
        stopping.release()
        if trainer.is_global_zero:
            self._remove_other_best()

    def _remove_other_best(self) -> None:
        """Removes best files that last.ckpt does not name."""
        for file in self._folder.glob("best-*.ckpt"):
            if _BEST.fullmatch(file.name) and file.name != Path(self.best_model_path).name:
                file.unlink()

    def _find_best(self, name: str, continued: Path) -> None:
        """Takes over the best file that the checkpoint `continued` names."""
        found = [folder / name for folder in (self._folder, continued.parent) if (folder / name).is_file()]
        if not found:
            raise UserError(
                f"ckpt_path: {continued} names {name} as the run's best checkpoint so far, which is not beside it: "
                "put it back, or start a new run"
            )
        check_intact(found[0])
        self.best_model_path = str(found[0])

    def _tidy(self, trainer: L.Trainer) -> None:
        """Removes what a killed run wrote after the checkpoint that is continued."""
        if trainer.is_global_zero and trainer.ckpt_path is not None:
            csv = _csv_logger(trainer)
            if csv is not None and self._rows is not None:
                csv.cut_rows(self._rows)
            if Path(trainer.ckpt_path).resolve() == (self._folder / LAST).resolve():
                self._remove_other_best()
            sweep(self._folder)
        self._rows = None


def _is_to_stop(trainer: L.Trainer) -> bool:
    """Returns whether a signal has asked one of the run's processes to end."""
    received = stopping.received is not None
    return trainer.strategy.reduce_boolean_decision(received, all=False) if trainer.world_size > 1 else received


def _has_stopped(callback: Callback) -> bool:
    """Returns whether the restored early stopping had already ended the training."""
    if not isinstance(callback, EarlyStopping) or callback.stopping_reason == EarlyStoppingReason.NOT_STOPPED:
        return False
    is_patient = callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
    return not is_patient or callback.wait_count >= callback.patience


def _free_name(folder: Path, epoch: int) -> Path:
    """Returns the path of a new best file that does not exist yet."""
    names = (f"best-{epoch:03d}{version}.ckpt" for version in chain([""], (f"-v{n}" for n in count(1))))
    return next(folder / name for name in names if not (folder / name).exists())


def _is_state(state: Any) -> bool:
    """Returns whether `state` is what `Checkpoints` writes: the name of a best file, its score, a number of rows."""
    if not isinstance(state, dict):
        return False
    best, score, rows = state.get("best", ""), state.get("score", 0.0), state.get("rows")
    is_best = isinstance(best, str) and (not best or _BEST.fullmatch(best) is not None)
    return is_best and isinstance(score, float) and (rows is None or (type(rows) is int and rows >= 0))


def _csv_logger(trainer: L.Trainer) -> AppendingCSVLogger | None:
    found = (logger for logger in trainer.loggers if isinstance(logger, AppendingCSVLogger))
    return next(found, None) if trainer.is_global_zero else None


def _state_of_older(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the best file and score from an older checkpoint, written with Lightning's `ModelCheckpoint`."""
    for key, state in checkpoint.get("callbacks", {}).items():
        path, score = state.get("best_model_path"), state.get("best_model_score")
        if key.startswith("ModelCheckpoint") and path and isinstance(path, str) and isinstance(score, Tensor):
            return {"best": Path(path).name, "score": float(score.max())}
    return {}
