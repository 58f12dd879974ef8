"""Which loss, of which step, is the first that is no number any more, and what is said about it."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import torch

from utils.errors import UserError
from utils.training.nan_guard import FiniteLosses

TRAINER: Final[Any] = SimpleNamespace(gradient_clip_val=1.0, precision="32-true", current_epoch=0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_the_first_bad_loss_has_its_own_step_and_term_though_later_ones_are_bad_too(
    value: float, tmp_path: Path
) -> None:
    losses = FiniteLosses()
    for step, (itc, sdm) in {7: (1.0, 2.0), 8: (1.0, value), 9: (math.nan, math.nan), 10: (1.0, 2.0)}.items():
        losses.add(step, {"itc": torch.tensor(itc), "sdm": torch.tensor(sdm)})
    assert len(losses) == 4
    with pytest.raises(UserError, match=re.escape(f"loss term 'sdm' became {value} at step 8 (epoch 1): lower")):
        losses.check(TRAINER, tmp_path / "last.ckpt")


def test_what_was_looked_at_is_forgotten(tmp_path: Path) -> None:
    losses, last = FiniteLosses(), tmp_path / "last.ckpt"
    losses.add(0, {"itc": torch.tensor(1.0)})
    losses.check(TRAINER, last)
    assert len(losses) == 0
    losses.add(1, {"itc": torch.tensor(-math.inf)})
    with pytest.raises(UserError, match=r"at step 1 .*; there is no checkpoint from before$"):
        losses.check(TRAINER, last)
    losses.check(TRAINER, last)


@pytest.mark.parametrize(
    ("clip", "precision", "advice"),
    [
        (1.0, "32-true", ""),
        (None, "32-true", " or clip gradients with trainer.gradient_clip_val=1.0"),
        (0.5, "16-mixed", " or rule out AMP with trainer.precision=32-true"),
    ],
)
def test_what_is_not_done_yet_is_advised(clip: float | None, precision: str, advice: str, tmp_path: Path) -> None:
    losses, last = FiniteLosses(), tmp_path / "last.ckpt"
    last.touch()
    losses.add(0, {"itc": torch.tensor(math.nan)})
    told = f": lower optimizer.param_groups.default.lr{advice}; {last} is from before"
    trainer: Any = SimpleNamespace(gradient_clip_val=clip, precision=precision, current_epoch=0)
    with pytest.raises(UserError, match=f"{re.escape(told)}$"):
        losses.check(trainer, last)
