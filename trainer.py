"""Trains and tests a composed method.

uv run trainer.py                                      the embedded default
uv run trainer.py -cn m_siglip dataset=cuhk_pedes      another config, another dataset
uv run trainer.py ckpt_path=last                       continue the newest run of this name
uv run trainer.py -cn clip experiment=irra task=plan   what a step of it takes, and the batch that fits 12 GB
uv run trainer.py task=test ckpt_path=outputs/.../checkpoints/best-059.ckpt
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from utils.config import find_checkpoint, register_resolvers
from utils.errors import UserError, nearest
from utils.hydra_errors import CONFIG_ERRORS, fail_job, hydra_errors_in_one_sentence

if TYPE_CHECKING:
    import lightning as L

    from lightning_data import TBPSDataModule
    from lightning_models import LitRanker, LitTBPS

CONFIG_DIR = Path(__file__).parent / "config"
OF_THE_MODEL = ("img_size_str", "backbone", "head", "lora")
# Overrides that `_run_facts` tells by themselves, or that change no result.
IN_FACTS = (
    "task",
    "seed",
    "dataset",
    "dataset.language",
    "backbone",
    "lora",
    "loss",
    "logger",
    "output_dir",
    "dataset_root_dir",
    "run_name",
    "ckpt_path",
)

register_resolvers()


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, then evaluates the checkpoint that ranked best on the validation split.

    Returns:
        The metrics of that checkpoint in percent: ``val/t2i/R1``, ``test/i2t/mAP``, ...
    """
    continued = _checkpoint(cfg)

    from lightning_data import build_data
    from lightning_models import build_encoder, build_module
    from model.lora import save_adapters
    from model.objectives import check_needs
    from utils.checkpoints import load_weights, read_checkpoint

    if continued is not None:
        _refuse_other_model(cfg, read_checkpoint(continued)["config"], continued)
    _prepare(cfg)
    OmegaConf.save(cfg, Path(cfg.run_dir) / "config.yaml", resolve=True)
    data = build_data(cfg)
    encoder = build_encoder(cfg)
    data.check_token_ids(encoder.backbone.vocab_size)
    module = build_module(cfg, encoder, num_classes=data.num_classes)
    check_needs(module.objective, data.provides)
    data.set_views(module.objective.needs)
    encoder.backbone.grow_token_table(data.max_token_id + 1)  # by a mask token, where the tokenizer had none
    _announce(cfg, module, data)

    trainer = _trainer(cfg, data)
    trainer.fit(module, datamodule=data, ckpt_path=continued, weights_only=True)
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    if not best:
        raise UserError(
            "no epoch was validated, so there is no best checkpoint to test: leave trainer.limit_val_batches and "
            f"trainer.check_val_every_n_epoch as they are, or test {cfg.run_dir}/checkpoints/last.ckpt with task=test"
        )
    load_weights(module, read_checkpoint(best)["state_dict"], source=best)
    if cfg.lora.r > 0 and trainer.is_global_zero:
        save_adapters(encoder.backbone, Path(cfg.run_dir) / "adapters")
    trainer.validate(module, datamodule=data, verbose=False)
    metrics = module.figures("val")
    trainer.test(module, datamodule=data, verbose=False)
    _report(cfg, trainer, module, data)
    return metrics | module.figures("test")


def test(cfg: DictConfig) -> dict[str, float]:
    """Evaluates the checkpoint `cfg.ckpt_path` on the test split of `cfg.dataset`.

    The encoder is the checkpoint's own, and losses are not built: how many identities it was trained
    on does not matter.

    Returns:
        Metrics in percent: ``test/t2i/R1``, ``test/i2t/mAP``, ...
    """
    path = _checkpoint(cfg)
    if path is None:
        raise UserError("task=test needs a checkpoint: give ckpt_path=outputs/.../checkpoints/<file>.ckpt")

    from lightning_data import build_data
    from lightning_models import LitRanker, build_encoder
    from utils.checkpoints import encoder_weights, load_weights, read_checkpoint

    checkpoint = read_checkpoint(path)
    _take_over_model(cfg, checkpoint["config"], path)
    _prepare(cfg)
    data = build_data(cfg)
    encoder = build_encoder(cfg)
    weights = encoder_weights(checkpoint)
    encoder.grow_like(weights)
    load_weights(encoder, weights, source=path)
    data.check_token_ids(encoder.backbone.vocab_size)

    module = LitRanker(encoder)
    trainer = _trainer(cfg, data)
    trainer.test(module, datamodule=data, verbose=False)
    _report(cfg, trainer, module, data)
    return module.figures("test")


def plan(cfg: DictConfig) -> dict[str, float]:
    """Prints what a training step of `cfg` takes, and the largest batch that fits `cfg.plan.memory_gb`.

    Nothing needs to be there: no dataset, no weights, no GPU.

    Returns:
        The peak in GiB as ``plan/peak_gb``, with the reserve, and ``plan/largest``.
    """
    from planner import make_plan
    from utils.quiet import quiet_libraries

    quiet_libraries()
    made = make_plan(cfg)
    print(made, flush=True)
    return {"plan/peak_gb": made.peak_gb, "plan/largest": made.largest}


@hydra.main(version_base="1.3", config_path="config", config_name="demo")
def main(cfg: DictConfig) -> float | None:
    """Runs `cfg.task`; returns t2i R@1, of validation where there is one, for sweepers that optimise."""
    tasks = {"train": train, "test": test, "plan": plan}
    cfg.run_dir = HydraConfig.get().runtime.output_dir
    try:
        if cfg.task not in tasks:
            raise UserError(f"task={cfg.task}: no such task.{nearest(cfg.task, set(tasks))} Choose train, test or plan")
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        metrics = tasks[cfg.task](cfg)
    except CONFIG_ERRORS as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the other jobs of the sweep go on
        fail_job(error)
    return metrics.get("val/t2i/R1", metrics.get("test/t2i/R1"))


def _checkpoint(cfg: DictConfig) -> Path | None:
    """Returns the checkpoint file to continue or test, if `cfg.ckpt_path` asks for one."""
    path = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)
    if path is not None and not path.is_file():
        raise UserError(
            f"ckpt_path={cfg.ckpt_path}: {path} does not exist; give the path of a .ckpt file under "
            f"{cfg.output_dir}/, or 'last' for the newest run of {cfg.run_name}"
        )
    return path


def _refuse_other_model(cfg: DictConfig, trained: dict[str, Any], path: Path) -> None:
    """Raises `UserError` where another backbone or LoRA was trained, before anything is made or downloaded for it."""
    for section in ("backbone", "lora"):
        if cfg[section].name != trained[section]["name"]:
            raise UserError(
                f"ckpt_path: {path} is of another architecture: it was trained with {section} "
                f"{trained[section]['name']!r}, not {cfg[section].name!r}; continue with that one"
            )


def _take_over_model(cfg: DictConfig, trained: dict[str, Any], path: Path) -> None:
    """Sets the parts of `cfg` that describe the encoder, and what it was trained with, to a checkpoint's.

    Raises:
        UserError: the command line asks for another encoder than the checkpoint's.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    named = {override.split("=")[0] for override in overrides}
    if "backbone.folder" in named:
        trained["backbone"]["folder"] = cfg.backbone.folder
    composed: Any = OmegaConf.to_container(cfg, resolve=True)
    for section in OF_THE_MODEL:
        if composed[section] != trained[section] and any(key.split(".")[0] == section for key in named):
            raise UserError(
                f"{section}: {path} was trained with another one than the command line asks for; leave "
                f"{section} away, it comes with the checkpoint"
            )
        cfg[section] = trained[section]
    cfg.loss, cfg.seed = trained["loss"], trained["seed"]


def _prepare(cfg: DictConfig) -> None:
    """Fixes the seed, makes the run's folder and whatever of the embedded default is not there yet."""
    import lightning as L

    from prepare_checkpoints import CHECKPOINTS, prepare
    from utils.quiet import quiet_libraries

    quiet_libraries()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
    root = Path(cfg.dataset_root_dir)
    if cfg.dataset.name == "synthetic":
        from data.synthetic import FOLDER, generate

        if not (root / FOLDER).exists():
            generate(root)
    name, folder = cfg.backbone.name, Path(cfg.backbone.folder)
    if not folder.exists():
        if name not in CHECKPOINTS or CHECKPOINTS[name].repo is not None:
            raise UserError(
                f"backbone {name!r}: {folder} does not exist; run 'uv run prepare_checkpoints.py {name}', or "
                "set backbone.folder to where it lies"
            )
        prepare(name, root)


def _trainer(cfg: DictConfig, data: TBPSDataModule) -> L.Trainer:
    """Returns Lightning's trainer with the callbacks and loggers of the config."""
    from hydra.utils import instantiate

    from utils.checkpoints import AtomicCheckpointIO
    from utils.loggers import build_loggers

    training = cfg.task == "train"
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return instantiate(
        cfg.trainer,
        callbacks=list(instantiate(cfg.callbacks).values()) if training else [],
        logger=build_loggers(cfg.logger, cfg.run_dir, _run_facts(cfg, data), config),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=cfg.run_dir,
        enable_checkpointing=training,
        enable_progress_bar=training,
    )


def _run_facts(cfg: DictConfig, data: TBPSDataModule) -> dict[str, Any]:
    """Returns what tells this run from others, in tables and on dashboards."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {
        "strategy": cfg.loss.name,
        "dataset": f"{cfg.dataset.name}-{data.dataset.language}",
        "backbone": cfg.backbone.name,
        "lora": cfg.lora.name,
        "seed": cfg.seed,
        "val_protocol": "paper" if data.dataset.val_is_test else "held_out",
        "variant": " ".join(o for o in overrides if o.split("=")[0] not in IN_FACTS),
    }


def _announce(cfg: DictConfig, module: LitTBPS, data: TBPSDataModule) -> None:
    """Prints where the run lives, what it trains on and what of the model it trains."""
    from solver.groups import group_table
    from utils.reports import parameter_table

    print(f"run     {cfg.run_dir}")
    print(f"data    {data.describe()}")
    if data.mask_token_added:
        print(f"mask    the tokenizer of {cfg.backbone.name} has no mask token; one is added, with a row for it")
    print(f"method  {cfg.loss.name} on {cfg.backbone.name} ({cfg.lora.name}), seed {cfg.seed}")
    print(parameter_table(module))
    print(group_table(module.named_parameters(), cfg.optimizer.param_groups), flush=True)


def _report(cfg: DictConfig, trainer: L.Trainer, module: LitRanker, data: TBPSDataModule) -> None:
    """Prints and saves the test metrics, and shows how some test queries rank."""
    from utils.loggers import log_ranked
    from utils.pictures import rank_queries, ranked_picture
    from utils.reports import metrics_table, save_metrics

    if not trainer.is_global_zero:
        return
    facts, found = _run_facts(cfg, data), module.encodings
    print(metrics_table(module.metrics, facts), flush=True)
    saved = save_metrics(cfg.run_dir, module.metrics, facts)
    captions = data.test_captions
    some = range(0, len(captions), max(1, len(captions) // cfg.shown_queries))[: cfg.shown_queries]
    queries = rank_queries(
        found.texts[some],
        found.images,
        found.text_pids[some],
        found.image_pids,
        [captions[i] for i in some],
        data.test_image_paths,
    )
    picture = Path(cfg.run_dir) / "ranked.jpg"
    ranked_picture(queries, picture)
    log_ranked(trainer.loggers, queries, key="test/ranked", step=trainer.global_step)
    print(f"saved   {saved}, {picture}", flush=True)


if __name__ == "__main__":
    # Threads that wait asleep: where other programs keep the cores busy, spinning ones halve the speed or worse.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with hydra_errors_in_one_sentence(CONFIG_DIR, "demo"):
        main()
