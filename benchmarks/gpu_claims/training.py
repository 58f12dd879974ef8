"""Claim: the drawn default trains on the GPU; a killed and continued run has the same weights; R@1 equals the CPU's."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.gpu_claims.bench import Bench
from benchmarks.gpu_claims.drawn import drawn_root
from utils.checkpoints.weights import read_checkpoint

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 0.02  # seconds between two checks of a run that will be killed
R1_GAP: Final = 5.0  # allowed difference to the CPU in points of R@1, on the captions of 100 persons
KERNELS: Final = {"deterministic": ("trainer.deterministic=true",), "default": ()}
SYNCHRONIZATIONS: Final = "benchmarks.gpu_claims.training_run.CountSynchronizations"


class Trained(NamedTuple):
    """A finished run: its folder, its findings, and the step of the checkpoint from which it was continued."""

    folder: Path
    found: dict[str, Any]
    continued_from: int = 0

    @property
    def weights(self) -> dict[str, Any]:
        return read_checkpoint(self.folder / "checkpoints" / "last.ckpt")["state_dict"]


class Runs:
    """Trainings of the drawn default that run at the same time, each in a separate process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._root = drawn_root(bench)
        self._processes: list[subprocess.Popen[bytes]] = []

    def undisturbed(self, name: str, overrides: Sequence[str] = (), **environment: str) -> Trained:
        """Returns a run that was not interrupted."""
        folder = self._bench.folder / name
        self._wait(folder, self._start(folder, overrides, **environment))
        return Trained(folder, self._found(folder))

    def killed(self, name: str, overrides: Sequence[str] = ()) -> Trained:
        """Returns a run that was killed after its first checkpoint within the epoch, and continued from there."""
        folder = self._bench.folder / name
        last = folder / "checkpoints" / "last.ckpt"
        process = self._start(folder, overrides)
        while not last.exists() and process.poll() is None and self._bench.left() > 0:
            time.sleep(PATIENCE)
        process.kill()
        process.wait()
        if not last.exists():
            raise RuntimeError(f"{name} left no checkpoint; {_last_words(folder)}")
        step = int(read_checkpoint(last)["global_step"])
        self._wait(folder, self._start(folder, [*overrides, f"ckpt_path={last}"]))
        return Trained(folder, self._found(folder), step)

    def close(self) -> None:
        """Ends all runs that are still running."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, folder: Path, overrides: Sequence[str], **environment: str) -> "subprocess.Popen[bytes]":
        folder.mkdir(exist_ok=True)
        (folder / "found.json").unlink(missing_ok=True)
        tiny = ("img_size_str=64x32", "dataset.batch_size=4")
        line = [
            *(sys.executable, "-m", "benchmarks.gpu_claims.training_run", str(self._bench.memory_gb), str(folder)),
            f"dataset_root_dir={self._root}",
            *("logger=csv", "shown_queries=1", "dataset.num_workers=0", "trainer.log_every_n_steps=5"),
            f"callbacks.last.every_n_steps={20 if self._bench.on_gpu else 6}",
            f"+callbacks.synchronizations._target_={SYNCHRONIZATIONS}",
            *(() if self._bench.on_gpu else tiny),
            *overrides,
        ]
        # cuBLAS needs the first for deterministic kernels. The second limits threads, because many runs share the CPU.
        own = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "2" if self._bench.on_gpu else "1"}
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(line, cwd=ROOT, env=os.environ | own | environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _wait(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(1.0, self._bench.left()))
        if not (folder / "found.json").exists():
            code = process.returncode
            status = "has not ended in time" if code is None else f"ended with status {code}"
            raise RuntimeError(f"{folder.name} {status}; {_last_words(folder)}")

    def _found(self, folder: Path) -> dict[str, Any]:
        return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def training(bench: Bench) -> None:
    """Trains with and without a kill: with deterministic kernels, and on a GPU also with the default kernels."""
    runs = Runs(bench)
    with ThreadPoolExecutor(8) as pool:
        begin = pool.submit
        started: dict[str, Future[Trained]] = {}
        try:
            for name in KERNELS if bench.on_gpu else ("deterministic",):
                started |= {
                    f"{name}, whole": begin(runs.undisturbed, f"{name}-whole", KERNELS[name]),
                    f"{name}, cut": begin(runs.killed, f"{name}-cut", KERNELS[name]),
                }
            parts = {name: partial(_continued, bench, name, started) for name in KERNELS if f"{name}, cut" in started}
            if bench.on_gpu:
                started["default, again"] = begin(runs.undisturbed, "default-again")
                started["cpu"] = begin(runs.undisturbed, "cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="4")
                parts["R@1"] = partial(_beside_cpu, bench, started)
            bench.parts(parts)
        finally:
            runs.close()


def _continued(bench: Bench, name: str, started: dict[str, Future[Trained]]) -> None:
    """Compares the weights of a continued run with an undisturbed run, and those with a second undisturbed run."""
    runs = {run: started[key].result() for run in ("whole", "cut", "again") if (key := f"{name}, {run}") in started}
    whole = runs.pop("whole")
    gaps = {run: largest_gap(whole.weights, trained.weights) for run, trained in runs.items()}
    bench.row(
        kernels=name,
        continued_from_step=str(runs["cut"].continued_from),
        gap_of_continued=gaps["cut"],
        gap_of_another_undisturbed=gaps.get("again"),
        val_R1_undisturbed=whole.found["metrics"]["val/t2i/R1"],
        val_R1_continued=runs["cut"].found["metrics"]["val/t2i/R1"],
    )
    _tell_synchronizations(bench, whole.found)
    if name == "default":
        bench.expect(gaps["cut"] <= 10 * gaps["again"], f"{gaps['cut']:.3g} from undisturbed, not {gaps['again']:.3g}")
    else:
        bench.expect(gaps["cut"] == 0, f"continued, weights differ by up to {gaps['cut']:.3g}")


def _beside_cpu(bench: Bench, started: dict[str, Future[Trained]]) -> None:
    metrics = [started[run].result().found["metrics"] for run in ("default, whole", "cpu")]
    for side, found in zip(("GPU", "CPU"), metrics, strict=True):
        bench.row(trained_on=side, val_t2i_R1=found["val/t2i/R1"], test_t2i_R1=found["test/t2i/R1"])
    gap = abs(metrics[0]["test/t2i/R1"] - metrics[1]["test/t2i/R1"])
    bench.expect(gap <= R1_GAP, f"test R@1 differs from the CPU's by {gap:.1f} points")


def _tell_synchronizations(bench: Bench, found: dict[str, Any]) -> None:
    """Reports synchronizations with the GPU in steps without logging, Lightning's loop and data loading included."""
    if not found["pictures"]:
        bench.note("matplotlib is not installed: the runs end without their report")
    if not bench.on_gpu:
        return
    steps, places = max(1, found["steps"]), found["synchronizations"]
    each = sum(places.values()) / steps
    bench.note(f"{each:.2f} synchronizations a step, in {steps} steps that log nothing")
    for place, count in sorted(places.items(), key=lambda item: -item[1])[:8]:
        bench.note(f"{count / steps:.2f} a step: {place}")
    bench.expect(not places, f"Lightning's loop waits for the GPU {each:.2f} times a step")


def largest_gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Returns the largest absolute difference of a weight between `one` and `other`."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


def _last_words(folder: Path) -> str:
    """Returns the last line of a run's output, and below it the last 40 lines."""
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return "\n".join([lines[-1], *lines[-40:]])
