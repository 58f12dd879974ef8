"""A trace of a training step's peak memory, on fake tensors that behave like a GPU's."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB: Final = 2**30
WEIGHTS, GRADIENTS, STATES, OTHER = "weights", "gradients", "optimizer state", "activations"
_BLOCK: Final = 512  # bytes; the CUDA allocator rounds up to multiples of it


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a training step. activations includes the batch and 16-bit copies of weights."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def measure_step(
    module: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    inputs: Iterable[Tensor],
    *,
    accumulated: int = 1,
    ddp: bool = False,
) -> StepMemory:
    """Returns the peak of a training step after the first one, when the optimizer already has its state.

    Args:
        module: the model; its gradients are overwritten.
        loss: a function that computes the scalar loss from `inputs`.
        accumulated: batches in one step; from the second on, gradients of the earlier ones take memory.
        ddp: whether DDP's gradient buckets also take memory.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    buckets = [torch.empty_like(parameter) for parameter in trained] if ddp else []
    tracker = MemoryTracker()
    tracker.count([*module.parameters(), *module.buffers()], WEIGHTS)
    tracker.count((leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)), STATES)
    tracker.count(buckets, GRADIENTS)
    tracker.count(inputs, OTHER)
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p: tracker.count([p.grad], GRADIENTS))
        for parameter in trained
    ]
    with tracker:
        for _ in range(min(accumulated, 2)):
            torch.autograd.backward(loss())  # loss().backward() would switch `fake_gpu` off during recomputation
        optimizer.step()
    optimizer.zero_grad()
    for hook in hooks:
        hook.remove()
    return StepMemory(*(tracker.peak[kind] for kind in (WEIGHTS, GRADIENTS, STATES, OTHER)))


class MemoryTracker(TorchDispatchMode):
    """A dispatch mode that counts the bytes of all live storages by kind, and keeps the counts of the peak.

    The result of an operator counts as `OTHER` until its last reference is gone. `count` adds earlier tensors and
    changes the kind of tensors. Temporary memory inside a kernel is not counted. Under FakeTensorMode nothing is
    allocated; fake tensors live as long as real ones would.

    Decision: torch.distributed._tools.MemTracker is not used, because it refuses a module that is called twice in a
    step and depends on module hooks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._time = self._peak_time = 0
        self._kinds: dict[int, str] = {}
        self._born: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Counts the storages of `tensors` as `kind`; moves those already counted to this kind, also in `peak`."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), -(-storage.nbytes() // _BLOCK) * _BLOCK
            if key in self._kinds:
                for counted in (self.now, self.peak) if self._born[key] <= self._peak_time else (self.now,):
                    counted[self._kinds[key]] -= size
                    counted[kind] += size
            else:
                self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._forget(key, size))  # type: ignore[misc]
                self._born[key] = self._time
                self.now[kind] += size
            self._kinds[key] = kind

    def _forget(self, key: int, size: int) -> None:
        self.now[self._kinds.pop(key)] -= size
        del self._alive[key], self._born[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._time += 1
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.count((tensor for tensor in made if id(tensor.untyped_storage()) not in self._kinds), OTHER)
        if self.now.total() > self.peak.total():
            self.peak, self._peak_time = self.now.copy(), self._time
        return result


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Makes tensors in the block fake: they have shapes but no values, and count the memory that they need on a GPU.

    They are fake CPU tensors, because autograd does not run on fake CUDA tensors without a driver. Large differences
    between CPU and GPU are corrected: dropout keeps a mask of one byte per element instead of the noise, and layer
    norm under autocast returns fp32. Attention is assumed to be fused (flash or memory-efficient), also with dropout:
    it keeps queries, keys, values, its output and a logarithm per row, like the CPU's flash kernel.

    Python's cycle collector is off in the block: in PyTorch 2.9 it clears fake tensors that only autograd holds.
    """
    # A TorchFunctionMode would be off in the backward pass, where checkpointed activations are recomputed.
    like_cuda: dict[str, Any] = {
        "dropout": _dropout,
        "layer_norm": _layer_norm,
        "scaled_dot_product_attention": _attention,
    }
    with no_cycle_collection(), FakeTensorMode(allow_non_fake_inputs=True), patch.multiple(F, **like_cuda):
        yield


@contextmanager
def no_cycle_collection() -> Iterator[None]:
    """Turns Python's cycle collector off in the block; objects without references are still freed."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, training)[0] if training and 0 < p < 1 else input


def _layer_norm(input: Tensor, *args: Any, plain: Callable[..., Tensor] = F.layer_norm, **kwargs: Any) -> Tensor:
    return plain(input.float() if torch.is_autocast_enabled("cpu") else input, *args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *args: Any,
    plain: Callable[..., Tensor] = F.scaled_dot_product_attention,
    **kwargs: Any,
) -> Tensor:
    return plain(query, key, value, attn_mask, 0.0, *args, **kwargs)
