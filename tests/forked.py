"""Functions that run in a fork of the test's process: what a kill does to them, without starting Python anew."""

import os
import signal
import sys
import traceback
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """Returns how `work` ended in a fork: its exit status, or the negative number of the signal that killed it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_: object, **__: object) -> None:
    """Kills this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
