"""Which loss, of which step, is the first that is no number any more."""

import math

import pytest
import torch

from utils.training.nan_guard import BadLoss, FiniteLosses


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_the_first_bad_loss_has_its_own_step_and_term_though_later_ones_are_bad_too(value: float) -> None:
    losses = FiniteLosses()
    for step, (itc, sdm) in {7: (1.0, 2.0), 8: (1.0, value), 9: (math.nan, math.nan), 10: (1.0, 2.0)}.items():
        losses.add(step, {"itc": torch.tensor(itc), "sdm": torch.tensor(sdm)})
    assert len(losses) == 4
    bad = losses.first_bad()
    assert bad is not None
    assert (bad.term, bad.step) == ("sdm", 8)
    assert bad.value == pytest.approx(value, nan_ok=True)


def test_what_was_looked_at_is_forgotten() -> None:
    losses = FiniteLosses()
    losses.add(0, {"itc": torch.tensor(1.0)})
    assert losses.first_bad() is None
    assert len(losses) == 0
    losses.add(1, {"itc": torch.tensor(-math.inf)})
    assert losses.first_bad() == BadLoss("itc", -math.inf, 1)
    assert losses.first_bad() is None
