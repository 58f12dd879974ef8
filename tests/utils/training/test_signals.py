import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import forked
from utils.training.signals import Stopped, Stopping, stopping

ROOT = Path(__file__).parents[3]


def test_a_signal_stops_at_once_unless_work_is_held() -> None:
    def work() -> None:
        own = Stopping()
        with own.on_signals():
            own.hold()
            os.kill(os.getpid(), signal.SIGTERM)
            assert own.received == signal.SIGTERM
            own.release()
            own.received = None
            with pytest.raises(Stopped) as stopped:
                os.kill(os.getpid(), signal.SIGINT)
            assert stopped.value.code == 130
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "what handled it before does again"

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert forked(work) == 0


def test_a_job_in_another_process_has_that_process_own_state() -> None:
    assert pickle.loads(pickle.dumps(stopping)) is stopping


A_WORKER = """
import os, signal, time
from utils.training.signals import leave_signals_to_parent

ready = os.pipe()
worker = os.fork()
if worker == 0:
    leave_signals_to_parent()
    os.write(ready[1], b"x")
    time.sleep(60)
    os._exit(1)
os.read(ready[0], 1)
os.kill(worker, signal.SIGINT)
other = os.fork()
if other == 0:
    os.kill(worker, signal.SIGTERM)
    os._exit(0)
os.waitpid(other, 0)
time.sleep(0.2)
assert os.waitpid(worker, os.WNOHANG) == (0, 0), "lives on after a signal of another process"
os.kill(worker, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0
"""


def test_a_worker_ends_by_its_parent_alone() -> None:
    subprocess.run([sys.executable, "-c", A_WORKER], cwd=ROOT, check=True, timeout=60)
