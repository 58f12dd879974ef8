"""What continuing restores besides weights is compared with what the run itself has, before any of it is used."""

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.optim import AdamW

from utils.checkpoints.schema import STATE, check_moments, check_restorable
from utils.checkpoints.tensor_files import UnreadableError

STOPS = EarlyStopping(monitor="val/t2i/R1")


@pytest.fixture(scope="module")
def trainer() -> L.Trainer:
    """A trainer whose optimizer, of two groups, has made a step; it stops early."""
    module = nn.Linear(3, 2)
    groups = [{"params": [p], "names": [n], "group": n} for n, p in module.named_parameters()]
    optimizer = AdamW(groups)
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    made = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[STOPS], **options)
    made.strategy.optimizers = [optimizer]
    return made


@pytest.fixture
def content(trainer: L.Trainer) -> dict[str, Any]:
    """What a checkpoint of that trainer holds."""
    position = trainer.fit_loop.state_dict()
    position["state_dict"]["combined_loader"] = [{"epoch": 0, "batches": 3, "length": 6}]
    return copy.deepcopy(
        {
            "epoch": 0,
            "global_step": 1,
            "pytorch-lightning_version": "2.6.6",
            "loops": {"fit_loop": position},
            "callbacks": {STOPS.state_key: STOPS.state_dict()},
            "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "lr_schedulers": [{"last_epoch": 1, "_step_count": 2}],
            STATE: {"best": "best-000.ckpt", "score": 0.5, "rows": None},
        }
    )


def check(content: dict[str, Any], trainer: L.Trainer) -> None:
    check_restorable(content, trainer)
    check_moments(content["optimizer_states"][0]["state"], trainer.optimizers[0])


def test_what_the_run_itself_has_written_is_restored(content: dict[str, Any], trainer: L.Trainer) -> None:
    check(content, trainer)


def fit(content: dict[str, Any]) -> dict[str, Any]:
    return content["loops"]["fit_loop"]


def adam(content: dict[str, Any]) -> dict[str, Any]:
    return content["optimizer_states"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("loops"), "it has no 'loops'"),
        (lambda c: c.update({"pytorch-lightning_version": "x"}), "it was written by Lightning x, expected Lightning 2"),
        (lambda c: c.update(loops={}), "its loops.fit_loop is nothing, expected names and values"),
        (lambda c: fit(c).pop("epoch_progress"), "it has no loops.fit_loop.epoch_progress"),
        (lambda c: fit(c)["epoch_progress"]["total"].update(ready=-1), "epoch_progress.total.ready is the number -1"),
        (lambda c: fit(c)["epoch_progress"]["total"].update(ready="1"), "epoch_progress.total.ready is a text"),
        (lambda c: fit(c)["epoch_loop.batch_progress"].update(is_last_batch=1), "is_last_batch is the number 1"),
        (lambda c: fit(c).update(state_dict={}), "it has no loops.fit_loop.state_dict.combined_loader"),
        (lambda c: fit(c)["state_dict"].update(combined_loader=[]), "combined_loader is a list of 0"),
        (lambda c: c["callbacks"].update(x=5), "'x' of its 'callbacks' is the number 5"),
        (lambda c: c["callbacks"][STOPS.state_key].pop("wait_count"), "it has no EarlyStopping.wait_count"),
        (lambda c: c["callbacks"][STOPS.state_key].update(best_score="x"), "EarlyStopping.best_score is a text"),
        (lambda c: c.update({STATE: []}), "'checkpoints' of it is a list of 0"),
        (lambda c: c[STATE].update(best="../best-000.ckpt"), "expected a name without folders"),
        (lambda c: c[STATE].update(best=".."), "expected a name without folders"),
        (lambda c: c[STATE].update(score="x"), "the score of its best checkpoint is a text"),
        (lambda c: c[STATE].update(rows=-1), "'rows' of 'checkpoints' of it is the number -1"),
        (lambda c: c.update(optimizer_states=[]), "its optimizer_states is a list of 0, expected a list of 1"),
        (lambda c: adam(c)["param_groups"][0].pop("lr"), "it has no optimizer_states.param_groups.0.lr"),
        (lambda c: adam(c)["param_groups"][0].pop("params"), "it has no optimizer_states.param_groups.0.params"),
        (lambda c: adam(c)["param_groups"][0].update(params=[[]]), "param_groups.0.params is a list of 1, expected a"),
        (lambda c: adam(c)["param_groups"][0].update(names=5), "param_groups.0.names is the number 5"),
        (lambda c: adam(c)["param_groups"][0].update(lr=float("nan")), "param_groups.0.lr is the number nan"),
        (lambda c: adam(c)["param_groups"].append(5), "param_groups.2 is the number 5"),
        (lambda c: adam(c)["state"][0].pop("exp_avg"), "it has no optimizer_states.state.0.exp_avg"),
        (lambda c: adam(c)["state"][0].update(exp_avg=torch.zeros(2)), r"exp_avg is of shape \(2,\)"),
        (lambda c: adam(c).update(state=[]), "its optimizer_states.0.state is a list of 0"),
        (lambda c: c.update(lr_schedulers=[{}]), "it has no lr_schedulers.0.last_epoch"),
        (lambda c: c["lr_schedulers"][0].update(last_epoch=10**400), "lr_schedulers.0.last_epoch is the number 1000"),
    ],
)
def test_what_it_would_not_write_is_refused(
    content: dict[str, Any], trainer: L.Trainer, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(content)
    with pytest.raises(UnreadableError, match=message):
        check(content, trainer)
