"""Functions that run in a fork of the test's process: what a kill does to them, without starting Python anew."""

import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
SHOW_WARNING = warnings.showwarning  # before pytest replaces it for a test


def start_fork(work: Callable[[], object]) -> int:
    """Starts `work` in a fork of this process and returns its process number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def end_of(child: int) -> int:
    """Waits for a fork, and returns its exit status, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(work: Callable[[], object]) -> int:
    """Returns how `work` ended in a fork, see `end_of`."""
    return end_of(start_fork(work))


def die(*_: object, **__: object) -> None:
    """Kills this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_python(
    *line: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Returns what `python LINE` does in a fork of the test's process, which saves the 6 s of importing libraries.

    LINE begins with a script or with ``-m MODULE`` of the project. Modules that the test changed stay changed.
    """

    def work() -> None:
        os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        sys.argv = [str(part) for part in line]
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")

    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        status = forked(lambda: (print_to(out, err), work()))
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read())
    return subprocess.CompletedProcess(line, status, *printed)


def print_to(out: IO[str], err: IO[str]) -> None:
    """Makes this fork print as a process of its own does that has these files for its outputs, and no input."""
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for number, (name, file) in enumerate({"stdout": out, "stderr": err}.items(), 1):
        os.dup2(file.fileno(), number)
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    logging.getLogger().handlers.clear()  # pytest's
    warnings.showwarning = SHOW_WARNING
    warnings.resetwarnings()
