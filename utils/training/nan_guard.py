"""The first loss of a training that is no number any more, and what is left to do about it."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from utils.errors import UserError


class FiniteLosses:
    """The losses of some steps, to be looked at together: one look waits for the device once."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Mapping[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Keeps the losses of a step, scalars by the name of their term, until the next look."""
        self._steps.append((step, losses))

    def check(self, trainer: L.Trainer, last: Path) -> None:
        """Passes when no kept loss is NaN or infinite; forgets all.

        Args:
            last: checkpoint of the run, if there is one yet.

        Raises:
            UserError: the first that is, with what is left to do about it and the checkpoint from before.
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
