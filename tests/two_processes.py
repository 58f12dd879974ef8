"""What a test does in one process, and in each of two."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import Tensor

import trainer
from lightning_data import build_data
from lightning_models import build_module
from lightning_run import build_trainer, prepare
from model.tbps import build_encoder

ROOT = Path(__file__).parents[1]


class KeepFirstStep(Callback):
    """Keeps the gradients of the first step by parameter, and all that it logs of losses."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.losses: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step == 0:
            self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            kinds = ("train/loss", "train/weighted/", "train/stat/")
            self.losses = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(kinds)}


def composed(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return compose("demo", overrides=list(overrides))


def two_steps(cfg: DictConfig) -> dict[str, Any]:
    """Returns gradients and losses of the first step of two, and the buffers and weights after the second."""
    prepare(cfg)
    data = build_data(cfg)
    module = build_module(cfg, build_encoder(cfg), num_classes=data.num_classes)
    data.set_views(module.objective.needs)
    module.encoder.backbone.resize_token_embeddings(data.max_token_id + 1)
    lightning, kept = build_trainer(cfg, data), KeepFirstStep()
    lightning.callbacks = [kept]
    lightning.fit(module, datamodule=data)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = dict(module.named_buffers())
    return {"gradients": kept.gradients, "losses": kept.losses, "buffers": buffers, "weights": weights}


def found_of(jobs: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, Any]:
    """Returns what this process finds of {"steps": {name: overrides}, "runs": {name: overrides}}."""
    return {
        "steps": {name: two_steps(composed(overrides)) for name, overrides in jobs["steps"].items()},
        "runs": {name: trainer.train(composed(overrides)) for name, overrides in jobs["runs"].items()},
    }
