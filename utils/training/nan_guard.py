"""Detection of the first loss in training that is NaN or infinite."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from utils.errors import UserError


class FiniteLosses:
    """The losses of several steps, checked together so that the check waits for the device only once."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Mapping[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Stores the losses of a step (term -> scalar) until the next `check`."""
        self._steps.append((step, losses))

    def check(self, trainer: L.Trainer, last: Path) -> None:
        """Checks that no stored loss is NaN or infinite, and clears them.

        Args:
            last: path of the run's last checkpoint, which may not exist yet.

        Raises:
            UserError: for the first such loss; the message gives advice and the checkpoint from before.
        """
        if not self._steps:
            return
        losses = torch.stack([torch.stack(list(raw.values())) for _, raw in self._steps]).cpu()
        steps, names = [step for step, _ in self._steps], list(self._steps[0][1])
        self._steps.clear()
        bad = (~losses.isfinite()).nonzero()
        if not len(bad):
            return
        row, column = bad[0].tolist()
        advice = ["lower optimizer.param_groups.default.lr"]
        clip = trainer.gradient_clip_val
        if clip is None or clip > 1:
            advice.append("clip gradients with trainer.gradient_clip_val=1.0")
        if trainer.precision not in ("32-true", "64-true"):
            advice.append("rule out AMP with trainer.precision=32-true")
        before = f"{last} is from before" if last.is_file() else "there is no checkpoint from before"
        raise UserError(
            f"loss term {names[column]!r} became {losses[row, column].item()} at step {steps[row]} "
            f"(epoch {trainer.current_epoch + 1}): {' or '.join(advice)}; {before}"
        )
