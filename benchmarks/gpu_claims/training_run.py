"""A training of the drawn default in a process that can be killed.

    python -m benchmarks.gpu_claims.training_run MEMORY_GB RUN_DIR [any Hydra overrides...]

It writes RUN_DIR/found.json: the metrics, and the synchronizations with the GPU between logging steps.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.callbacks import Callback

import lightning_run
import trainer
from benchmarks.gpu_claims.bench import cap_memory
from benchmarks.gpu_claims.kernels import counted_synchronizations
from benchmarks.gpu_claims.steps import composed


class CountSynchronizations(Callback):
    """A callback that counts synchronizations with the GPU from batch to batch, in steps without logging."""

    steps: ClassVar[int] = 0
    places: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        self._watch: Any = None
        self._counted: Counter[str] = Counter()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._stop()
        if (trainer.global_step + 1) % trainer.log_every_n_steps:
            self._watch = counted_synchronizations()
            self._counted = self._watch.__enter__()

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._stop(keep=False)  # Lightning validates before the epoch of training ends

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._stop(keep=False)  # the end of the epoch does not belong to a step

    def _stop(self, keep: bool = True) -> None:
        if self._watch is None:
            return
        self._watch.__exit__(None, None, None)
        if keep:
            CountSynchronizations.steps += 1
            CountSynchronizations.places.update(self._counted)
        self._watch = None


def without_pictures(*_: Any) -> None:
    """Replaces the report of a run, which would draw plots."""


def main(memory_gb: float, run_dir: Path, overrides: list[str]) -> None:
    if torch.cuda.is_available():
        cap_memory(memory_gb)
    drawing: Callable[..., None] = lightning_run.report
    if find_spec("matplotlib") is None:
        lightning_run.report = without_pictures
    metrics = trainer.train(composed("demo", f"run_dir={run_dir}", *overrides))
    found = {
        "metrics": metrics,
        "pictures": lightning_run.report is drawing,
        "steps": CountSynchronizations.steps,
        "synchronizations": CountSynchronizations.places,
    }
    (run_dir / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    from benchmarks.gpu_claims import training_run  # the callback's own module, not the one called __main__

    training_run.main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
