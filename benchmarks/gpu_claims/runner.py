"""The runner of claims: a separate process, which is replaced when it dies, hangs or loses its device."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

GRACE: Final = 15.0  # seconds that a claim may exceed its time before it is ended
START: Final = 180.0  # seconds in which a process has to start; imports can be slow
TAIL: Final = 4_000  # number of last characters of a dead process' output to show


class Claim(NamedTuple):
    """A claim. sentence: the claim in words. seconds: the time it usually gets. target: ``module:function``."""

    name: str
    sentence: str
    seconds: float
    target: str


class Settings(NamedTuple):
    """memory_gb: memory of the card to imitate. folder: temporary folder for files of all claims."""

    memory_gb: float
    folder: Path


class Order(NamedTuple):
    """An order to run a claim within `seconds`. target: ``module:function``. done: names of parts to skip."""

    target: str
    seconds: float
    done: frozenset[str]


@dataclass
class Finding:
    """The result of a claim. failures: (error in words, traceback or "")."""

    status: str = "holds"
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


class Runner:
    """One process at a time that runs claims.

    Decision: one process runs all claims and is replaced only when it no longer works, because a start costs ten
    seconds of imports and a CUDA context. Before each measurement, memory is freed and its peak is reset.

    Args:
        settings: settings of all claims.
        log: file for the output of the process and its libraries.
        show: prints a line.
    """

    def __init__(self, settings: Settings, log: Path, show: Callable[[str], None]) -> None:
        self._settings = settings
        self._log = log
        self._show = show
        self._process: Any = None
        self._pipe: Any = None
        self._busy = True

    def start(self) -> dict[str, Any]:
        """Starts the process and returns the facts of its machine.

        Raises:
            RuntimeError: the process does not start. The message has the end of its output.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._settings, self._log))
        self._process.start()
        theirs.close()
        try:
            if self._pipe.poll(START):
                return self._pipe.recv()[1]
        except EOFError:
            pass
        self.close()
        raise RuntimeError(f"the process that works does not start; its last words:\n{self._last_words()}")

    def run(self, claim: Claim, seconds: float) -> Finding:
        """Runs `claim` for at most `seconds` and returns its result. Each finding is shown immediately."""
        finding, start = Finding(), time.monotonic()
        done: set[str] = set()
        while True:
            left = seconds - (time.monotonic() - start)
            part = self._run_once(claim, left, done, finding)
            if part is None:
                break
            if seconds - (time.monotonic() - start) < GRACE:
                break
            self._show(f"\nA new process goes on after {part!r}.")
        if finding.status == "in part":
            finding.status = "holds in part" if finding.rows else "left out"
        if finding.failures:
            finding.status = "failed"
        finding.seconds = round(time.monotonic() - start, 1)
        return finding

    def close(self) -> None:
        """Ends the process and all processes that it started."""
        if self._process is None:
            return
        with suppress(OSError):
            if not self._busy:  # the process waits for an order and can end by itself
                self._pipe.send(None)
                self._process.join(3)
        for end in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, end)
                time.sleep(1 if end == signal.SIGTERM else 0)  # torchrun needs a moment to end its processes
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = None

    def _run_once(self, claim: Claim, seconds: float, done: set[str], finding: Finding) -> str | None:
        """Returns None when the claim has ended, or the name of the part in which its process was lost.

        Args:
            done: receives the names of started parts, which are not started again.
        """
        part: str | None = None
        try:
            if self._process is None:
                self.start()
            self._busy = True
            self._pipe.send(Order(claim.target, seconds, frozenset(done)))
            end = time.monotonic() + seconds + GRACE
            while self._pipe.poll(max(0.0, end - time.monotonic())):
                kind, *values = self._pipe.recv()
                if kind == "end":
                    self._busy = False
                    return None
                if kind == "part":
                    part = values[0]
                    done |= {part} - {None}
                elif kind == "lost":
                    raise EOFError(f"the device was lost: {values[0]}")
                else:
                    self._take(finding, kind, values, part)
            self._fail(finding, part, f"still busy {GRACE:.0f} s after its {seconds:.0f} s were up; ended", "")
            self.close()
            return None
        except (EOFError, OSError, RuntimeError) as error:
            code = self._process.join(5) or self._process.exitcode if self._process else None
            self.close()
            reason = str(error) or f"the process died with status {code}"
            self._fail(finding, part, reason.splitlines()[0], self._last_words())
            return part

    def _take(self, finding: Finding, kind: str, values: list[Any], part: str | None) -> None:
        if kind == "row":
            text, cells = values
            finding.rows.append(cells)
            self._show(text)
        elif kind == "failure":
            self._fail(finding, part, *values)
        else:
            if kind == "left_out":
                finding.status = "in part"
            finding.notes.append(values[0])
            self._show(f"\n{values[0]}")

    def _fail(self, finding: Finding, part: str | None, what: str, details: str) -> None:
        what = what if part is None else f"{part}: {what}"
        finding.failures.append((what, details))
        self._show(f"\nFAILED  {what}")

    def _last_words(self) -> str:
        with suppress(OSError):
            return self._log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        return ""


def _work(pipe: Connection, settings: Settings, log: Path) -> None:
    """Runs as the main function of the process, in a new process group, with all output going to `log`."""
    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())

    from benchmarks.gpu_claims.bench import serve

    serve(pipe, settings)
