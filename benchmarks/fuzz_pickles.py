"""Hostile pickles, which contain calls."""

import pickle
import sys
import zipfile
from pathlib import Path
from random import Random
from typing import Any, Final

import torch

CANARY: Final = "canary"  # name of the file that hostile content tries to create
MARK: Final = "<a call stands here>"

# module, name and arguments of the calls in the pickles
CALLS: Final[tuple[tuple[str, str, tuple[Any, ...]], ...]] = (
    ("os", "system", (f"touch {CANARY}",)),
    ("posix", "system", (f"touch {CANARY}",)),
    ("nt", "system", (f"touch {CANARY}",)),
    ("builtins", "eval", (f"open('{CANARY}', 'w')",)),
    ("builtins", "exec", (f"open('{CANARY}', 'w')",)),
    ("builtins", "open", (CANARY, "w")),
    ("io", "open", (CANARY, "w")),
    ("builtins", "getattr", ("os", "system")),
    ("builtins", "__import__", ("antigravity",)),
    ("importlib", "import_module", ("antigravity",)),
    ("subprocess", "Popen", ("id",)),
    ("shutil", "rmtree", (".",)),
    ("pathlib", "Path.touch", (CANARY,)),
    ("runpy", "run_path", (CANARY,)),
    ("torch", "load", (CANARY,)),
    ("torch.hub", "load", (".", CANARY)),
    ("torch.serialization", "load", (CANARY,)),
    ("hydra.utils", "instantiate", ({"_target_": "os.system", "_args_": [f"touch {CANARY}"]},)),
    ("hydra._internal.utils", "_locate", ("antigravity.geohash",)),
    ("numpy", "load", (CANARY, None, True)),
    ("numpy._core.multiarray", "scalar", (1, b"12345678")),
    ("numpy._core.multiarray", "_reconstruct", (1, (0,), b"b")),
    ("pickle", "loads", (b"cos\nsystem\n(S'id'\ntR.",)),
    ("webbrowser", "open", ("http://127.0.0.1",)),
    ("torch._utils", "_rebuild_from_type_v2", (1, 2, 3, 4)),
    ("torch._utils", "_rebuild_meta_tensor_no_storage", (1, (10**6,), (1,), False)),
    ("torch", "Tensor", (2**31 - 1,)),
    ("torch", "Size", ((2**31 - 1, 2**31 - 1),)),
    ("torch", "device", ("cuda",)),
    ("builtins", "bytearray", (2**31 - 1,)),
    ("builtins", "set", ((1, 2),)),
    ("builtins", "complex", (1, 2)),
    ("collections", "Counter", ("aab",)),
    ("collections", "OrderedDict", (((1, 2),),)),
    ("_codecs", "encode", ("x", "rot13")),
    ("_codecs", "encode", ("x", CANARY)),
)
# A pickled dict whose key is a tuple that contains the same tuple twice, 60 levels deep: its hash takes 2^60 steps.
ENDLESS_KEY: Final = b"}K\x01r\x40\x42\x0f\x00" + b"j\x40\x42\x0f\x00\x86r\x40\x42\x0f\x00" * 60 + b"K\x01s"


def write_pickled(rng: Random, content: Any, path: Path) -> str:
    """Writes `content` in the format of torch.save, with a call in place of `MARK`. Returns a description."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)  # lets this writer write deep nesting, which readers have to handle
    try:
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.9)
    finally:
        sys.setrecursionlimit(limit)
    if not zipfile.is_zipfile(path):
        return ", before PyTorch 1.6"
    replaced = ""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    mark = b"X" + len(MARK).to_bytes(4, "little") + MARK.encode()
    if mark in members[pickled]:
        module, name, arguments = rng.choice(CALLS)
        call = f"c{module}\n{name}\n".encode() + pickle.dumps(arguments, protocol=2)[2:-1] + b"R"
        replaced = f" {module}.{name}"
        if rng.random() < 0.05:
            call, replaced = ENDLESS_KEY, " a key that takes for ever"
        members[pickled] = members[pickled].replace(mark, call)
    elif rng.random() > 0.1:
        return ""
    compressed = rng.random() < 0.3
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return replaced + (", compressed" if compressed else ", stored again")


def write_raw_pickle(rng: Random, path: Path) -> str:
    """Writes a pickle with a call, in a random protocol. Returns a description."""
    module, name, arguments = rng.choice(CALLS)
    protocol = rng.randrange(6)
    inner = pickle.dumps(arguments, protocol=2)[2:-1]
    head = b"" if protocol < 2 else b"\x80" + bytes([protocol])
    path.write_bytes(head + f"c{module}\n{name}\n".encode() + inner + b"R.")
    return f"{path.name}: a pickle of protocol {protocol} that calls {module}.{name}"
