"""Learning-rate schedules by optimizer step: a linear warm-up, then constant, stepped or cosine."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UserError, nearest

NAMES: Final = ("cosine", "multistep", "constant")

log = logging.getLogger(__name__)


class Schedule(LambdaLR):
    """Rates that are a function of the step and of the groups' own settings alone.

    Its state is the position: where settings or length are others when it is loaded, the rates follow these.
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
    warmup_epochs: float,
    steps_per_epoch: int,
    max_epochs: float,
    milestones: Sequence[float] = (),
    factor: float = 1.0,
) -> Schedule:
    """Returns a schedule to be stepped once per optimizer step; each group follows its own rates.

    With T steps in all and W in the warm-up, both rounded from epochs: step 0 uses the group's `lr_start`,
    step W its `lr`, linear in between. "cosine" then reaches `lr_end` at the last step, T - 1, and stays
    there; "multistep" multiplies `lr` by `factor` once for every milestone reached; "constant" stays at `lr`.

    Args:
        optimizer: from `solver.optimizers.build_optimizer`.
        name: "cosine", "multistep" or "constant".
        warmup_epochs: length of the warm-up in epochs, may be fractional.
        steps_per_epoch: optimizer steps, not batches, in an epoch.
        max_epochs: length of the training in epochs.
        milestones: epochs at which "multistep" lowers the rate.
        factor: what it multiplies the rate by, in (0, 1].

    Raises:
        UserError: unknown name, or numbers that cannot be.
    """
    if name not in NAMES:
        raise UserError(f"scheduler: there is no {name!r}, only {', '.join(NAMES)}.{nearest(name, NAMES)}")
    if steps_per_epoch < 1 or max_epochs <= 0:
        raise UserError(
            f"scheduler {name!r} has to know how long training takes, got {steps_per_epoch} steps per epoch "
            f"and {max_epochs} epochs; set trainer.max_epochs above 0."
        )
    if warmup_epochs < 0 or not 0 < factor <= 1 or any(milestone <= 0 for milestone in milestones):
        raise UserError(
            "scheduler: expected warmup_epochs of at least 0, milestones above 0 and a factor in (0, 1], got "
            f"{warmup_epochs}, {list(milestones)} and {factor}."
        )
    total = max(1, round(max_epochs * steps_per_epoch))
    warmup = round(warmup_epochs * steps_per_epoch)
    if warmup >= total:
        log.warning(
            "The warm-up (%g epochs) does not end within the training (%g epochs): the learning rate stays "
            "below its peak; lower scheduler.warmup_epochs.",
            warmup_epochs,
            max_epochs,
        )
    drops = [round(milestone * steps_per_epoch) for milestone in milestones]

    def scale(group: dict[str, Any]) -> Callable[[int], float]:
        lr, start, end = group["lr"], group["lr_start"], group["lr_end"]

        def at(step: int) -> float:
            if step < warmup:
                rate = start + (lr - start) * step / warmup
            elif name == "cosine":
                progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
                rate = end + (lr - end) * (1 + math.cos(math.pi * progress)) / 2
            else:
                rate = lr * factor ** sum(step >= drop for drop in drops)
            return rate / lr

        return at

    return Schedule(optimizer, [scale(group) for group in optimizer.param_groups])
