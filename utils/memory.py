"""How much memory tensors take at the peak of a computation, real or fake ones."""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB: Final = 2**30
OTHER: Final = "other"
_BLOCK: Final = 512  # bytes; what the CUDA allocator rounds up to


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by kind, and remembers the moment when they were most.

    What an operator makes is counted from then on, as `OTHER`, until its last reference is gone; `count` adds tensors
    from before, and says of what kind tensors are. What a kernel takes and frees within itself is not seen. Under
    FakeTensorMode, whose tensors live as long as real ones would, nothing is allocated.

    Decision: not torch.distributed._tools.MemTracker, which refuses a module that is called twice in a step and
    is hooked to modules throughout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.peak: Mapping[str, int] = {}
        self._most = 0
        self._kinds: dict[int, str] = {}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Counts the storages of `tensors` under `kind`, whatever they were counted under before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), -(-storage.nbytes() // _BLOCK) * _BLOCK
            if key in self._kinds:
                self.now[self._kinds[key]] -= size
            else:
                self._alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._forget(key, size))  # type: ignore[misc]
            self._kinds[key] = kind
            self.now[kind] += size

    def _forget(self, key: int, size: int) -> None:
        self.now[self._kinds.pop(key)] -= size
        del self._alive[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.count((tensor for tensor in made if id(tensor.untyped_storage()) not in self._kinds), OTHER)
        total = self.now.total()
        if total > self._most:
            self._most, self.peak = total, dict(self.now)
        return result


class LikeCuda(TorchFunctionMode):
    """Makes CPU tensors take the memory of CUDA ones, where the two differ by more than rounding.

    Dropout keeps a mask of one byte per element, not the noise; layer norm under autocast gives fp32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, training)[0] if training and 0 < p < 1 else input


def track_gradients(module: nn.Module, tracker: MemoryTracker, kind: str) -> list[torch.utils.hooks.RemovableHandle]:
    """Lets `tracker` count the gradients of the parameters of `module` under `kind` as soon as they are there."""
    return [
        parameter.register_post_accumulate_grad_hook(lambda p: tracker.count([p.grad], kind))
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
