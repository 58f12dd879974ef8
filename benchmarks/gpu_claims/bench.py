"""The interface of a claim (device, time left, output of findings) and the process in which claims run."""

import gc
import importlib
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gpu_claims.runner import Order, Settings

ROOT: Final = Path(__file__).parents[2]
GIB: Final = 2**30
CONTEXT_GB: Final = 0.6  # GiB of a card that CUDA uses and PyTorch's allocator cannot use

Cell = str | float | None


class DeviceLostError(Exception):
    """An error after which the CUDA context of the process is unusable."""


class Bench:
    """The device, time and findings of one claim.

    Args:
        settings: settings of the whole run.
        order: the claim to run.
        send: receives a finding: its kind, then its values.
    """

    def __init__(self, settings: Settings, order: Order, send: Callable[..., None]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.memory_gb, self.folder = settings
        self._end = time.monotonic() + order.seconds
        self._done = order.done
        self._send = send
        self._columns: list[str] = []

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Returns the seconds left for the claim."""
        return self._end - time.monotonic()

    def parts(self, parts: Mapping[str, Callable[[], None]]) -> None:
        """Runs the parts of a claim. A failed part does not stop the others. Parts without time left are reported.

        Raises:
            DeviceLostError: nothing can run in this process any more.
        """
        waiting = [name for name in parts if name not in self._done]
        longest = 0.0
        while waiting and self.left() > longest:
            start = time.monotonic()
            name = waiting.pop(0)
            self._send("part", name)
            try:
                parts[name]()
            except Exception as error:
                self._send("failure", _first_line(error), traceback.format_exc())
                self._check_device()
            self.free()
            self._send("part", None)
            longest = max(longest, time.monotonic() - start)
        if waiting:
            self.leave_out(f"for lack of time: {', '.join(waiting)}")

    def row(self, **cells: Cell) -> None:
        """Prints a row of the claim's table, after a header if the columns are new."""
        lines = []
        if list(cells) != self._columns:
            self._columns = list(cells)
            names = [name.replace("_", " ") for name in cells]
            lines = ["", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines.append(f"| {' | '.join(map(_shown, cells.values()))} |")
        self._send("row", "\n".join(lines), cells)

    def note(self, sentence: str) -> None:
        """Prints a sentence below the table."""
        self._columns = []
        self._send("note", sentence)

    def expect(self, holds: bool, sentence: str) -> None:
        """Makes the claim fail with the error `sentence` if `holds` is false. The claim continues."""
        if not holds:
            self._send("failure", sentence, "")

    def leave_out(self, reason: str) -> None:
        """Prints what is not measured and why."""
        self._columns = []
        self._send("left_out", f"left out, {reason}")

    def free(self) -> None:
        """Frees all unused memory of the device."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Waits until the device has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def _check_device(self) -> None:
        try:
            self.synchronize()
        except Exception as error:
            raise DeviceLostError(_first_line(error)) from error


def serve(pipe: Connection, settings: Settings) -> None:
    """Runs the claims that come through `pipe`, one after another, and sends their findings."""

    def send(*message: Any) -> None:
        pipe.send(message)

    if torch.cuda.is_available():
        cap_memory(settings.memory_gb)
        drawn = [sys.executable, "-m", "benchmarks.gpu_claims.drawn", str(settings.folder)]
        subprocess.Popen(drawn, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"})
    send("facts", facts(settings.memory_gb))
    with suppress(EOFError):  # the other process has ended
        while order := pipe.recv():
            bench = Bench(settings, order, send)
            try:
                module, function = order.target.split(":")
                getattr(importlib.import_module(module), function)(bench)
            except DeviceLostError as error:
                send("lost", str(error))
                os._exit(1)  # with a dead context, a normal exit hangs or crashes
            except Exception as error:
                send("failure", _first_line(error), traceback.format_exc())
            bench.free()
            send("end")


def cap_memory(memory_gb: float) -> None:
    """Limits the tensors of this process to the memory that a card of `memory_gb` has for them."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(memory_gb - CONTEXT_GB, 0.1) * GIB / total))


def facts(memory_gb: float) -> dict[str, Any]:
    """Returns the facts of this machine, and the version of every package that the project depends on."""
    found: dict[str, Any] = {"device": f"CPU, {torch.get_num_threads()} threads", "gpu": torch.cuda.is_available()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        found |= {
            "device": card.name,
            "capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
            "memory GiB": round(card.total_memory / GIB, 2),
            "cap GiB": round(min(card.total_memory / GIB, memory_gb - CONTEXT_GB), 2),
            "taken by CUDA and others GiB": round((total - free) / GIB, 2),
        }
    return found | {"cores": os.cpu_count(), "python": platform.python_version(), **versions()}


def versions() -> dict[str, str]:
    """Returns the version of each package that pyproject.toml names, or "absent" if it is not installed."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["bnb"]]
    found = {}
    for name in (requirement.split(">")[0] for requirement in wanted):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.2f}" if abs(cell) >= 1 else f"{cell:.3g}"
    return str(cell)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
