"""Progress of long work: a bar on a terminal, elsewhere a line every ten seconds."""

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from tqdm import tqdm

EVERY_SECONDS: Final = 10.0
LINE: Final = "{desc}  {n_fmt}/{total_fmt} {unit}  {elapsed} gone, {remaining} left"


class Bar(tqdm):
    """A tqdm bar for long work. It is silent in the first second, and in all processes of a run except the first.

    If standard error is not a terminal, it writes lines, the first one after `EVERY_SECONDS`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        others = {os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")} - {"0"}
        options = {"delay": 1, "disable": bool(others)} | options
        if not sys.stderr.isatty():
            lines = {"mininterval": EVERY_SECONDS, "miniters": 1, "delay": EVERY_SECONDS, "bar_format": LINE}
            options |= lines | {"leave": False}
        super().__init__(*args, **options)

    def close(self) -> None:
        if not sys.stderr.isatty():
            self.delay = math.inf  # so that tqdm does not erase a bar
        super().close()

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if sys.stderr.isatty():
            return tqdm.status_printer(file)
        return lambda text: print(text, file=sys.stderr, flush=True) if text.strip() else None


class Clock:
    """A clock that measures the time of work and estimates the time left from the pace so far.

    Args:
        done: the share of the work that was already done at the start.
    """

    def __init__(self, done: float = 0.0) -> None:
        self._start, self._done = time.monotonic(), done

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._start

    def left(self, done: float) -> float | None:
        """Returns the estimated seconds left when the share `done` is complete; None if nothing was done yet."""
        moved = done - self._done
        return self.seconds / moved * (1 - done) if moved > 0 else None


def clock_time(seconds: float) -> str:
    """Returns hours, minutes and seconds, or only seconds if there are fewer than 10.

    >>> clock_time(2.44), clock_time(59.6), clock_time(3725)
    ('2.4 s', '0:01:00', '1:02:05')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
