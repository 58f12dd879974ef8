"""Counting what is alive: against hand-made cases, and fake tensors against real ones."""

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from utils.memory.trace import GRADIENTS, OTHER, WEIGHTS, MemoryTracker, fake_gpu, measure_step

KIB = 1024


def kib(count: int) -> torch.Tensor:
    return torch.zeros(count, KIB, dtype=torch.uint8)


def test_the_peak_is_when_most_was_alive() -> None:
    with MemoryTracker() as tracker:
        first = kib(3)
        second = kib(5)
        del first
        third = kib(1)
        del second, third
    assert tracker.peak == {OTHER: 8 * KIB}
    assert tracker.now.total() == 0


def test_views_and_changes_in_place_take_nothing() -> None:
    whole = kib(4)
    with MemoryTracker() as tracker:
        tracker.count([whole], WEIGHTS)
        half = whole[:2]
        half += 1
        whole.T.zero_()
    assert tracker.peak == {WEIGHTS: 4 * KIB}


def test_a_tensor_may_change_its_kind() -> None:
    """Also at a peak that it was part of."""
    with MemoryTracker() as tracker:
        made, gone = kib(2), kib(7)
        del gone
        later = kib(1)
        tracker.count([made, later], GRADIENTS)
        assert tracker.now == {OTHER: 0, GRADIENTS: 3 * KIB}
        assert tracker.peak == {OTHER: 7 * KIB, GRADIENTS: 2 * KIB}
        del made, later
    assert tracker.now.total() == 0


def test_small_tensors_take_a_block_of_the_allocator() -> None:
    with MemoryTracker() as tracker:
        kept = torch.zeros(1)
    assert tracker.peak == {OTHER: 512}
    assert kept.numel() == 1


@pytest.mark.parametrize("ddp", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2, 4])
def test_a_linear_layer_by_hand(accumulated: int, ddp: bool) -> None:
    """256 x 256 weights are 256 KiB, gradients as many, Adam has twice that; 64 rows in are 64 KiB, out as many."""
    with fake_gpu():
        layer = nn.Linear(256, 256, bias=False)
        rows = torch.zeros(64, 256)
        optimizer = AdamW(layer.parameters(), fused=True)
        step = measure_step(layer, lambda: layer(rows).sum(), optimizer, [rows], accumulated=accumulated, ddp=ddp)
    assert step.weights == 256 * KIB
    assert step.optimizer == 512 * KIB + 512  # the number of the step
    # Gradients of a second batch lie beside those that they are added to.
    assert step.gradients == 256 * KIB * (1 + ddp)
    assert step.activations >= (64 + 256 * (accumulated > 1)) * KIB
    assert step.activations <= (64 + 64 + 64 + 256 * (accumulated > 1)) * KIB + 4 * 512
    assert step.total == step.weights + step.gradients + step.optimizer + step.activations


def test_fake_and_real_steps_have_the_same_peak() -> None:
    def peak() -> tuple[int, ...]:
        model = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 64))
        rows = torch.zeros(100, 64)
        optimizer = AdamW(model.parameters(), fused=True)
        step = measure_step(model, lambda: model(rows).square().mean(), optimizer, [rows])
        assert isinstance(rows, FakeTensor) is fake
        return step.weights, step.gradients, step.optimizer, step.activations

    fake = False
    real = peak()
    fake = True
    with fake_gpu():
        assert peak() == real


def test_dropout_keeps_a_byte_per_element() -> None:
    rows = torch.zeros(64, KIB, requires_grad=True)
    with fake_gpu(), MemoryTracker() as tracker:
        noisy = F.dropout(rows * 1, 0.1)
    assert tracker.peak == {OTHER: (4 + 4 + 1) * 64 * KIB}
    with fake_gpu(), MemoryTracker() as tracker:
        same = F.dropout(rows * 1, 0.1, training=False)
    assert tracker.peak == {OTHER: 4 * 64 * KIB}
    assert noisy.shape == same.shape


def test_recomputed_activations_are_those_of_a_gpu_as_well() -> None:
    """Kept, each of 8 blocks has its output, its mask and what goes into it; recomputed, one has at a time."""

    def activations(keep: bool) -> int:
        with fake_gpu():
            layer = nn.Linear(KIB, KIB, bias=False)
            rows = torch.zeros(4 * KIB, KIB)

            def block(x: torch.Tensor) -> torch.Tensor:
                return F.dropout(layer(F.layer_norm(x, (KIB,))), 0.1)

            def loss() -> torch.Tensor:
                x = rows
                for _ in range(8):
                    x = block(x) if keep else checkpoint(block, x, use_reentrant=False)  # type: ignore[assignment]
                return x.sum()

            return measure_step(layer, loss, AdamW(layer.parameters(), fused=True), [rows]).activations

    assert activations(keep=False) < 0.7 * activations(keep=True)


def test_layer_norm_under_amp_is_fp32_as_on_a_gpu() -> None:
    with fake_gpu(), torch.autocast("cpu", torch.bfloat16):
        rows = torch.zeros(4, 8, dtype=torch.bfloat16)
        assert F.layer_norm(rows, (8,)).dtype == torch.float32


def test_attention_that_drops_out_is_fused() -> None:
    """The matrix of 512 x 512 weights for each of 8 heads would be 8 MiB."""
    with fake_gpu(), MemoryTracker() as tracker:
        queries = torch.zeros(1, 8, 512, 16, requires_grad=True)
        F.scaled_dot_product_attention(queries, queries, queries, dropout_p=0.1).sum().backward()
    assert tracker.peak[OTHER] < 2 * KIB * KIB


def test_the_cycle_collector_rests_while_tensors_are_fake() -> None:
    """PyTorch 2.9's ends a trace now and then, with a fake tensor that has lost its mode."""
    with fake_gpu():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="reduction dim"), fake_gpu():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert gc.isenabled()
