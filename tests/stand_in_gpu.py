"""A GPU made of CPU tensors: real numbers under CUDA's rules about devices, where there is no GPU and no driver.

Inside `stand_in_gpu`, "cuda" is there. A tensor on it wraps a tensor of the CPU, and what is computed with it, forward,
backward or by an optimizer, is computed there. PyTorch's own fake CUDA tensors have no values, and without a driver no
backward pass. Underneath, the wrappers are of "lazy", a type of device that autograd serves on every machine, so that
what PyTorch makes on the device of a tensor lies there too; who asks a wrapper for its device is told "cuda:0".
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA: Final = torch.device("cuda", 0)
ROOT: Final = Path(__file__).parents[1]

_aten: Final = torch.ops.aten
_COPIES: Final = (_aten._to_copy.default, _aten.copy_.default, _aten._foreach_copy_.default)
_READS_AT: Final = (_aten.index.Tensor, _aten._unsafe_index.Tensor)
_INDEXES: Final = (
    *_READS_AT,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index_put.default,
)
_TAKE_A_NUMBER: Final = (  # from the CPU, beside the pointwise operators
    *_INDEXES[2:],
    _aten.masked_fill.Tensor,
    _aten.masked_fill_.Tensor,
    _aten.fill.Tensor,
    _aten.fill_.Tensor,
    _aten._foreach_mul_.Tensor,
    _aten._foreach_div_.Tensor,
)
_UNKNOWN_SIZE: Final = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


class OnGpu(Tensor):
    """A tensor on the stand-in. `values`: its numbers, on the CPU."""

    values: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnGpu":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device="lazy",
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of stand_in_gpu, or in another thread")

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], *_: Any) -> "OnGpu":
        return OnGpu(inner["values"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.__reduce_ex__(protocol)  # what a checkpoint holds

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.values}, on the GPU"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        """Does nothing: memory is the CPU's."""


class StandInGpu(TorchDispatchMode):
    """Runs operators on `OnGpu` tensors and on the CPU's, and refuses what CUDA refuses.

    Attributes:
        waits: where the host had to wait for the device, once for each time: "file:line operator", of the innermost
            line of this project.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):  # of what follows, as it is under inference_mode
            with self:
                return func.decompose(*args, **kwargs)
        if func is _aten._pin_memory.default:
            return args[0].clone()
        tensors: list[Tensor] = []
        _changed((args, *kwargs.values()), Tensor, tensors.append)
        reads_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
        device = kwargs.get("device")
        to_gpu = reads_gpu if device is None else device.type in ("cuda", "lazy")
        if not (reads_gpu or to_gpu):
            return func(*args, **kwargs)
        if reads_gpu and func not in _COPIES:
            _check(func, args, tensors)
        if to_gpu and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func}: expected a generator of the GPU, found one of the CPU")
        if _waits(func, args, kwargs, to_gpu=to_gpu):
            self.waits.append(f"{_own_line()} {func}")
        run_kwargs = {key: _changed(value, OnGpu, _values) for key, value in kwargs.items()}
        if device is not None:
            run_kwargs["device"] = torch.device("cpu")
        result = func(*_changed(args, OnGpu, _values), **run_kwargs)
        if to_gpu:
            with torch.inference_mode(False):  # views of weights are tensors that autograd knows, as on a GPU
                result = _changed(result, Tensor, OnGpu)
        return return_and_correct_aliasing(func, args, kwargs, result) if reads_gpu else result


def _changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Returns `value` with each `x` of a kind changed, in lists and tuples too. PyTorch's trees would take longer."""
    if isinstance(value, kind):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_changed(part, kind, change) for part in value)
    return value


def _values(tensor: OnGpu) -> Tensor:
    return tensor.values


def _check(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raises RuntimeError where CUDA does: tensors of both devices, or an operator that it lacks."""
    there = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    if func in _INDEXES and isinstance(args[0], OnGpu):
        there = [tensor for tensor in there if all(tensor is not index for index in args[1])]
    if torch.Tag.pointwise in func.tags or func in _TAKE_A_NUMBER:
        there = [tensor for tensor in there if tensor.ndim]
    if there:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in there)
        raise RuntimeError(f"{func}: expected all tensors on one device, found cuda:0 and cpu (of shape {shapes})")
    if not _has_cuda_kernel(func):
        raise NotImplementedError(f"{func}: CUDA has no kernel for it")


def _waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, to_gpu: bool) -> bool:
    """Whether the host stands still until the device has done what it was told before."""
    if func in _COPIES:
        target, source = (to_gpu, args[0]) if func is _aten._to_copy.default else (isinstance(args[0], OnGpu), args[1])
        moves, asynchronous = isinstance(source, OnGpu) != target, kwargs.get("non_blocking", False) and target
        return moves and not asynchronous
    if func in _INDEXES:
        if func not in _READS_AT and args[2].numel() == 1:
            return False  # it fills under a mask
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) or not isinstance(index, OnGpu) for index in indices)
    return any(tag in func.tags for tag in _UNKNOWN_SIZE)


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _has_cuda_kernel(func: Any) -> bool:
    """Whether CUDA has `func`; true in a build of PyTorch that does not know."""
    name = func.name()
    return torch.version.cuda is None or torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CUDA")


def _own_line() -> str:
    """Returns "file:line" of the innermost line of this project, this file apart."""
    for frame, line in traceback.walk_stack(sys._getframe()):
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT)) and file != __file__ and "site-packages" not in file:
            return f"{Path(file).relative_to(ROOT)}:{line}"
    return "elsewhere"


class _Stream:
    """Work of a stream is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, other: "_Stream") -> None: ...
    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...


def _give(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


_LIKE_AN_RTX_3060: Final[Mapping[str, Any]] = {
    "_lazy_init": _give(None),
    "is_available": _give(True),
    "is_bf16_supported": _give(True),
    "device_count": _give(1),
    "current_device": _give(0),
    "set_device": _give(None),
    "get_device_properties": _give(SimpleNamespace(name="stand-in", major=8, minor=6, total_memory=12 * 2**30)),
    "max_memory_allocated": _give(0),
    "empty_cache": _give(None),
    "synchronize": _give(None),
    "is_current_stream_capturing": _give(False),
    "get_rng_state_all": _give([]),
    "Stream": _Stream,
    "stream": _Stream,
    "current_stream": _Stream,
}


@contextmanager
def stand_in_gpu() -> Iterator[StandInGpu]:
    """Inside, there is a GPU as far as the project, Lightning and PyTorch can tell."""
    getattr(torch._C, "_ensureCUDADeviceGuardSet", lambda: None)()  # FakeTensorMode's own step, from PyTorch 2.10 on
    lifts_cpu_only = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device="cuda") asks no driver
    try:
        with patch.multiple(torch.cuda, **_LIKE_AN_RTX_3060), StandInGpu() as gpu:
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts_cpu_only)
