"""The instants at which `benchmarks/kills.py` kills: every hook and file operation of an epoch, and during writes."""

import functools
import io
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LOOKED_AT = 1  # the epoch


class Instants:
    """The named instants of an epoch: before and after every hook and file operation, and in the middle of writes.

    Args:
        kill_at: (name, occurrence) of the instant at which to kill the process. None: writes names to `names_file`.
    """

    def __init__(self, names_file: Path, kill_at: tuple[str, int] | None = None) -> None:
        self._file = names_file
        self._kill_at = kill_at
        self._is_on = False
        self._seen: Counter[str] = Counter()

    def __call__(self) -> None:
        """Starts to watch this process."""
        from lightning.pytorch.trainer import call

        import utils.checkpoints.weights

        for kind in ("callback_hooks", "lightning_module_hook", "lightning_datamodule_hook", "strategy_hook"):
            name = f"_call_{kind}"
            setattr(call, name, self._watched_hook(kind.removesuffix("_hook"), getattr(call, name)))
        for name in ("replace", "rename", "unlink", "fsync", "open"):
            setattr(os, name, self._watched_call(name, getattr(os, name)))
        utils.checkpoints.weights.torch = _Halved(torch, self.at)  # type: ignore[attr-defined]
        opened = Path.open

        def open_path(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode == "r" or "b" in mode:
                return opened(path, mode, *args, **kwargs)
            self.at(f"before {path.name} is opened")
            return _HalvedFile(opened(path, mode, *args, **kwargs), path.name, self.at)

        Path.open = open_path  # type: ignore[method-assign,assignment]

    def at(self, name: str) -> None:
        if not self._is_on:
            return
        name = re.sub(r"\.[0-9a-f]{8}\.", ".*.", name)
        self._seen[name] += 1
        if self._kill_at is None:
            with open(self._file, "a") as file:
                file.write(name + "\n")
        elif self._kill_at == (name, self._seen[name]):
            os.kill(os.getpid(), signal.SIGKILL)

    def _watched_hook(self, kind: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def watched(trainer: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            is_start = kind == "callback_hooks" and name == "on_train_epoch_start"
            self._is_on |= is_start and trainer.current_epoch == LOOKED_AT
            self._watch_callbacks(trainer)
            self.at(f"before {kind} {name}")
            result = hook(trainer, name, *args, **kwargs)
            self.at(f"after {kind} {name}")
            self._is_on &= not (is_start and trainer.current_epoch > LOOKED_AT)
            return result

        return watched

    def _watch_callbacks(self, trainer: Any) -> None:
        from lightning.pytorch.callbacks import Callback

        for callback in trainer.callbacks:
            for name in [name for name in dir(Callback) if name.startswith("on_")]:
                if getattr(type(callback), name) is not getattr(Callback, name) and name not in vars(callback):
                    label = f"{type(callback).__name__}.{name}"
                    setattr(callback, name, self._watched_call(label, getattr(callback, name)))

    def _watched_call(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            paths = [Path(arg).name for arg in args if isinstance(arg, str | Path)]
            name = " ".join([label, *paths[-1:]])
            self.at(f"before {name}")
            result = function(*args, **kwargs)
            self.at(f"after {name}")
            return result

        return watched


class _Halved:
    """A proxy of torch that saves files in two halves, with an instant between them."""

    def __init__(self, module: Any, at: Callable[[str], None]) -> None:
        self._module = module
        self._at = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def save(self, content: Any, file: Any) -> None:
        whole = io.BytesIO()
        self._module.save(content, whole)
        _HalvedFile(file, Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).name, self._at).write(whole.getvalue())


class _HalvedFile:
    """A proxy of a file that writes to disk in two halves, with an instant between them."""

    def __init__(self, file: Any, name: str, at: Callable[[str], None]) -> None:
        self._file = file
        self._name = name
        self._at = at

    def __enter__(self) -> "_HalvedFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, content: Any) -> None:
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._at(f"half of {self._name} is written")
        self._file.write(content[half:])
