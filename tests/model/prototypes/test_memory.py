"""Prototype memories: start, momentum, state."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from model.prototypes import PrototypeMemory
from utils.errors import UserError

DIM = 6
LABELS = torch.tensor([2, 0, -1, 2, 1, 2, 0])


def units(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def filled(momentum: float = 0.9) -> PrototypeMemory:
    memory = PrototypeMemory(DIM, momentum=momentum)
    memory.reset_prototypes(units(7), LABELS, seed=0)
    return memory


def test_starts_as_the_unit_mean_of_each_cluster() -> None:
    features = units(7)
    means = torch.stack([features[cluster == LABELS].mean(dim=0) for cluster in range(3)])
    torch.testing.assert_close(filled().prototypes, F.normalize(means, dim=1))


def test_starts_as_a_member_that_the_seed_draws() -> None:
    features = units(7)
    memory = PrototypeMemory(DIM, start="member")
    drawn = set()
    for seed in range(30):
        memory.reset_prototypes(features, LABELS, seed)
        members = (memory.prototypes @ features.T).argmax(dim=1)
        torch.testing.assert_close(memory.prototypes, features[members])
        assert LABELS[members].tolist() == [0, 1, 2]
        drawn |= set(members.tolist())
        memory.reset_prototypes(features, LABELS, seed)
        torch.testing.assert_close(memory.prototypes, features[members])
    assert drawn == {0, 1, 3, 4, 5, 6}


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_an_update_equals_one_sample_after_another(momentum: float) -> None:
    memory = filled(momentum)
    batch, labels = units(8, seed=1), torch.tensor([2, -1, 2, 0, -1, 2, 0, 2])
    expected = memory.prototypes.clone()
    for feature, label in zip(batch, labels.tolist(), strict=True):
        if label >= 0:
            expected[label] = momentum * expected[label] + (1 - momentum) * feature
    memory.update(batch, labels)
    torch.testing.assert_close(memory.prototypes, F.normalize(expected, dim=1))
    torch.testing.assert_close(memory.prototypes[1], expected[1])


def test_a_batch_of_outliers_moves_nothing() -> None:
    memory = filled()
    before = memory.prototypes.clone()
    memory.update(units(3, seed=1), torch.full((3,), -1))
    assert torch.equal(memory.prototypes, before)


def test_no_clusters_at_all() -> None:
    memory = filled()
    for start in ("mean", "member"):
        memory.start = start
        memory.reset_prototypes(units(4), torch.full((4,), -1), seed=0)
        assert memory.prototypes.shape == (0, DIM)
        memory.update(units(2), torch.full((2,), -1))


def test_features_with_gradient_leave_none_behind() -> None:
    memory = filled()
    memory.update(units(2, seed=1).requires_grad_(), torch.tensor([0, 1]))
    assert not memory.prototypes.requires_grad


@pytest.mark.parametrize("before", ["fresh", "other-clusters"])
def test_loading_takes_over_the_number_of_clusters(before: str) -> None:
    saved = filled()
    loaded = PrototypeMemory(DIM)
    if before == "other-clusters":
        loaded.reset_prototypes(units(9), torch.arange(9), seed=0)
    torch.nn.ModuleDict({"memory": loaded}).load_state_dict({"memory.prototypes": saved.prototypes})
    assert torch.equal(loaded.prototypes, saved.prototypes)
    loaded.update(units(2), torch.tensor([0, 1]))
    assert not torch.equal(loaded.prototypes, saved.prototypes)
    assert PrototypeMemory.resizable == set(saved.state_dict())


def test_loading_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for prototypes"):
        PrototypeMemory(DIM + 1).load_state_dict(filled().state_dict())


def test_misspelt_options_stop_before_training() -> None:
    with pytest.raises(UserError, match=r"momentum: 1\.1 given"):
        PrototypeMemory(DIM, momentum=1.1)
    with pytest.raises(UserError, match="start: 'random' given, expected one of mean, member"):
        PrototypeMemory(DIM, start="random")  # type: ignore[arg-type]


def test_an_update_asks_the_device_for_no_value() -> None:
    with FakeTensorMode():
        memory = PrototypeMemory(8, momentum=0.9, start="mean")
        memory.prototypes = torch.zeros(5, 8)
        memory.update(torch.zeros(6, 8), torch.zeros(6, dtype=torch.int64))
    assert memory.prototypes.shape == (5, 8)


def test_without_clusters_an_update_does_nothing() -> None:
    memory = PrototypeMemory(8, momentum=0.9, start="mean")
    memory.update(torch.ones(2, 8), torch.tensor([-1, -1]))
    assert memory.prototypes.shape == (0, 8)
