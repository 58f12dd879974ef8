"""Trains and tests a composed method.

uv run trainer.py                                      the embedded default
uv run trainer.py -cn m_siglip dataset=cuhk_pedes      another config, another dataset
uv run trainer.py ckpt_path=last                       continue the newest run of this name
uv run trainer.py -cn clip experiment=irra task=plan   what a step of it takes, and the batch that fits 12 GB
uv run trainer.py task=test ckpt_path=outputs/.../checkpoints/best-059.ckpt
uv run trainer.py -cn clip task=test backbone.folder=irra.pth dataset=cuhk_pedes       published weights
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from utils.config.hydra_errors import hydra_errors_in_one_sentence, job_sentence, let_go
from utils.config.multirun_subprocess import needs_own_command, run_own_command
from utils.config.options import check_options, check_overrides, limited
from utils.config.recipe import describe_recipe
from utils.config.resolvers import register_resolvers, run_facts
from utils.config.run_folders import find_checkpoint, last_of_first_process, remove_if_empty, settle
from utils.continuing.composed import with_composed
from utils.continuing.taken_over import model_config
from utils.errors import UserError, fail, nearest
from utils.training.signals import end_with_parent, stopping
from utils.training.stopped_run import arguments_of_slurm, continued_when_stopped

if TYPE_CHECKING:
    import lightning as L

    from lightning_data import TBPSDataModule
    from lightning_models import LitRanker, LitTBPS
    from utils.continuing.continued import Continued
    from utils.ranking.rerank import Reranker
    from utils.report.run_record import RunRecord
    from utils.report.tested import Plot

CONFIG_DIR = Path(__file__).parent / "config"

register_resolvers()


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, then evaluates the checkpoint that ranked best on the validation split.

    Returns:
        The metrics of that checkpoint in percent: ``val/t2i/R1``, ``test/i2t/mAP``, ...
    """
    check_options(cfg)
    path = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)

    from lightning_data import build_data
    from lightning_models import build_encoder, build_module
    from model.backbones.lora import save_adapters
    from model.objectives import check_needs
    from model.published.converted import load_heads, mask_row
    from utils.checkpoints.weights import load_weights, read_checkpoint
    from utils.config.evaluation import build_plots, build_reranker
    from utils.continuing.continued import Continued
    from utils.report.run_record import RunRecord

    continued = None if path is None else Continued(cfg, path)
    cfg = with_composed(cfg) if continued is None else continued.config
    check_options(cfg)
    _prepare(cfg, is_new=continued is None)
    data = build_data(cfg)
    encoder = build_encoder(cfg)
    data.check_token_ids(encoder.backbone.vocab_size)
    module = build_module(cfg, encoder, num_classes=data.num_classes)
    reranker, plots = build_reranker(cfg.evaluation), build_plots(cfg.evaluation)
    check_needs(module.objective, data.provides | encoder.provides)
    data.set_views(module.objective.needs, mask_row(Path(cfg.backbone.folder), encoder.backbone.vocab_size))
    encoder.backbone.grow_token_table(data.max_token_id + 1)  # by a mask token, where the tokenizer had none
    record = RunRecord(cfg, data.provenance, continued.facts if continued else None)
    if continued is not None:
        continued.check(module, data.provenance)
    _announce(cfg, module, data, continued)
    for line in load_heads(module.objective, Path(cfg.backbone.folder)):
        print(f"head    {line}", flush=True)

    trainer = _trainer(cfg, data, record)
    _say_precision(cfg, trainer)
    data.check_loading()
    module.check_optimizer()
    if continued is not None:  # a trial, as that of the weights
        module.optimizer_state_of(continued.take_checkpoint(), trainer, continued.path)
    _start_loggers(trainer, cfg, data, record)
    trainer.fit(module, datamodule=data, ckpt_path=path)  # read by AtomicCheckpointIO, which unpickles no code
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    if not best:
        raise UserError(
            "no epoch was validated, so there is no best checkpoint to test: leave trainer.limit_val_batches and "
            f"trainer.check_val_every_n_epoch as they are, or test {cfg.run_dir}/checkpoints/last.ckpt with task=test"
        )
    tested = read_checkpoint(best)
    load_weights(module, tested["state_dict"], source=best)
    if cfg.lora.r > 0 and trainer.is_global_zero:
        save_adapters(encoder.backbone, Path(cfg.run_dir) / "adapters")
    trainer.validate(module, datamodule=data, verbose=False)
    metrics = module.figures("val")
    trainer.test(module, datamodule=data, verbose=False)
    _report(cfg, trainer, module, data, record.of_test(best, tested), reranker, plots)
    return metrics | module.figures("test")


def test(cfg: DictConfig) -> dict[str, float]:
    """Evaluates the checkpoint `cfg.ckpt_path` on the test split of `cfg.dataset`; without one, the backbone as it is.

    The encoder is the checkpoint's own, and losses are not built: how many identities it was trained
    on does not matter.

    Returns:
        Metrics in percent: ``test/t2i/R1``, ``test/i2t/mAP``, ...
    """
    check_options(cfg)
    path = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)

    from lightning_data import build_data
    from lightning_models import LitRanker, build_encoder
    from model.published.converted import ranking_notes
    from utils.checkpoints.weights import encoder_weights, load_weights, read_checkpoint
    from utils.config.evaluation import build_measures, build_plots, build_reranker
    from utils.report.run_record import RunRecord

    checkpoint: Any = {} if path is None else read_checkpoint(path)
    cfg = with_composed(cfg) if path is None else model_config(cfg, checkpoint["config"], path)
    _prepare(cfg)
    if path is None:
        cfg.loss.name = Path(cfg.backbone.folder).name
    data = build_data(cfg, ["test"])
    encoder = build_encoder(cfg)
    if path is not None:
        weights = encoder_weights(checkpoint)
        encoder.grow_like(weights)
        load_weights(encoder, weights, source=path)
    data.check_token_ids(encoder.backbone.vocab_size)
    for note in ranking_notes(Path(cfg.backbone.folder), data.num_classes):
        print(f"note    {note}", flush=True)

    module = LitRanker(encoder, cfg.evaluation.precision, build_measures(cfg.evaluation))
    reranker, plots = build_reranker(cfg.evaluation), build_plots(cfg.evaluation)
    trainer = _trainer(cfg, data)
    data.check_loading()
    if trainer.is_global_zero:
        trained = f"after {checkpoint.get('epoch', '?')} epochs, {checkpoint.get('global_step', '?')} steps"
        tested = f"{cfg.backbone.folder} as it is" if path is None else f"{path} ({trained}), {cfg.loss.name}"
        print(f"run     {cfg.run_dir}\ntests   {tested} on {cfg.backbone.name}\ndata    {data.describe()}")
        print(f"images  {data.describe_images()}")
        _say_limits(cfg, data)
    _say_precision(cfg, trainer)
    record = RunRecord(cfg, data.provenance)
    _start_loggers(trainer, cfg, data, record)
    trainer.test(module, datamodule=data, verbose=False)
    _report(cfg, trainer, module, data, record.of_test(path, checkpoint), reranker, plots)
    return module.figures("test")


def plan(cfg: DictConfig) -> dict[str, float]:
    """Prints what a training step of `cfg` takes, and the largest batch that fits `cfg.plan.memory_gb`.

    Nothing needs to be there: no dataset, no weights, no GPU.

    Returns:
        The peak in GiB as ``plan/peak_gb``, with the reserve, and ``plan/largest``.
    """
    check_options(cfg)

    from lightning_models import trace_step
    from utils.memory.plan import make_plan
    from utils.memory.trace import GIB
    from utils.training.log_filters import quiet_libraries

    quiet_libraries()
    made = make_plan(cfg, trace_step)
    print(made, flush=True)
    return {"plan/peak_gb": made.peak / GIB, "plan/largest": made.largest}


@hydra.main(version_base="1.3", config_path="config", config_name="demo")
def main(cfg: DictConfig) -> float | None:
    """Runs `cfg.task`; returns t2i R@1, of validation where there is one, for sweepers that optimise."""
    cfg.run_dir = HydraConfig.get().runtime.output_dir
    cfg.ckpt_path = last_of_first_process(cfg)
    end_with_parent()
    with stopping.on_signals(), continued_when_stopped(cfg):  # launchers of sweeps run it in processes of their own
        return _run_task(cfg)


def _run_task(cfg: DictConfig) -> float | None:
    tasks = {"train": train, "test": test, "plan": plan}
    try:
        if cfg.task not in tasks:
            raise UserError(f"task={cfg.task}: no such task.{nearest(cfg.task, set(tasks))} Choose train, test or plan")
        check_overrides(cfg)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        if needs_own_command(cfg.trainer):
            return run_own_command(Path(__file__))
        metrics = tasks[cfg.task](cfg)
    except Exception as error:
        told = job_sentence(error)
        if told is None:
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            let_go(error)
            raise UserError(told) from error  # the other jobs of the sweep go on
        remove_if_empty(cfg.run_dir)
        fail(told)  # before Hydra adds lines to it
    return metrics.get("val/t2i/R1", metrics.get("test/t2i/R1"))


def _prepare(cfg: DictConfig, *, is_new: bool = True) -> None:
    """Fixes the seed, makes the run's folder and what is not there yet: the embedded default, a converted backbone."""
    import lightning as L

    from prepare_checkpoints import prepare_folder
    from utils.checkpoints.disk import sweep
    from utils.training.log_filters import quiet_libraries

    quiet_libraries()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if is_new:
        settle(cfg)
    root = Path(cfg.dataset_root_dir)
    for folder in (root, *Path(cfg.run_dir).parent.glob("*/checkpoints")):
        sweep(folder)
    if cfg.dataset.name == "drawn":
        from data.synthetic import generate_once

        generate_once(root)
    cfg.backbone.folder = str(prepare_folder(cfg.backbone.name, Path(cfg.backbone.folder), root))


def _trainer(cfg: DictConfig, data: TBPSDataModule, record: RunRecord | None = None) -> L.Trainer:
    """Returns Lightning's trainer with the callbacks of the config and with `record`, without loggers."""
    from hydra.utils import instantiate

    from utils.checkpoints.weights import AtomicCheckpointIO
    from utils.training.callbacks import NoSignals

    training = cfg.task == "train"
    callbacks = cfg.callbacks if training else {key: cfg.callbacks.get(key) for key in ("progress", "epoch_line")}
    limits = {f"limit_{split}_batches": cfg.trainer[f"limit_{split}_batches"] for split in ("val", "test")}
    limits = {key: 0 if limit == 0 else None for key, limit in limits.items()}  # the data is cut already
    if training and isinstance(cfg.trainer.limit_train_batches, float):
        limits["limit_train_batches"] = max(1, int(cfg.trainer.limit_train_batches * data.training_batches()))
    own = [instantiate(callback) for callback in callbacks.values() if callback is not None]
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        **limits,
        callbacks=own if record is None else [record, *own],
        logger=False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=cfg.run_dir,
        enable_checkpointing=training,
        enable_progress_bar=callbacks.get("progress") is not None,
    )
    trainer._signal_connector = NoSignals(trainer)
    data.trainer = trainer  # before Lightning does: what loading takes is checked first
    return trainer


def _start_loggers(trainer: L.Trainer, cfg: DictConfig, data: TBPSDataModule, record: RunRecord) -> None:
    """Gives `trainer` the loggers of the config; W&B begins a run, so all that can be refused was refused before."""
    from utils.report.loggers import build_loggers

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["provenance"] = record.made_with
    trainer.loggers = build_loggers(cfg.logger, cfg.run_dir, _run_facts(cfg, data), config)


def _run_facts(cfg: DictConfig, data: TBPSDataModule) -> dict[str, Any]:
    skipped = {split: size.images for split, size in data.dataset.skipped.items()}
    facts = run_facts(cfg, language=data.dataset.language, val_is_test=data.dataset.val_is_test, skipped=skipped)
    return facts | {"limited": limited(cfg, data.dataset.limits)}


def _announce(cfg: DictConfig, module: LitTBPS, data: TBPSDataModule, continued: Continued | None) -> None:
    """Prints where the run lives, what it trains on and what of the model it trains."""
    from lightning.pytorch.utilities import rank_zero_only

    from solver.groups import parameter_table

    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    print("\n".join([f"run     {cfg.run_dir}", *(continued.lines() if continued else [])]))
    if (recipe := describe_recipe(CONFIG_DIR, cfg.composed)) is not None:
        print(f"recipe  {recipe}")
    print(f"data    {data.describe()}\nimages  {data.describe_images()}")
    _say_limits(cfg, data)
    if data.mask_token_added:
        print(f"mask    the tokenizer of {cfg.backbone.name} has no mask token; one is added, with a row for it")
    if module.labeller is not None:
        print(f"labels  identities are not read; {cfg.pseudo_label.name} labels pairs, OPLM {cfg.pseudo_label.oplm}")
    print(f"method  {cfg.loss.name} on {cfg.backbone.name} ({cfg.lora.name}), seed {cfg.seed}")
    print(parameter_table(module.named_parameters(), cfg.optimizer.param_groups), flush=True)


def _say_limits(cfg: DictConfig, data: TBPSDataModule) -> None:
    if left_out := limited(cfg, data.dataset.limits):
        print(f"limited {left_out}", flush=True)


def _say_precision(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Prints in which precision splits are encoded, where training has another one."""
    from utils.training.precision import encoding_precision

    training = str(trainer.precision)
    used = encoding_precision(cfg.evaluation.precision, training, trainer.strategy.root_device.type)
    if trainer.is_global_zero and used != training:
        print(f"ranks   images and captions are encoded in {used}; trainer.precision is {training}", flush=True)


def _report(
    cfg: DictConfig,
    trainer: L.Trainer,
    module: LitRanker,
    data: TBPSDataModule,
    record: dict[str, Any],
    reranker: Reranker | None,
    plots: Mapping[str, Plot],
) -> None:
    """Prints, saves and draws what the test found, and what `reranker`, if there is one, makes of it."""
    from utils.ranking.rerank import rerank
    from utils.report.run_report import RunReport
    from utils.report.tested import Tested

    if not trainer.is_global_zero:
        return
    record |= {"encoded_in": module.eval().encodes_in}
    report = RunReport(cfg.run_dir, trainer.loggers, trainer.global_step, record)
    tested = Tested(
        _run_facts(cfg, data),
        module.retrieval,
        module.ranks,
        module.metrics,
        None if reranker is None else rerank(module.retrieval, module.ranks["t2i"], reranker, module.measures),
        shown_queries=cfg.shown_queries,
        module=module,
        data=data,
    )
    report.metrics(tested)
    for name, plot in plots.items():
        report.draw(name, plot, tested)
    report.close()


if __name__ == "__main__":
    # Threads that wait asleep: where other programs keep the cores busy, spinning ones halve the speed or worse.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.argv += arguments_of_slurm()
    with stopping.on_signals("what was saved stays"), hydra_errors_in_one_sentence(CONFIG_DIR, "demo"):
        main()
