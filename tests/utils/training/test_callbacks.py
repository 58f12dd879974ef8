from types import SimpleNamespace
from typing import Any

import pytest
import torch

from utils.training.callbacks import AmpOverflow, Progress


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


def test_overflows_are_counted_though_the_scale_is_read_seldom() -> None:
    """GradScaler halves its scale after each step that overflowed; the first steps of a run do."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), global_step=0)
    logged: list[dict[str, float]] = []
    module: Any = SimpleNamespace(log_dict=logged.append)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight])
    watch = AmpOverflow(every_n_steps=4)
    watch.on_train_start(trainer, module)

    def train(overflows: bool) -> None:
        weight.grad = torch.full((1,), torch.inf if overflows else 1.0)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, module)

    with pytest.warns(UserWarning, match="overflowed before step 4: loss scale now 8192"):
        list(map(train, (True, True, False, True, False, False, False, False)))
    assert logged == [{"amp/scale": 2.0**13, "amp/overflows": 3.0}] * 2
