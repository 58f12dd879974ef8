"""What continuing restores besides weights is compared with what the run itself has, before any of it is used."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from utils.checkpoint_schema import check_optimizers, check_restorable
from utils.tensor_files import UnreadableError

KEY = ModelCheckpoint(monitor="val/t2i/R1").state_key


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> L.Trainer:
    """A trainer with an optimizer of two groups that has made a step, its schedule, and the best one's callback."""
    module = nn.Linear(3, 2)
    optimizer = AdamW([{"params": [module.weight], "name": "a"}, {"params": [module.bias], "name": "b"}])
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    best = ModelCheckpoint(str(tmp_path_factory.mktemp("run")), monitor="val/t2i/R1")
    made = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[best], enable_progress_bar=False)
    made.strategy.optimizers = [optimizer]
    made.strategy.lr_scheduler_configs = [LRSchedulerConfig(LambdaLR(optimizer, lambda _: 1.0))]
    return made


@pytest.fixture
def content(trainer: L.Trainer) -> dict[str, Any]:
    """What a checkpoint of that trainer holds."""
    position = trainer.fit_loop.state_dict()
    position["state_dict"]["combined_loader"] = [{"epoch": 0, "batches": 3, "length": 6}]
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    path = f"{best.dirpath}/best.ckpt"
    state = {**best.state_dict(), "best_k_models": {path: torch.tensor(0.5)}, "best_model_path": path}
    state |= {"kth_best_model_path": path, "best_model_score": torch.tensor(0.5)}
    return copy.deepcopy(
        {
            "loops": {"fit_loop": position},
            "callbacks": {best.state_key: state},
            "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        }
    )


def check(content: dict[str, Any], trainer: L.Trainer) -> None:
    check_restorable(content, trainer)
    check_optimizers(content, trainer)


def test_what_the_run_itself_has_written_is_restored(content: dict[str, Any], trainer: L.Trainer) -> None:
    check(content, trainer)


def fit(content: dict[str, Any]) -> dict[str, Any]:
    return content["loops"]["fit_loop"]


def adam(content: dict[str, Any]) -> dict[str, Any]:
    return content["optimizer_states"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(loops={}), "'loops' of it has no 'fit_loop'"),
        (lambda c: fit(c).pop("epoch_progress"), "it has no loops.fit_loop.epoch_progress"),
        (lambda c: fit(c)["epoch_progress"]["total"].update(ready=-1), "epoch_progress.total.ready is the number -1"),
        (lambda c: fit(c)["epoch_progress"]["total"].update(ready="1"), "epoch_progress.total.ready is a text"),
        (lambda c: fit(c)["epoch_loop.batch_progress"].update(is_last_batch=1), "is_last_batch is the number 1"),
        (lambda c: fit(c).update(state_dict={}), "it has no loops.fit_loop.state_dict.combined_loader"),
        (
            lambda c: fit(c)["state_dict"].update(combined_loader=[]),
            "combined_loader is a list of 0, expected a list of 1",
        ),
        (lambda c: c["callbacks"].update(x=5), "'x' of its 'callbacks' is the number 5"),
        (lambda c: c["callbacks"][KEY].pop("best_k_models"), "it has no callbacks.ModelCheckpoint.best_k_models"),
        (lambda c: c["callbacks"][KEY].update(kth_value="x"), "kth_value is a text"),
        (lambda c: c.update(optimizer_states=[]), "its optimizer_states is a list of 0, expected a list of 1"),
        (lambda c: adam(c)["param_groups"].pop(), "param_groups is a list of 1, expected a list of 2"),
        (lambda c: adam(c)["param_groups"][0].pop("lr"), "it has no optimizer_states.0.param_groups.0.lr"),
        (lambda c: adam(c)["param_groups"][0].update(lr=float("nan")), "param_groups.0.lr is the number nan"),
        (lambda c: adam(c)["param_groups"][0].update(betas=[0.9]), "betas is a list of 1, expected a list of 2"),
        (lambda c: adam(c)["state"].update({9: {}}), "names a parameter 9 of 2"),
        (lambda c: adam(c)["state"].update({"x": {}}), "names a parameter 'x' of 2"),
        (lambda c: adam(c)["state"][0].pop("exp_avg"), "it has no optimizer_states.state.0.exp_avg"),
        (
            lambda c: adam(c)["state"][0].update(exp_avg=torch.zeros(2)),
            r"exp_avg is of shape \(2,\), expected a tensor",
        ),
        (lambda c: adam(c).update(state=[]), "its optimizer_states.0.state is a list of 0"),
        (lambda c: c.update(lr_schedulers=[{}]), "it has no lr_schedulers.0.base_lrs"),
        (lambda c: c["lr_schedulers"][0].update(lr_lambdas=[5, None]), "lr_lambdas holds states, expected none"),
        (lambda c: c["lr_schedulers"][0].update(last_epoch=10**400), "last_epoch"),
    ],
)
def test_what_it_would_not_write_is_refused(
    content: dict[str, Any], trainer: L.Trainer, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(content)
    with pytest.raises(UnreadableError, match=message):
        check(content, trainer)


@pytest.mark.parametrize("place", ["best_k_models", "best_model_path", "kth_best_model_path", "last_model_path"])
def test_a_file_that_is_none_of_its_checkpoints_would_not_be_deleted(
    content: dict[str, Any], trainer: L.Trainer, tmp_path: Path, place: str
) -> None:
    """ModelCheckpoint deletes the file that is best no more, wherever its state says that it lies."""
    state = content["callbacks"][KEY]
    for path in (tmp_path / "thesis.tex", f"{state['dirpath']}/../../thesis.tex", "file:///thesis.tex"):
        state[place] = {str(path): torch.tensor(0.5)} if place == "best_k_models" else str(path)
        with pytest.raises(UnreadableError, match=r"it would delete .*thesis.tex, which is not among its checkpoints"):
            check(content, trainer)
