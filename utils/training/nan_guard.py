"""Finds the first loss of a training that is no number any more."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class BadLoss(NamedTuple):
    """A loss that is NaN or infinite: its term, its value, and the step, counted as in the run's logs."""

    term: str
    value: float
    step: int


class FiniteLosses:
    """The losses of some steps, to be looked at together: one look waits for the device once."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Mapping[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Keeps the losses of a step, scalars by the name of their term, until the next look."""
        self._steps.append((step, losses))

    def first_bad(self) -> BadLoss | None:
        """Returns the first kept loss that is NaN or infinite, None if all are finite; forgets all."""
        if not self._steps:
            return None
        losses = torch.stack([torch.stack(list(raw.values())) for _, raw in self._steps]).cpu()
        steps, names = [step for step, _ in self._steps], list(self._steps[0][1])
        self._steps.clear()
        bad = (~losses.isfinite()).nonzero()
        if not len(bad):
            return None
        row, column = bad[0].tolist()
        return BadLoss(names[column], losses[row, column].item(), steps[row])
