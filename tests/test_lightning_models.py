"""LitTBPS in Lightning's loop, with a model of two weights: schedule, progress, gradient norm, and NaN."""

import math
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from data.batch import Batch
from lightning_models import LitTBPS
from model.features import Features
from model.objectives import ModelSpec, Objective
from model.objectives.base import LossTerm, Stats
from model.tbps import TBPS
from utils.errors import UserError

BATCHES, EPOCHS = 4, 3


class Line(LossTerm):
    """6 a + 8 b of the two weights of its model: its gradient is 10 long. Remembers the progress that it was told.

    Args:
        bad_from: the step from which on it is NaN.
    """

    needs = frozenset({"image"})

    def __init__(self, weights: nn.Parameter, bad_from: float) -> None:
        super().__init__(spec=ModelSpec(1, 1, 1, 1))
        self.weights = weights
        self.bad_from = bad_from
        self.told: list[float] = []

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        self.told.append(features.epoch)
        factor = math.nan if len(self.told) > self.bad_from else 1.0
        return factor * (self.weights * torch.tensor([6.0, 8.0])).sum(), dict


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, 0.25]))

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(1.0), torch.tensor(0.0)


class Data(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Batch]:
        images = torch.zeros(BATCHES, 2, 3, 1, 1, dtype=torch.uint8)
        return DataLoader([{"image": batch} for batch in images], batch_size=None)  # type: ignore[arg-type]


class Rates(L.Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        self.used.append(trainer.optimizers[0].param_groups[0]["lr"])


def module(folder: Path, bad_from: float = math.inf) -> LitTBPS:
    """One whose rate is 1 / 1,000 at the first step, 1 / 2,000 at the second, 1 / 3,000 at the third."""
    encoder: TBPS = Model()  # type: ignore[assignment]
    return LitTBPS(
        encoder,
        Objective({"line": Line(encoder.weights, bad_from)}),  # type: ignore[arg-type]
        make_optimizer=lambda named: torch.optim.SGD([{"params": [p for _, p in named], "group": "default"}], lr=1e-3),
        make_scheduler=lambda optimizer, **_: LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        config={"run_dir": str(folder)},
        precision="32-true",
        seed=0,
        log_every_n_steps=2,
    )


def loop(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.filterwarnings("ignore")
def test_the_schedule_moves_at_every_step_and_losses_learn_how_far_the_training_is(tmp_path: Path) -> None:
    made, rates = module(tmp_path), Rates()
    trainer = loop(rates)
    trainer.fit(made, datamodule=Data())
    assert rates.used == pytest.approx([1e-3 / (step + 1) for step in range(EPOCHS * BATCHES)])
    assert made.objective.terms["line"].told == [step / BATCHES for step in range(EPOCHS * BATCHES)]
    assert trainer.callback_metrics["train/grad_norm"].item() == pytest.approx(10.0)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_becomes_nan_names_the_step_and_the_epoch_in_which_it_did(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^loss term 'line' became nan at step 6 \(epoch 2\): "):
        loop().fit(module(tmp_path, bad_from=6), datamodule=Data())


def test_a_look_at_several_steps_names_the_first_that_was_bad(tmp_path: Path) -> None:
    made = module(tmp_path)
    made.trainer = loop()
    for step, value in ((3, 1.0), (4, math.inf), (5, math.nan)):
        made._finite.add(step, {"line": torch.tensor(value)})
    with pytest.raises(UserError, match=re.escape("loss term 'line' became inf at step 4 (epoch 1): ")):
        made._check_losses()
