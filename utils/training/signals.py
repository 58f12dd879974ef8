"""Signals that ask a process to end: SIGTERM, Ctrl-C and SLURM's warning. Imports nothing heavy."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

END_WITH_PARENT: Final = "TBPS_END_WITH_PARENT"  # set for processes that are started for a job
GRACE: Final = 30.0  # seconds that a process has after the death of the one that started it
_HANDED_ON: Final = 3.0  # seconds within which a second signal is the first one, handed on by another process
_WARNINGS: Final = (signal.SIGUSR1, signal.SIGUSR2)  # of SLURM, as `#SBATCH --signal` or submitit choose


class Stopped(SystemExit):
    """A signal ends the process, with the status that shells give it: 128 + its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self._told = False

    @property
    def is_warning(self) -> bool:
        """Whether SLURM says that the job's time is nearly up."""
        return self.signum in _WARNINGS

    def tell(self, how_to_go_on: str) -> None:
        """Prints one sentence, once, from the first of a job's processes."""
        if not self._told and os.environ.get("LOCAL_RANK", "0") == "0":
            name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
            print(f"\nstopped by {name}: {how_to_go_on}", file=sys.stderr, flush=True)
        self._told = True


class Stopping:
    """Whether this process was asked to end, and whether it may at once.

    A signal raises `Stopped` wherever the process is, unless work is held that would be lost. It then waits for
    whoever holds it. A second Ctrl-C ends the process at once.

    Attributes:
        received: the signal, or None.
    """

    received: int | None = None

    def __init__(self) -> None:
        self._held = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __reduce__(self) -> str:
        return "stopping"  # that of the process to which a launcher sends a job

    @contextmanager
    def on_signals(self, how_to_go_on: str = "what was done stays; run the same command again") -> Iterator[None]:
        """Turns signals into `Stopped` within the block; the outermost of several blocks counts."""
        if self._before or threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGTERM, signal.SIGINT, *(_WARNINGS if "SLURM_JOB_ID" in os.environ else ()))
        self.received, self._held = None, False
        self._before = {number: signal.signal(number, self._handle) for number in wanted}
        try:
            yield
        except Stopped as stop:
            stop.tell(how_to_go_on)
            raise
        finally:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._before = {}

    def handler_before(self, signum: int) -> Any:
        """Returns what handled a signal before `on_signals` did."""
        return self._before.get(signum)

    def hold(self) -> None:
        """Says that there is work that would be lost: from now on a signal waits."""
        self._held = True

    def release(self) -> None:
        """Says that nothing would be lost any more: from now on a signal ends the process."""
        self._held = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = self.received is not None
        if again and signum == self.received == signal.SIGINT:
            _say("ended at once by the second Ctrl-C")
            os._exit(128 + signum)
        if again and (self._held or time.monotonic() - self._since < _HANDED_ON):
            return
        self.received, self._since = signum, time.monotonic()
        if not self._held:
            raise Stopped(signum)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            more = " (Ctrl-C again ends at once)" if signum == signal.SIGINT else ""
            _say(f"saving before the end{more} ...")


stopping = Stopping()


def end_with_parent() -> None:
    """Lets a process that another one started for its job end with it, killed included: saved, or by force."""
    if not {"LOCAL_RANK", END_WITH_PARENT} & os.environ.keys():
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def leave_signals_to_parent(*_: Any) -> None:
    """Makes a worker deaf to signals that are sent to all processes of a job: its parent decides when to end it."""
    for number in (signal.SIGINT, *_WARNINGS):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _say(text: str) -> None:
    """Writes a line to standard error past Python's buffers, which a signal may have interrupted."""
    os.write(2, f"\n{text}\n".encode())
