"""Runs claims in a process of their own, which is replaced when it dies, hangs or loses its device."""

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

GRACE: Final = 15.0  # seconds over its time after which a claim is ended
START: Final = 180.0  # seconds in which a process must be there; imports can be slow
TAIL: Final = 4_000  # characters of a dead process' last words


class Claim(NamedTuple):
    """A claim. sentence: what is claimed. seconds: that it usually may take. target: ``module:function``."""

    name: str
    sentence: str
    seconds: float
    target: str


class Settings(NamedTuple):
    """memory_gb: of the card that is stood in for. folder: for files of all claims, gone afterwards."""

    memory_gb: float
    folder: Path


class Order(NamedTuple):
    """A claim to work off within `seconds`. target: ``module:function``. done: names of parts to pass over."""

    target: str
    seconds: float
    done: frozenset[str]


@dataclass
class Finding:
    """What came of a claim. failures: (what is wrong, traceback or "")."""

    status: str = "holds"
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


class Runner:
    """One process at a time that works off claims.

    Decision: one process for all claims, replaced only when it is of no more use, because a start costs ten seconds
    of imports and a CUDA context. Within it, memory is freed and its peak reset before each measurement.

    Args:
        settings: of all claims.
        log: file that takes what the process and its libraries print.
        show: prints.
    """

    def __init__(self, settings: Settings, log: Path, show: Callable[[str], None]) -> None:
        self._settings = settings
        self._log = log
        self._show = show
        self._process: Any = None
        self._pipe: Any = None
        self._busy = True

    def start(self) -> dict[str, Any]:
        """Starts the process; returns the facts of its machine.

        Raises:
            RuntimeError: it does not start; with its last words.
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
        """Returns what comes of `claim` within `seconds`; everything that is found is shown at once."""
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
        """Ends the process with everything that it started."""
        if self._process is None:
            return
        with suppress(OSError):
            if not self._busy:  # it waits for an order: let it end by itself
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
        """Returns None when the claim has come to its end, or the part in which its process was lost.

        Args:
            done: takes the parts that are begun, which are not begun again.
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
    """Is the process: in a group of its own, with everything that is printed going to `log`."""
    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())

    from benchmarks.gpu_claims.bench import serve

    serve(pipe, settings)
