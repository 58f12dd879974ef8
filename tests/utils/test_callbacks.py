from types import SimpleNamespace
from typing import Any

import torch

from utils.callbacks import Progress


class WaitsForTheDevice:
    """A logged figure that counts how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.5


def test_the_progress_bar_reads_figures_every_so_many_steps() -> None:
    loss, bar, shown = WaitsForTheDevice(), Progress(every_n_steps=5), []
    for step in range(1, 21):
        trainer: Any = SimpleNamespace(training=True, global_step=step, callback_metrics={"train/loss": loss})
        shown.append(bar.get_metrics(trainer, torch.nn.Module()))
    assert loss.reads == 5  # at first, and at steps 5, 10, 15 and 20
    assert shown == [{"loss": "0.500"}] * 20


def test_the_progress_bar_shows_figures_of_validation_at_once() -> None:
    bar, metrics = Progress(every_n_steps=5), {"train/loss": torch.tensor(1.0)}
    trainer: Any = SimpleNamespace(training=True, global_step=1, callback_metrics=metrics)
    bar.get_metrics(trainer, torch.nn.Module())
    trainer.training, metrics["val/t2i/R1"] = False, torch.tensor(62.5)
    assert bar.get_metrics(trainer, torch.nn.Module()) == {"loss": "1.000", "val R@1": "62.50"}
