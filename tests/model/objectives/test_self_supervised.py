"""SimCLR against a per-pair loop on float64 scalars."""

import pytest
import torch
from torch import Tensor

from model.objectives import simclr
from tests.memory import LargestTensor

TEMPERATURE = 0.2  # not the default


def rows(batch: int, seed: int) -> Tensor:
    return 3 * torch.randn(batch, 16, generator=torch.Generator().manual_seed(seed))


def slow_simclr(a: Tensor, b: Tensor) -> Tensor:
    projections = [*a, *b]
    total = torch.zeros((), dtype=a.dtype)
    for i, u in enumerate(projections):
        similarity = {}
        for j, v in enumerate(projections):
            if j != i:
                similarity[j] = ((u * v).sum() / (u.norm() * v.norm()) / TEMPERATURE).exp()
        positive = similarity[(i + len(a)) % len(projections)]
        total = total - (positive / sum(similarity.values())).log() / len(projections)
    return total


@pytest.mark.parametrize("batch", [2, 5, 24])
def test_equals_the_slow_loop_in_value_and_gradient(batch: int) -> None:
    fast_inputs = [rows(batch, seed).requires_grad_() for seed in (1, 2)]
    slow_inputs = [rows(batch, seed).double().requires_grad_() for seed in (1, 2)]
    fast = simclr(fast_inputs[0], fast_inputs[1], TEMPERATURE)
    slow = slow_simclr(*slow_inputs)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    for got, expected in zip(
        torch.autograd.grad(fast, fast_inputs), torch.autograd.grad(slow, slow_inputs), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 48, 100])
def test_rows_compared_in_chunks_are_the_same_at_less_memory(chunk: int) -> None:
    whole_inputs, inputs = ([rows(24, seed).requires_grad_() for seed in (1, 2)] for _ in range(2))
    whole = simclr(whole_inputs[0], whole_inputs[1])
    with LargestTensor() as seen:
        found = simclr(inputs[0], inputs[1], chunk=chunk)
        gradients = torch.autograd.grad(found, inputs)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(gradients, torch.autograd.grad(whole, whole_inputs))
    assert seen.numel == max(48 * min(chunk, 48), 48 * 16)  # comparisons, or the rows themselves


def test_own_view_is_no_candidate() -> None:
    """Were a row its own candidate, two perfectly equal views could not beat log 2."""
    same = torch.eye(4)
    assert simclr(same, same, temperature=0.01) < 1e-6


def test_does_not_depend_on_the_norm_or_on_the_order_of_the_views() -> None:
    a, b = rows(5, 1), rows(5, 2)
    torch.testing.assert_close(simclr(a, b), simclr(7 * a, b))
    torch.testing.assert_close(simclr(a, b), simclr(b, a))


def test_one_sample_gives_a_zero_that_is_connected() -> None:
    a, b = rows(1, 1).requires_grad_(), rows(1, 2).requires_grad_()
    loss = simclr(a, b)
    loss.backward()
    assert loss == 0
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros_like(a))
