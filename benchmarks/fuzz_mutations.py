"""Random damage to a file or its content. Each function returns a description of the damage."""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.fuzz_pickles import CANARY, MARK

DEEP: Final = 400  # levels of nesting; pickle can write about 490

# Values that no reader expects.
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "1", "true", "x" * 100_000, "é" * 3000, "\u202e\u200b\x1b[31m\r\n", "\0", "\ud800", "名前", "😀"),
    *("../../../etc/passwd", "/etc/passwd", "C:\\x", "file:///etc/passwd", "~/x", "a/../../b", "${oc.env:HOME}", "???"),
    *([], {}, [[]], [None], [0] * 5000, {"": {}}, {"_target_": "os.system", "_args_": [f"touch {CANARY}"]}),
    *({"_target_": "sympy.sympify", "a": f"__import__('os').system('touch {CANARY}')"}, {"a": 1, "b": [1, {"c": 2}]}),
)


def spoil_file(rng: Random, path: Path, others: list[Path]) -> str:
    """Damages the file `path` and returns how.

    Args:
        others: files whose content may replace its content.
    """
    content = path.read_bytes()
    kind = rng.choice(
        ("flip", "flip", "flip", "cut", "cut", "empty", "zeros", "garbage", "append", "twice", "other", "node")
    )
    if kind == "node":
        return _spoil_node(rng, path)
    if kind == "flip":
        spoiled = bytearray(content)
        start = rng.choice((0, 0, max(0, len(spoiled) - 2000)))  # headers and central directories lie at the ends
        for _ in range(rng.choice((1, 8, 64))):
            place = rng.randrange(start, min(len(spoiled), start + rng.choice((200, 2000, len(spoiled)))))
            spoiled[place] ^= 1 << rng.randrange(8)
        content = bytes(spoiled)
    elif kind == "cut":
        content = content[: rng.choice((1, 10, 100, len(content) // 2, len(content) - 1))]
    elif kind == "other":
        content = rng.choice(others).read_bytes()
    else:
        size = len(content)
        content = {
            "empty": b"",
            "zeros": bytes(size),
            "garbage": rng.randbytes(min(size, 10_000)),
            "append": content + rng.randbytes(100),
            "twice": content + content,
        }[kind]
    path.write_bytes(content)
    return f"{path.name}: {kind}"


def _spoil_node(rng: Random, path: Path) -> str:
    """Replaces `path` by something that is not a file, and returns how."""
    kind = rng.choice(("absent", "folder", "loop", "dangling", "elsewhere", "fifo", "device"))
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "elsewhere":
            path.symlink_to("/etc/passwd")
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
    return f"{path.name}: {kind}"


def spoil_tree(rng: Random, tree: Any, *, calls: bool = False) -> tuple[Any, str]:
    """Returns `tree` (of dicts, lists, plain values and tensors) with one change, and a description of it.

    Args:
        calls: whether the change may be a call, which only a pickle can contain; see `write_pickled`.
    """
    container, key, where = _place(rng, tree)
    if container is None:
        return rng.choice(VALUES), "everything: another value"
    value = container[key]
    ways = ["drop", "drop", "value", "value", "value", "rename", "swap", "deep", "list", "itself", "text"]
    ways += ["tensor"] * 8 if isinstance(value, Tensor) else []
    ways += ["call"] * 4 if calls else []
    way = rng.choice(ways)
    match way:
        case "drop":
            del container[key]
        case "value":
            container[key] = rng.choice(VALUES)
        case "rename" if isinstance(container, dict):
            new = rng.choice(["x", f"{key} ", f"x.{key}", "x" * 5000, *([7, None] if calls else [])])
            container[new] = container.pop(key)
        case "swap":
            other, other_key, _ = _place(rng, tree)
            if other is not None:
                container[key] = copy.deepcopy(other[other_key])
        case "deep":
            for _ in range(DEEP):
                value = [value] if rng.random() < 0.5 else {"x": value}
            container[key] = value
        case "list":
            container[key] = [value] * rng.choice((0, 1, 3))
        case "itself" if calls:
            nested: list[Any] = [value]
            for _ in range(rng.choice((1, 60))):
                nested = [nested, nested]
            nested += [nested] if rng.random() < 0.5 else []
            container[key] = nested
        case "text":
            container[key] = str(value)[:1000]
        case "tensor":
            container[key], inner = spoil_tensor(rng, value)
            return tree, f"{where}: {inner}"
        case "call":
            container[key] = MARK
    return tree, f"{where}: {way}"


def spoil_tensor(rng: Random, tensor: Tensor) -> tuple[Any, str]:
    """Returns an object similar to `tensor` that readers should refuse, and a description of it."""
    holed = tensor.clone().flatten()
    if holed.is_floating_point() and len(holed):
        holed[rng.randrange(len(holed))] = rng.choice((float("nan"), float("inf")))
    ways: dict[str, Callable[[], Any]] = {
        "NaN": lambda: holed.reshape(tensor.shape),
        "short": lambda: tensor[:-1].clone() if tensor.ndim else tensor[None].clone(),
        "flat": lambda: tensor.flatten().clone(),
        "empty": lambda: tensor.new_empty(0),
        "more dimensions": lambda: tensor[None, None].clone(),
        "int64": lambda: tensor.nan_to_num().clamp(-100, 100).long(),
        "bool": lambda: tensor != 0,
        "half": tensor.half,
        "double": tensor.double,
        "complex": lambda: tensor.to(torch.complex64),
        "float8": lambda: tensor.float().to(torch.float8_e4m3fn),
        "expanded": lambda: tensor.new_zeros(1).expand(10**6, 10**6),
        "sparse": lambda: tensor.float().to_sparse(),
        "meta": lambda: tensor.to("meta"),
        "with an attribute": lambda: _with_attribute(tensor.clone()),
        "parameter": lambda: torch.nn.Parameter(tensor.float().clone()),
        "list": lambda: tensor.flatten()[:100].tolist(),
    }
    way = rng.choice(list(ways))
    return ways[way](), way


def _with_attribute(tensor: Tensor) -> Tensor:
    tensor.numel = 5  # type: ignore[method-assign, assignment]
    return tensor


def spoil_json(rng: Random, path: Path, others: list[Path]) -> str:
    """Changes a JSON file: usually one value, sometimes its text or the file. Returns how."""
    way = rng.choice(("tree",) * 7 + ("text", "file"))
    if way == "file":
        return spoil_file(rng, path, others)
    text = path.read_text(encoding="utf-8")
    if way == "text":
        return f"{path.name}: {_spoil_text(rng, path, text)}"
    tree, how = spoil_tree(rng, json.loads(text))
    for _ in range(rng.choice((0, 0, 2))):
        tree, more = spoil_tree(rng, tree)
        how += f", {more}"
    path.write_text(json.dumps(tree), encoding="utf-8", errors="surrogatepass")
    return f"{path.name}: {how}"


def _spoil_text(rng: Random, path: Path, text: str) -> str:
    ways: dict[str, Callable[[], bytes]] = {
        "UTF-16": lambda: text.encode("utf-16"),
        "BOM": lambda: b"\xef\xbb\xbf" + text.encode(),
        "Latin-1 bytes": lambda: text.replace("a", "\xe9", 3).encode("latin-1", "replace"),
        "brackets": lambda: b"[" * 100_000,
        "a long number": lambda: text.replace("1", "1" * 10_000, 1).encode(),
        "a comma too many": lambda: text.replace("}", ",}", 1).encode(),
        "twice the same key": lambda: text.replace("{", '{"id": 5, "id": "x", "model_type": [], ', 1).encode(),
        "NaN": lambda: text.replace(": ", ': NaN, "x": ', 1).encode(),
        "a control character": lambda: text.replace('"', '"\x01', 1).encode(),
        "a comment": lambda: b"// x\n" + text.encode(),
    }
    way = rng.choice(list(ways))
    path.write_bytes(ways[way]())
    return way


def _place(rng: Random, tree: Any) -> tuple[Any, Any, str]:
    """Returns a container inside `tree`, one of its keys, and the path to it; None and None if `tree` is empty."""
    container, key, way = None, None, []
    while isinstance(tree, dict | list) and tree and (container is None or rng.random() < 0.75):
        container = tree
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        way.append(str(key)[:40])
        tree = container[key]
    return container, key, ".".join(way)


def copied(source: Path, target: Path) -> Path:
    """Copies a file or folder to `target`, which is replaced, and returns `target`."""
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the plain files directly in `folder`."""
    return (path for path in sorted(folder.iterdir()) if path.is_file())
