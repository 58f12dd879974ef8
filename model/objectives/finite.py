"""Stops a training whose losses are no numbers any more."""

from collections.abc import Mapping

import torch
from torch import Tensor

from utils.errors import UserError


class FiniteLosses:
    """Losses of steps that nobody has looked at yet: one look at many waits for the device once."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Mapping[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Keeps the losses of a step, scalars by the name of their term, until the next `check`."""
        self._steps.append((step, losses))

    def check(self) -> None:
        """Passes, and forgets, losses that are finite.

        Raises:
            UserError: the first that is NaN or infinite, with its term and step.
        """
        if not self._steps:
            return
        losses = torch.stack([torch.stack(list(raw.values())) for _, raw in self._steps]).cpu()
        steps, names = [step for step, _ in self._steps], list(self._steps[0][1])
        self._steps.clear()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(
                f"loss term {names[column]!r} became {losses[row, column].item()} at step {steps[row]}: "
                "lower optimizer.param_groups.default.lr, clip with trainer.gradient_clip_val=1.0, or rule "
                "out AMP with trainer.precision=32-true; the last checkpoint is from before"
            )
