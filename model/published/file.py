"""Reading of published weight files: nothing in them is executed, and prefixes of names are removed."""

import argparse
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from utils.checkpoints.tensor_files import UnreadableError, check_finite, read_pickled, read_safetensors
from utils.errors import UserError

State = dict[str, Tensor]
PREFIXES: Final = re.compile(r"^(?:(?:module|base_model|model|backbone|clip|_orig_mod)\.)+|(?<=\.)_orig_mod\.")
WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net", "weights")


class _Unread:
    """A placeholder for a NumPy scalar beside the weights, such as an epoch or a score. NumPy is not called."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


HARMLESS: Final[list[Any]] = [
    *(argparse.Namespace, Counter, OrderedDict, defaultdict, dict),
    *((_Unread, name) for name in ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")),
]


def read_state(path: Path) -> State:
    """Returns name -> fp32 tensor of a published checkpoint, without the prefixes that wrappers add to names.

    The file is a state dict, or a dict with a state dict under a key of `WRAPPERS`, in the format of torch.save or of
    safetensors. Nothing in it is executed.

    Raises:
        UserError: the file is absent or of another kind, or a weight is not finite.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; --from takes a folder or a file of weights")
    try:
        content = read_safetensors(path) if path.suffix == ".safetensors" else read_pickled(path, HARMLESS)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read: {error}; {_advice(str(error))}") from error
    weights = _unwrapped(content)
    if weights is None:
        keys = ", ".join(map(repr, WRAPPERS))
        raise UserError(f"{path} holds no weights: expected a state dict, by itself or under one of {keys}")
    state: State = {}
    for name, tensor in weights.items():
        bare = PREFIXES.sub("", name)
        if bare in state:
            raise UserError(f"{path} has two tensors named {bare!r}, the second is {name!r}; expected one model")
        state[bare] = tensor.float()
    check_finite(state, str(path))
    return state


def _unwrapped(content: Any, deepest: int = 4) -> State | None:
    """Returns the real-valued tensors of a state dict, which may be nested in other dicts, or None."""
    if not isinstance(content, Mapping) or not deepest:
        return None
    for key in WRAPPERS:
        if (found := _unwrapped(content.get(key), deepest - 1)) is not None:
            return found
    tensors = {name: v for name, v in content.items() if isinstance(name, str) and isinstance(v, Tensor)}
    return {name: v for name, v in tensors.items() if not v.is_complex()} or None


def _advice(reason: str) -> str:
    if "TorchScript" in reason:
        return "CLIP itself is downloaded by 'uv run prepare_checkpoints.py clip'"
    if "executing" in reason:
        return "on a machine where you trust the file, save its state dict alone"
    return "download it again"
