"""Learning-rate schedules: a linear warm-up, then constant, multistep or cosine, by optimizer step or by epoch."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UserError, nearest

NAMES: Final = ("cosine", "multistep", "constant")
BY: Final = ("step", "epoch")

log = logging.getLogger(__name__)


class Schedule(LambdaLR):
    """A schedule whose rates depend only on the step and the settings of the groups.

    Its state is only the step. After loading, the rates follow the current settings and length of the training.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, scale, base in zip(self.optimizer.param_groups, self.lr_lambdas, self.base_lrs, strict=True):
            group["lr"], group["initial_lr"] = base * scale(self.last_epoch), base
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def build_schedule(
    optimizer: Optimizer,
    *,
    name: str,
    by: str = "step",
    warmup_epochs: float | str,
    steps_per_epoch: int,
    max_epochs: float,
    milestones: Sequence[float] = (),
    factor: float = 1.0,
) -> Schedule:
    """Returns a schedule that has to be stepped once per optimizer step. Each group follows its own rates.

    Time t is the optimizer step or the epoch (`by`), counted from 0. The training has T of them, the warm-up W. The
    rate is the group's `lr_start` at t = 0 and its `lr` at t = W, linear in between. "cosine" then falls to `lr_end`.
    By step, it reaches `lr_end` at the last step, T - 1. By epoch, it would reach it at epoch T, as in IRRA's released
    code (solver/lr_scheduler.py), so the last epoch is still above it. "multistep" multiplies `lr` by `factor` once
    for every milestone reached. "constant" stays at `lr`.

    Args:
        optimizer: from `solver.optimizers.build_optimizer`.
        name: "cosine", "multistep" or "constant".
        by: "step" or "epoch". With "epoch" the rate is constant within an epoch.
        warmup_epochs: length of the warm-up in epochs, which may be fractional, or a share of all epochs, as "20%".
        steps_per_epoch: number of optimizer steps, not batches, in an epoch.
        max_epochs: length of the training in epochs.
        milestones: epochs at which "multistep" lowers the rate.
        factor: factor of "multistep", in (0, 1].

    Raises:
        UserError: a name is unknown, or a number is out of range.
    """
    for key, value, known in (("name", name, NAMES), ("by", by, BY)):
        if value not in known:
            raise UserError(f"scheduler.{key}: there is no {value!r}, only {', '.join(known)}.{nearest(value, known)}")
    if steps_per_epoch < 1 or max_epochs <= 0:
        raise UserError(
            f"scheduler {name!r} needs the length of the training, got {steps_per_epoch} steps per epoch "
            f"and {max_epochs} epochs; set trainer.max_epochs above 0."
        )
    warmed = _epochs(warmup_epochs, max_epochs)
    if warmed < 0 or not 0 < factor <= 1 or any(milestone <= 0 for milestone in milestones):
        raise UserError(
            "scheduler: expected warmup_epochs of at least 0, milestones above 0 and a factor in (0, 1], got "
            f"{warmup_epochs}, {list(milestones)} and {factor}."
        )
    places = steps_per_epoch if by == "step" else 1  # values of t in an epoch
    total, warmup = max(1, round(max_epochs * places)), round(warmed * places)
    last = total - 1 if by == "step" else total  # t at which a cosine reaches lr_end
    if warmup >= total:
        log.warning(
            "The warm-up (%g epochs) does not end within the training (%g epochs): the learning rate stays "
            "below its peak; lower scheduler.warmup_epochs.",
            warmed,
            max_epochs,
        )
    drops = [round(milestone * places) for milestone in milestones]

    def scale(group: dict[str, Any]) -> Callable[[int], float]:
        lr, start, end = group["lr"], group["lr_start"], group["lr_end"]

        def at(step: int) -> float:
            place = step if by == "step" else step // steps_per_epoch
            if place < warmup:
                rate = start + (lr - start) * place / warmup
            elif name == "cosine":
                progress = min(1.0, (place - warmup) / max(1, last - warmup))
                rate = end + (lr - end) * (1 + math.cos(math.pi * progress)) / 2
            else:
                rate = lr * factor ** sum(place >= drop for drop in drops)
            return rate / lr

        return at

    return Schedule(optimizer, [scale(group) for group in optimizer.param_groups])


def _epochs(length: float | str, of: float) -> float:
    """Returns `length` in epochs. A string such as "20%" is a share of all epochs, `of`."""
    if not isinstance(length, str):
        return length
    try:
        return of * float(length.strip().removesuffix("%")) / 100 if length.strip().endswith("%") else float(length)
    except ValueError as error:
        raise UserError(
            f"scheduler.warmup_epochs: expected epochs, such as 5, or a share of all, such as 20%, got {length!r}."
        ) from error
