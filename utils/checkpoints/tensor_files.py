"""Reading of tensor files from untrusted sources: within limits and without executing anything."""

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from utils.errors import UserError, first_line

ARCHIVE: Final = b"PK\x03\x04"  # first bytes of a file of torch.save
OLD_ARCHIVE: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the same before PyTorch 1.6
MOST_VALUES: Final = 1_000_000  # in one file; a training state of 1,000 tensors has about 10,000
DEEPEST_TUPLE: Final = 20
PICKLES: Final = 4  # in an old archive: magic number, version, sizes of the machine's types, content
SHARING: Final = 4  # tensors may be so many times larger than their file, because some share memory
_CODE = re.compile(r"GLOBAL ([\w.]+)|(?:function|but got) (?:<\w+ )?(.+)")


class UnreadableError(Exception):
    """A file that cannot be read; the message is the reason, as a clause after the file's name."""


def read_pickled(path: Path, harmless: Sequence[Any] = ()) -> Any:
    """Returns what torch.save wrote to `path`, on the CPU: tensors and plain values.

    Args:
        harmless: classes that the file may contain besides tensors, as for `torch.serialization.safe_globals`.

    Raises:
        UnreadableError: if the file is damaged, of another format, larger than its size when unpacked, or needs code.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(OLD_ARCHIVE))
        _check_start(start)
        if start.startswith(ARCHIVE):
            with zipfile.ZipFile(path) as archive:
                check_members(archive, size)
                for name in (name for name in archive.namelist() if name.endswith(".pkl")):
                    with archive.open(name) as file:
                        _check_nesting(file)
        else:
            with path.open("rb") as file:
                for _ in range(PICKLES):
                    _check_nesting(file)
        with torch.serialization.safe_globals(list(harmless)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnreadableError:
        raise
    except Exception as error:  # damaged data can make the unpickler raise any error
        raise UnreadableError(_why(error)) from error
    _check_values(content, size)
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name.

    Raises:
        UnreadableError: if the file is absent, damaged, or of another format.
    """
    if not path.is_file():
        raise UnreadableError("there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except Exception as error:
        raise UnreadableError(f"it is damaged or not a safetensors file: {first_line(error)}") from error


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Checks that no weight is NaN or infinite.

    Args:
        source: the option and the file, which the error message begins with.

    Raises:
        UserError: for the first weight that is.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        ends = (tensor.float() if tensor.element_size() == 1 else tensor).aminmax()
        if not torch.stack(ends).isfinite().all():
            raise UserError(
                f"{source} holds NaN or infinite weights, the first in {name!r}: its training diverged, or it is "
                "damaged; use an earlier or another one"
            )


def _check_start(start: bytes) -> None:
    if not start:
        raise UnreadableError("it is empty")
    if start.startswith((ARCHIVE, OLD_ARCHIVE)):
        return
    if start.startswith(b"\x80"):
        raise UnreadableError("it is another kind of pickle, which cannot be read without executing its code: refused")
    raise UnreadableError("it is damaged or not a file of torch.save")


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Checks that the members of an archive have at most `size` bytes together: torch.save does not compress.

    Raises:
        UnreadableError: if they have more.
    """
    inside = sum(member.file_size for member in archive.infolist())
    if inside > size:
        raise UnreadableError(f"it has {size:,} bytes, but claims to hold {inside:,}")


def _check_nesting(file: IO[bytes]) -> None:
    """Raises `UnreadableError` for deeply nested tuples: as dict keys, each level doubles the time to hash them.

    It tracks only the tuple depth of each value on the unpickler's stack.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for opcode, argument, _ in pickletools.genops(file):
        before = opcode.stack_before
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif opcode.name.endswith("GET"):
            stack.append(memo[argument])
        else:
            marked = pickletools.markobject in before
            start = marks.pop() - before.index(pickletools.markobject) if marked else len(stack) - len(before)
            depth = 1 + max(stack[start:], default=0) if "TUPLE" in opcode.name else 0
            if depth > DEEPEST_TUPLE:
                raise UnreadableError(f"it holds tuples within each other, {depth} deep")
            stack[start:] = [depth] * len(opcode.stack_after)


def _check_values(content: Any, size: int) -> None:
    """Raises `UnreadableError` for tensors that are special, without data or too large, and for too many values."""
    room = SHARING * size
    for number, value in enumerate(_values(content)):
        if number == MOST_VALUES:
            raise UnreadableError(f"it holds more than {MOST_VALUES:,} values, or values within themselves")
        if not isinstance(value, Tensor):
            continue
        if type(value) not in (Tensor, torch.nn.Parameter) or vars(value) or not _is_plain(value):
            raise UnreadableError("it holds a tensor of a special kind; expected plain ones with their data")
        room -= value.numel() * value.element_size()
        if room < 0:
            raise UnreadableError(f"it has {size:,} bytes, but claims tensors with more")


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _values(content: Any) -> Iterator[Any]:
    """Yields `content` and all values inside it; never ends if it contains itself."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value


def _why(error: Exception) -> str:
    """Returns the reason, without PyTorch's advice to load the file with code execution."""
    text = str(error)
    if "TorchScript" in text or "constants.pkl" in text:
        return "it is a TorchScript archive"
    if isinstance(error, pickle.UnpicklingError) and (found := _CODE.search(text)):
        name = next(filter(None, found.groups())).split()[0]
        return f"it holds {name}, which cannot be rebuilt without executing its code: refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is damaged, cut short or not a file of torch.save"
