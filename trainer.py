"""Trains and tests a composed method.

uv run trainer.py                                      the embedded default
uv run trainer.py -cn m_siglip dataset=cuhk_pedes      another config, another dataset
uv run trainer.py ckpt_path=last                       continue the newest run of this name
uv run trainer.py task=test ckpt_path=outputs/.../checkpoints/best-059.ckpt
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from utils.config import find_checkpoint, register_resolvers
from utils.errors import UserError, fail, nearest
from utils.hydra_errors import hydra_errors_in_one_sentence

if TYPE_CHECKING:
    import lightning as L

    from lightning_data import TBPSDataModule
    from lightning_models import LitTBPS

CONFIG_DIR = Path(__file__).parent / "config"
OF_THE_MODEL = ("img_size_str", "backbone", "head", "lora")

register_resolvers()


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, then evaluates the checkpoint that ranked best on the validation split.

    Returns:
        The metrics of that checkpoint in percent: ``val/t2i/R1``, ``test/i2t/mAP``, ...
    """
    from lightning_models import build_encoder, build_module
    from utils.checkpoints import load_weights, read_checkpoint

    continued = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)
    if continued is not None:
        read_checkpoint(continued)
    trainer = _prepare(cfg)
    OmegaConf.save(cfg, Path(cfg.run_dir) / "config.yaml", resolve=True)
    encoder = build_encoder(cfg)
    data = _data(cfg)
    module = build_module(cfg, encoder, num_classes=data.num_classes)
    data.set_views(module.objective.needs)
    _announce(cfg, module, data)

    trainer.fit(module, datamodule=data, ckpt_path=continued, weights_only=True)
    best = Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    load_weights(module, read_checkpoint(best)["state_dict"], source=best)
    metrics = _ranked(trainer.validate(module, datamodule=data, verbose=False))
    metrics |= _ranked(trainer.test(module, datamodule=data, verbose=False))
    _report(cfg, trainer, module, data, metrics, best)
    return metrics


def test(cfg: DictConfig) -> dict[str, float]:
    """Evaluates the checkpoint `cfg.ckpt_path` on the test split of `cfg.dataset`.

    The encoder is the checkpoint's own, and losses are not built: how many identities it was trained
    on does not matter.

    Returns:
        Metrics in percent: ``test/t2i/R1``, ``test/i2t/mAP``, ...
    """
    from lightning_models import LitRanker, build_encoder
    from utils.checkpoints import encoder_weights, load_weights, read_checkpoint

    path = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)
    if path is None:
        raise UserError(
            "task=test needs a checkpoint: give ckpt_path=outputs/.../checkpoints/<file>.ckpt, or 'last'"
        )
    checkpoint = read_checkpoint(path)
    _take_over_model(cfg, checkpoint["config"], path)
    trainer = _prepare(cfg)
    encoder = build_encoder(cfg)
    load_weights(encoder, encoder_weights(checkpoint), source=path)
    data = _data(cfg)
    module = LitRanker(encoder)
    metrics = _ranked(trainer.test(module, datamodule=data, verbose=False))
    _report(cfg, trainer, module, data, metrics, path)
    return metrics


@hydra.main(version_base="1.3", config_path="config", config_name="demo")
def main(cfg: DictConfig) -> float | None:
    """Runs `cfg.task`; returns t2i R@1 (of validation where there is one) for sweepers that optimise."""
    tasks = {"train": train, "test": test}
    cfg.run_dir = HydraConfig.get().runtime.output_dir
    try:
        if cfg.task not in tasks:
            raise UserError(
                f"task={cfg.task}: no such task.{nearest(cfg.task, set(tasks))} Choose {' or '.join(tasks)}"
            )
        metrics = tasks[cfg.task](cfg)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"error: job {HydraConfig.get().job.num} ({cfg.run_name}): {error}", file=sys.stderr)
            return None
        fail(str(error))
    return metrics.get("val/t2i/R1", metrics["test/t2i/R1"])


def _prepare(cfg: DictConfig) -> L.Trainer:
    """Makes what the embedded default is made of, fixes the seed and builds the Lightning trainer."""
    import lightning as L
    from hydra.utils import instantiate

    from prepare_checkpoints import prepare_embedded
    from utils.checkpoints import AtomicCheckpointIO
    from utils.loggers import build_loggers
    from utils.quiet import quiet_libraries

    quiet_libraries()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    prepare_embedded(cfg)
    Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
    return instantiate(
        cfg.trainer,
        callbacks=list(instantiate(cfg.callbacks).values()) if cfg.task == "train" else [],
        logger=build_loggers(cfg.logger, cfg.run_dir, run_facts(cfg)),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=cfg.run_dir,
        enable_checkpointing=cfg.task == "train",
    )


def _take_over_model(cfg: DictConfig, trained: dict[str, Any], path: Path) -> None:
    """Sets the parts of `cfg` that describe the encoder to those of a checkpoint's config.

    Raises:
        UserError: the command line asks for another encoder than the checkpoint's.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    named = {override.split("=")[0] for override in overrides}
    if "backbone.folder" in named:
        trained["backbone"]["folder"] = cfg.backbone.folder
    for section in OF_THE_MODEL:
        asked = OmegaConf.to_container(cfg, resolve=True)[section]  # type: ignore[index, call-overload]
        if asked != trained[section] and any(key.split(".")[0] == section for key in named):
            raise UserError(
                f"{section}: {path} was trained with another one than the command line asks for; leave {section} "
                "away, it comes with the checkpoint"
            )
        cfg[section] = trained[section]


def _announce(cfg: DictConfig, module: LitTBPS, data: TBPSDataModule) -> None:
    """Prints where the run lives, what it trains on and what of the model it trains."""
    from solver.groups import group_table

    parameters = [p.numel() for p in module.parameters()]
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    print(f"run     {cfg.run_dir}")
    print(f"data    {data.describe()}")
    print(f"method  {cfg.loss.name} on {cfg.backbone.name}, {cfg.lora.name}, seed {cfg.seed}")
    print(f"model   {sum(parameters):,} parameters, {trained:,} trained ({trained / sum(parameters):.1%})")
    print(group_table(module.named_parameters(), cfg.optimizer.param_groups), flush=True)


def _ranked(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the retrieval metrics among what Lightning returns for a validation or test run."""
    return {name: value for name, value in results[0].items() if name.startswith(("val/", "test/"))}


if __name__ == "__main__":
    with hydra_errors_in_one_sentence(CONFIG_DIR, "demo"):
        main()
