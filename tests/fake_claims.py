"""Claims that hold, fail, die and hang, for the test of the command that runs them."""

import os
import time

from benchmarks.gpu_claims.bench import Bench


def holds(bench: Bench) -> None:
    bench.parts({"first": lambda: bench.row(name="a", size=1.5), "second": lambda: bench.row(name="b", size=1234.5)})
    bench.note("that was all")


def breaks(bench: Bench) -> None:
    def broken() -> None:
        raise ValueError("not a number\nof any kind")

    bench.parts({"broken": broken, "whole": lambda: bench.row(after="broken")})


def is_wrong(bench: Bench) -> None:
    bench.expect(2 > 1, "never said")
    bench.expect(1 > 2, "1 is not above 2")
    bench.row(after="wrong")


def dies(bench: Bench) -> None:
    bench.parts(
        {
            "before": lambda: bench.row(alive="before"),
            "deadly": lambda: os._exit(3),
            "after": lambda: bench.row(alive="after"),
        }
    )


def is_slow(bench: Bench) -> None:
    bench.parts({f"part {number}": lambda: time.sleep(0.5) for number in range(100)})


def hangs(bench: Bench) -> None:
    bench.parts({"quick": lambda: bench.row(name="quick"), "endless": lambda: time.sleep(600)})


def without_gpu(bench: Bench) -> None:
    bench.leave_out("because it needs a GPU")
