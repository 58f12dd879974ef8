"""The parts that every run shares: its folder, Lightning's trainer, the first screen, loggers and the report."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from data.annotations.identities import NO_IDENTITIES
from data.batch import IMAGE, TEXT
from lightning_data import TBPSDataModule
from lightning_models import LitTBPS
from lightning_plan import measure_efficiency
from lightning_ranker import LitRanker
from prepare_checkpoints import prepare_folder
from solver.groups import parameter_table
from utils.checkpoints.disk import sweep
from utils.checkpoints.weights import AtomicCheckpointIO
from utils.config.evaluation import Reporting
from utils.config.options import limited, noise_told
from utils.config.recipe import describe_recipe
from utils.config.resolvers import RunInfo, run_info
from utils.config.run_folders import settle
from utils.continuing.composed import CONFIG_DIR
from utils.continuing.continued import Continued
from utils.errors import UserError
from utils.ranking.changes import Change, Changed, by_length
from utils.ranking.metrics import measure
from utils.ranking.rerank import rerank
from utils.report.loggers import build_loggers
from utils.report.run_record import RunRecord
from utils.report.run_report import RunReport
from utils.report.tested import Tested
from utils.training.callbacks import NoSignals
from utils.training.log_filters import quiet_libraries
from utils.training.precision import encoding_precision
from utils.training.progress import clock_time


def prepare(cfg: DictConfig, *, is_new: bool = True) -> None:
    """Sets the seed, creates the run's folder and, if absent, the embedded dataset and the folder of the backbone."""
    quiet_libraries()
    if is_new:
        _announce_time(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if is_new:
        settle(cfg)
    root = Path(cfg.dataset_root_dir)
    for folder in (root, *Path(cfg.run_dir).parent.glob("*/checkpoints")):
        sweep(folder)
    if cfg.dataset.name == "drawn":
        from data.synthetic import generate_once

        generate_once(root)
    cfg.backbone.folder = str(prepare_folder(cfg.backbone, root))


@rank_zero_only
def _announce_time(cfg: DictConfig) -> None:
    """Prints how long drawing, pre-training and, with one view of an image, training will take, if they are to come."""
    steps = cfg.backbone.description.steps
    if cfg.task != "train" or cfg.dataset.name != "drawn" or steps is None:
        return
    from data.synthetic.generate import drawing_seconds, is_to_draw
    from model.tiny.pretrain import BATCH_SIZE
    from model.tiny.speed import seconds_per_pair

    parts, pairs = {}, {}
    if is_to_draw(Path(cfg.dataset_root_dir)):
        parts["drawing"] = drawing_seconds()
    if not Path(cfg.backbone.folder).exists():
        pairs["pre-training"] = steps * BATCH_SIZE
    one_view = all(term.get("views") == ["image"] for term in cfg.loss.terms.values())
    if one_view and cfg.debug is None and not torch.cuda.is_available():
        pairs["training"] = cfg.trainer.max_epochs * cfg.dataset.description.official.train.captions
    if pairs:
        pair = seconds_per_pair()
        parts |= {name: count * pair for name, count in pairs.items()}
    if parts:
        told = ", ".join(f"{name} {clock_time(seconds)}" for name, seconds in parts.items())
        print(f"time    about {clock_time(sum(parts.values()))} on this machine as it is now: {told}", flush=True)


def build_trainer(cfg: DictConfig, data: TBPSDataModule, record: RunRecord | None = None) -> L.Trainer:
    """Returns Lightning's trainer with the callbacks of the config and with `record`, but without loggers."""
    training = cfg.task == "train"
    callbacks = cfg.callbacks if training else {key: cfg.callbacks.get(key) for key in ("progress", "epoch_line")}
    limits = {f"limit_{split}_batches": cfg.trainer[f"limit_{split}_batches"] for split in ("val", "test")}
    limits = {key: 0 if limit == 0 else None for key, limit in limits.items()}  # the data module has cut the splits
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
    data.trainer = trainer  # Lightning sets it later, but data.check_loading needs it now
    return trainer


def start_loggers(trainer: L.Trainer, cfg: DictConfig, data: TBPSDataModule, record: RunRecord) -> None:
    """Gives `trainer` the loggers of the config. W&B starts a run here, so all checks have to be done before.

    Raises:
        UserError: `shown_queries` names a caption that is not in the test split, or a logger does not start.
    """
    captions = sum(len(image.captions) for image in data.dataset.test)
    if not isinstance(cfg.shown_queries, int) and not all(0 <= place < captions for place in cfg.shown_queries):
        raise UserError(f"shown_queries={cfg.shown_queries}: the test split has the captions 0 to {captions - 1}")
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["provenance"] = record.made_with
    trainer.loggers = build_loggers(cfg.logger, cfg.run_dir, _run_info(cfg, data), config)


def _run_info(cfg: DictConfig, data: TBPSDataModule) -> RunInfo:
    skipped = {split: size.images for split, size in data.dataset.skipped.items()}
    info = run_info(cfg, language=data.dataset.language, val_is_test=data.dataset.val_is_test, skipped=skipped)
    identities = NO_IDENTITIES if data.dataset.pairs_only else ""
    return info | {"limited": limited(cfg, data.dataset.limits), "noise": noise_told(cfg), "identities": identities}


@rank_zero_only
def announce_training(cfg: DictConfig, module: LitTBPS, data: TBPSDataModule, continued: Continued | None) -> None:
    """Prints the folder of the run, the data, the method, and a table of the trained parameters."""
    print("\n".join([f"run     {cfg.run_dir}", *(continued.lines() if continued else [])]))
    if (recipe := describe_recipe(CONFIG_DIR, cfg.composed)) is not None:
        print(f"recipe  {recipe}")
    _announce_data(cfg, data)
    if data.mask_token_added:
        print(f"mask    the tokenizer of {cfg.backbone.name} has no mask token; one is added, with a row for it")
    if module.labeler is not None:
        print(module.labeler.announce())
    print(f"method  {cfg.loss.name} on {cfg.backbone.name} ({cfg.lora.name}), seed {cfg.seed}")
    print(parameter_table(module.named_parameters(), cfg.optimizer.param_groups), flush=True)


@rank_zero_only
def announce_test(cfg: DictConfig, data: TBPSDataModule, path: Path | None, checkpoint: Mapping[str, Any]) -> None:
    """Prints the folder of the run, the tested backbone or checkpoint at `path`, and the data."""
    trained = f"after {checkpoint.get('epoch', '?')} epochs, {checkpoint.get('global_step', '?')} steps"
    tested = f"{cfg.backbone.folder} as it is" if path is None else f"{path} ({trained}), {cfg.loss.name}"
    print(f"run     {cfg.run_dir}\ntests   {tested} on {cfg.backbone.name}")
    _announce_data(cfg, data)


def _announce_data(cfg: DictConfig, data: TBPSDataModule) -> None:
    print(f"data    {data.describe()}\nimages  {data.describe_images()}")
    if left_out := limited(cfg, data.dataset.limits):
        print(f"limited {left_out}", flush=True)
    if told := noise_told(cfg):
        print(f"noise   {told}" + (f" ({data.dataset.noise})" if data.dataset.noise else ""), flush=True)


def announce_precision(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Prints the precision of encoding if it differs from the precision of training."""
    training = str(trainer.precision)
    used = encoding_precision(cfg.evaluation.precision, training, trainer.strategy.root_device.type)
    if trainer.is_global_zero and used != training:
        print(f"ranks   images and captions are encoded in {used}; trainer.precision is {training}", flush=True)


def report(cfg: DictConfig, module: LitRanker, record: dict[str, Any], reporting: Reporting) -> None:
    """Prints, saves and draws the result of the test, and what `reporting` adds to it.

    The plain result is saved first, so nothing that is added can lose it.
    """
    trainer = module.trainer
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    record |= {"encoded_in": module.eval().encodes_in}
    tested = Tested(
        _run_info(cfg, data),
        module.retrieval,
        module.ranks,
        module.metrics,
        shown_queries=cfg.shown_queries if isinstance(cfg.shown_queries, int) else list(cfg.shown_queries),
        module=module,
        data=data,
    )
    written = RunReport(cfg.run_dir, trainer.loggers, trainer.global_step, record, reporting.figures)
    if trainer.is_global_zero:
        written.save(tested)
    if reporting.changes:
        module.to(trainer.strategy.root_device)  # after a test Lightning has moved it to the CPU
        tested.changed = [one for change in reporting.changes for one in _changed(module, data, change)]
        module.cpu()
    if not trainer.is_global_zero:
        return
    if tested.changed:
        tested.changed += by_length(module.retrieval.captions, module.ranks["t2i"], module.measures)
    if reporting.reranker is not None:
        tested.reranked = rerank(module.retrieval, module.ranks["t2i"], reporting.reranker, module.measures)
    tested.efficiency = measure_efficiency(cfg)
    written.save(tested)
    written.show(tested)
    for name, plot in reporting.plots.items():
        written.draw(name, plot, tested)
    if reporting.page:
        written.page(tested)
    written.close()


def _changed(module: LitRanker, data: TBPSDataModule, change: Change) -> Iterator[Changed]:
    """Yields the metrics of the test with changed captions or images, level by level. All processes take part."""
    for level in change.levels:
        loader = data.changed_test(change.of, partial(change.apply, level=level))
        if change.of == "captions":
            found = replace(module.retrieval, texts=module.encode_side(loader, TEXT)[0])
        else:
            found = replace(module.retrieval, images=module.encode_side(loader, IMAGE)[0])
        metrics = {direction: measure(ranks, module.measures) for direction, ranks in found.ranks().items()}
        yield Changed(change.name, f"{level:g}", metrics)
