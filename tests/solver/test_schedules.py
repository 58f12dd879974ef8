import copy
import math

import pytest
import torch
from torch import nn

from solver.schedules import build_schedule
from utils.errors import UserError

LR, START, END = 1e-5, 1e-6, 5e-6


def optimizer() -> torch.optim.Optimizer:
    """Two groups; the second has five times the rates of the first."""
    return torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": k * LR, "lr_start": k * START, "lr_end": k * END}
            for k in (1, 5)
        ]
    )


def rates(steps: int, group: int = 0, **schedule: object) -> list[float]:
    """The learning rate that each of the first `steps` optimizer steps uses."""
    sgd = optimizer()
    scheduler = build_schedule(sgd, **schedule)  # type: ignore[arg-type]
    used = []
    for _ in range(steps):
        used.append(sgd.param_groups[group]["lr"])
        sgd.step()
        scheduler.step()
    return used


def cosine_by_hand(steps_per_epoch: int, max_epochs: int, warmup_epochs: float) -> list[float]:
    warmup, total = round(steps_per_epoch * warmup_epochs), steps_per_epoch * max_epochs
    curve = [START + (LR - START) * i / warmup for i in range(warmup)]
    left = total - warmup
    for i in range(left):
        angle = math.pi * i / (left - 1)
        curve.append(END + (LR - END) * 0.5 * (1 + math.cos(angle)))
    return curve


@pytest.mark.parametrize(
    ("steps_per_epoch", "max_epochs", "warmup_epochs"), [(7, 6, 2), (7, 6, 0), (10, 3, 0.5), (3, 4, 1.5)]
)
def test_cosine_equals_the_slow_formula_at_every_step(steps_per_epoch: int, max_epochs: int, warmup_epochs: float):
    length = {"steps_per_epoch": steps_per_epoch, "max_epochs": max_epochs, "warmup_epochs": warmup_epochs}
    expected = cosine_by_hand(**length)
    assert len(expected) == steps_per_epoch * max_epochs
    assert rates(len(expected), name="cosine", **length) == pytest.approx(expected, rel=1e-12)
    fivefold = [5 * rate for rate in expected]
    assert rates(len(expected), group=1, name="cosine", **length) == pytest.approx(fivefold, rel=1e-12)


def test_by_epoch_is_the_schedule_of_irra_as_released():
    """From a tenth, linearly over 5 epochs, then 60 epochs' cosine to 0, whose end the last epoch does not reach."""
    used = rates(60 * 7, name="cosine", by="epoch", steps_per_epoch=7, max_epochs=60, warmup_epochs=5)
    for epoch in range(60):
        own = used[7 * epoch : 7 * (epoch + 1)]
        cosine = END + (LR - END) * (1 + math.cos(math.pi * (epoch - 5) / 55)) / 2
        expected = START + (LR - START) * epoch / 5 if epoch < 5 else cosine
        assert own == pytest.approx([expected] * 7, rel=1e-12)


def test_by_epoch_drops_at_milestones():
    used = rates(8, name="multistep", by="epoch", steps_per_epoch=2, max_epochs=4, warmup_epochs=0, milestones=[1, 3])
    assert used == [LR] * 8  # a factor of 1
    lowered = {"milestones": [1, 3], "factor": 0.1, "warmup_epochs": 0}
    used = rates(8, name="multistep", by="epoch", steps_per_epoch=2, max_epochs=4, **lowered)
    assert used == pytest.approx([LR] * 2 + [LR / 10] * 4 + [LR / 100] * 2)


def test_a_warm_up_or_a_milestone_between_two_steps_is_at_the_nearer_one():
    used = rates(9, name="multistep", steps_per_epoch=3, max_epochs=3, warmup_epochs=0.9, milestones=[1.9], factor=0.5)
    warmed = [START, START + (LR - START) / 3, START + (LR - START) * 2 / 3]
    assert used == pytest.approx([*warmed, *[LR] * 3, *[LR / 2] * 3], rel=1e-12)
    used = rates(9, name="cosine", steps_per_epoch=3, max_epochs=3, warmup_epochs="30%")  # 0.9 epochs
    assert used[:4] == pytest.approx([*warmed, LR], rel=1e-12)
    assert used[4] < LR


def test_a_warm_up_may_be_a_share_of_all_epochs():
    length = {"name": "cosine", "steps_per_epoch": 3, "max_epochs": 60}
    assert rates(180, warmup_epochs="20%", **length) == rates(180, warmup_epochs=12, **length)
    assert rates(180, warmup_epochs="2.5 %", **length) == rates(180, warmup_epochs=1.5, **length)
    with pytest.raises(UserError, match=r"warmup_epochs: expected epochs, such as 5, or a share .*, got '5 epochs'"):
        rates(1, warmup_epochs="5 epochs", **length)


def test_cosine_at_its_boundaries_and_beyond():
    used = rates(70, name="cosine", steps_per_epoch=10, max_epochs=6, warmup_epochs=2)
    assert used[0] == pytest.approx(START, rel=1e-12)
    assert used[19] < LR
    assert used[20] == LR == max(used)
    assert used[21] < LR
    assert used[58] > END
    assert used[59:] == pytest.approx([END] * 11, rel=1e-12)


def test_multistep_drops_at_each_milestone_after_the_warm_up():
    used = rates(
        40,
        name="multistep",
        steps_per_epoch=4,
        max_epochs=10,
        warmup_epochs=1,
        milestones=[3, 7.5],
        factor=0.1,
    )
    expected = [START + (LR - START) * i / 4 for i in range(4)]
    expected += [LR] * 8 + [LR * 0.1] * 18 + [LR * 0.01] * 10
    assert used == pytest.approx(expected, rel=1e-12)


def test_a_milestone_within_the_warm_up_counts_once_it_is_over():
    used = rates(6, name="multistep", steps_per_epoch=1, max_epochs=6, warmup_epochs=3, milestones=[2], factor=0.5)
    assert used[2] > START
    assert used[3:] == pytest.approx([LR / 2] * 3)


def test_constant_stays_at_the_rate_after_the_warm_up():
    used = rates(10, name="constant", steps_per_epoch=5, max_epochs=2, warmup_epochs=0.4)
    assert used == pytest.approx([START, (START + LR) / 2] + [LR] * 8, rel=1e-12)


@pytest.mark.parametrize("name", ["cosine", "multistep", "constant"])
def test_a_resumed_schedule_goes_on_exactly(name: str):
    schedule = {"name": name, "steps_per_epoch": 5, "max_epochs": 6, "warmup_epochs": 1, "milestones": [2, 4]}
    schedule["factor"] = 0.1
    straight = rates(30, **schedule)
    for stop in (3, 5, 17, 29):
        sgd = optimizer()
        scheduler = build_schedule(sgd, **schedule)
        for _ in range(stop):
            sgd.step()
            scheduler.step()
        saved = copy.deepcopy((sgd.state_dict(), scheduler.state_dict()))
        resumed = optimizer()
        again = build_schedule(resumed, **schedule)
        resumed.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
        used = []
        for _ in range(stop, 30):
            used.append(resumed.param_groups[0]["lr"])
            resumed.step()
            again.step()
        assert used == straight[stop:]


def test_a_training_of_one_step():
    assert rates(1, name="cosine", steps_per_epoch=1, max_epochs=1, warmup_epochs=0) == [LR]


def test_a_warm_up_longer_than_the_training_is_cut_and_told(caplog: pytest.LogCaptureFixture):
    used = rates(4, name="cosine", steps_per_epoch=4, max_epochs=1, warmup_epochs=5)
    assert used == pytest.approx([START + (LR - START) * i / 20 for i in range(4)])
    assert "lower scheduler.warmup_epochs" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "cosin"}, "Did you mean 'cosine'"),
        ({"max_epochs": -1}, "set trainer.max_epochs above 0"),
        ({"steps_per_epoch": 0}, "0 steps per epoch"),
        ({"warmup_epochs": -1}, "warmup_epochs of at least 0"),
        ({"factor": 0.0}, "factor in"),
        ({"milestones": [0]}, "milestones above 0"),
    ],
)
def test_settings_that_cannot_be_are_named(change: dict, message: str):
    schedule = {"name": "cosine", "steps_per_epoch": 5, "max_epochs": 2, "warmup_epochs": 1, **change}
    with pytest.raises(UserError, match=message):
        build_schedule(optimizer(), **schedule)
