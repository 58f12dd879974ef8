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

END_WITH_PARENT: Final = "TBPS_END_WITH_PARENT"  # set in the environment of a job's own command
GRACE: Final = 30.0  # seconds that a process may still run after its parent's death
_HANDED_ON: Final = 3.0  # a second signal within so many seconds is the first one, passed on by another process
_WARNINGS: Final = (signal.SIGUSR1, signal.SIGUSR2)  # SLURM's warning, chosen by `#SBATCH --signal` or submitit


class Stopped(SystemExit):
    """The exit after a signal, with the status that shells use: 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self._told = False

    @property
    def is_warning(self) -> bool:
        """Whether the signal is SLURM's warning that the job's time is nearly over."""
        return self.signum in _WARNINGS

    def tell(self, how_to_go_on: str) -> None:
        """Prints one sentence, once, from the first of a job's processes."""
        if not self._told and os.environ.get("LOCAL_RANK", "0") == "0":
            name = "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name
            print(f"\nstopped by {name}: {how_to_go_on}", file=sys.stderr, flush=True)
        self._told = True


class Stopping:
    """The state of stopping: whether a signal asked this process to end, and whether it may end at once.

    A signal raises `Stopped` at once, unless `hold` was called to protect unsaved work. Then the code that called
    `hold` saves first and raises `Stopped` itself. A second Ctrl-C ends the process at once.

    Attributes:
        received: the signal, or None.
    """

    received: int | None = None

    def __init__(self) -> None:
        self._held = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __reduce__(self) -> str:
        return "stopping"  # unpickles as the global of the process that a launcher starts

    @contextmanager
    def on_signals(self, how_to_go_on: str = "what was done stays; run the same command again") -> Iterator[None]:
        """Turns signals into `Stopped` inside the block; nested blocks do nothing."""
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
        """Returns the handler that a signal had before `on_signals`."""
        return self._before.get(signum)

    def hold(self) -> None:
        """Marks that there is unsaved work: from now on a signal does not end the process at once."""
        self._held = True

    def release(self) -> None:
        """Marks that all work is saved: from now on a signal ends the process."""
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
    """Ends a process that was started for a job when its parent dies: by SIGTERM, then by force after `GRACE`."""
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
    """Makes a worker ignore signals that all processes of a job receive: its parent decides when it ends."""
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
    """Writes a line to standard error without Python's buffers, which the signal may have interrupted."""
    os.write(2, f"\n{text}\n".encode())
