"""Entry point: trains, tests, plans or exports a composed method.

uv run trainer.py                                      the embedded default
uv run trainer.py -cn m_siglip dataset=cuhk_pedes      another config, another dataset
uv run trainer.py ckpt_path=last                       continue the newest run of this name
uv run trainer.py -cn clip experiment=irra task=plan   memory of a step, and the batch that fits 12 GB
uv run trainer.py task=test ckpt_path=outputs/.../checkpoints/best-059.ckpt
uv run trainer.py -cn clip task=test backbone.folder=irra.pth dataset=cuhk_pedes       published weights
uv run trainer.py task=export ckpt_path=FILE export.formats=[hub,onnx]                 for other programs
uv run trainer.py task=embed ckpt_path=FILE embed.images=photos embed.out=photos.npy   embeddings of your files
"""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from utils.config.hydra_errors import hydra_errors_in_one_sentence, job_errors_in_one_sentence
from utils.config.multirun_subprocess import needs_own_command, run_own_command
from utils.config.options import check_options, check_overrides
from utils.config.resolvers import register_resolvers
from utils.config.run_folders import find_checkpoint, last_of_first_process
from utils.continuing.composed import CONFIG_DIR, with_composed
from utils.continuing.taken_over import model_config
from utils.errors import UserError, nearest
from utils.training.signals import end_with_parent, stopping
from utils.training.stopped_run import arguments_of_slurm, continued_when_stopped

register_resolvers()


def train(cfg: DictConfig) -> dict[str, float]:
    """Trains, then evaluates the checkpoint with the best validation metric.

    Returns:
        The metrics of that checkpoint in percent: ``val/t2i/R1``, ``test/i2t/mAP``, ...
    """
    check_options(cfg)
    path = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)

    from lightning_data import build_data
    from lightning_models import build_module
    from lightning_run import announce_precision, announce_training, build_trainer, prepare, report, start_loggers
    from lightning_weights import leave_encoder, load_best
    from model.objectives import check_needs
    from model.published.converted import load_head, load_heads, mask_row
    from model.tbps import build_encoder
    from utils.config.evaluation import build_reporting
    from utils.continuing.continued import Continued
    from utils.report.run_record import RunRecord

    continued = None if path is None else Continued(cfg, path)
    cfg = with_composed(cfg) if continued is None else continued.config
    check_options(cfg)
    prepare(cfg, is_new=continued is None)
    data = build_data(cfg)
    encoder = build_encoder(cfg)
    encoder.backbone.check_token_id(data.max_token_id)
    module = build_module(cfg, encoder, num_classes=data.num_classes)
    reporting = build_reporting(cfg.evaluation)
    check_needs(module.objective, data.provides | module.provides)
    data.set_views(module.objective.needs, mask_row(Path(cfg.backbone.folder), encoder.backbone.vocab_size))
    encoder.backbone.resize_token_embeddings(data.max_token_id + 1)  # adds a row if a mask token was added
    record = RunRecord(cfg, data.provenance, continued.info if continued else None)
    if continued is not None:
        continued.check(module, data.provenance)
    announce_training(cfg, module, data, continued)
    folder = Path(cfg.backbone.folder)
    for line in load_heads(module.objective, folder) + load_head(encoder.head, folder):
        print(f"head    {line}", flush=True)
    data.set_padding(training=module.fixed_length, evaluation=encoder.backbone.fixed_length)

    trainer = build_trainer(cfg, data, record)
    announce_precision(cfg, trainer)
    data.check_loading()
    module.check_optimizer()
    if continued is not None:  # only a check before loggers start
        module.optimizer_state_of(continued.take_checkpoint(), trainer, continued.path)
    start_loggers(trainer, cfg, data, record)
    trainer.fit(module, datamodule=data, ckpt_path=path)  # AtomicCheckpointIO reads the file and executes no code
    best, tested = load_best(cfg, trainer, module)
    trainer.validate(module, datamodule=data, verbose=False)
    metrics = module.figures("val")
    trainer.test(module, datamodule=data, verbose=False)
    report(cfg, module, record.of_test(best, tested), reporting)
    if trainer.is_global_zero:
        leave_encoder(cfg, encoder, best)
    return metrics | module.figures("test")


def test(cfg: DictConfig) -> dict[str, float]:
    """Evaluates the checkpoint `cfg.ckpt_path` on the test split. If it is null, evaluates the backbone itself.

    The encoder is composed from the checkpoint's config. No losses are built, so the number of identities in training
    does not matter.

    Returns:
        The metrics in percent: ``test/t2i/R1``, ``test/i2t/mAP``, ...
    """
    check_options(cfg)
    path = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)

    from lightning_data import build_data
    from lightning_ranker import LitRanker
    from lightning_run import announce_precision, announce_test, build_trainer, prepare, report, start_loggers
    from lightning_weights import tested_encoder
    from utils.checkpoints.weights import read_checkpoint
    from utils.config.evaluation import build_measures, build_reporting
    from utils.report.run_record import RunRecord

    checkpoint: Any = {} if path is None else read_checkpoint(path)
    cfg = with_composed(cfg) if path is None else model_config(cfg, checkpoint["config"], path)
    prepare(cfg)
    if path is None:
        cfg.loss.name = Path(cfg.backbone.folder).name
    data = build_data(cfg, ["test"])
    encoder = tested_encoder(cfg, data, path, checkpoint)
    data.set_padding(training=True, evaluation=encoder.backbone.fixed_length)
    module = LitRanker(encoder, cfg.evaluation.precision, build_measures(cfg.evaluation))
    reporting = build_reporting(cfg.evaluation)
    trainer = build_trainer(cfg, data)
    data.check_loading()
    announce_test(cfg, data, path, checkpoint)
    announce_precision(cfg, trainer)
    record = RunRecord(cfg, data.provenance)
    start_loggers(trainer, cfg, data, record)
    trainer.test(module, datamodule=data, verbose=False)
    report(cfg, module, record.of_test(path, checkpoint), reporting)
    return module.figures("test")


def plan(cfg: DictConfig) -> dict[str, float]:
    """Prints the memory of a training step of `cfg`, and the largest batch that fits `cfg.plan.memory_gb`.

    It needs no dataset, no weights and no GPU.

    Returns:
        The peak in GiB, reserve included, as ``plan/peak_gb``, and the largest batch as ``plan/largest``.
    """
    check_options(cfg)

    from lightning_plan import measure_efficiency, trace_step
    from utils.memory.plan import make_plan
    from utils.memory.trace import GIB
    from utils.training.log_filters import quiet_libraries

    quiet_libraries()
    made = make_plan(cfg, trace_step)
    print(f"{made}\ncost    {measure_efficiency(cfg)}", flush=True)
    return {"plan/peak_gb": made.peak / GIB, "plan/largest": made.largest}


def export(cfg: DictConfig) -> dict[str, float]:
    """Writes the encoder of `cfg.ckpt_path`, or the backbone itself, as `cfg.export` says; returns what it costs."""
    check_options(cfg)
    from encoder_export import export_encoder

    return export_encoder(cfg, find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path))


def embed(cfg: DictConfig) -> dict[str, float]:
    """Writes embeddings of the files that `cfg.embed` names, by the same encoder, and returns the number of rows."""
    check_options(cfg)
    from encoder_embed import embed_files

    return embed_files(cfg, find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path))


TASKS = {"train": train, "test": test, "plan": plan, "export": export, "embed": embed}


@hydra.main(version_base="1.3", config_path="config", config_name="demo")
def main(cfg: DictConfig) -> float | None:
    """Runs `cfg.task`. Returns t2i R@1 of validation, or else of test, for sweepers that optimise it."""
    cfg.run_dir = HydraConfig.get().runtime.output_dir
    cfg.ckpt_path = last_of_first_process(cfg)
    end_with_parent()
    # Inside `main`, because launchers of sweeps call it in other processes.
    with stopping.on_signals(), continued_when_stopped(cfg), job_errors_in_one_sentence(cfg):
        if cfg.task not in TASKS:
            *names, last = TASKS
            known = f"Choose {', '.join(names)} or {last}"
            raise UserError(f"task={cfg.task}: no such task.{nearest(cfg.task, set(TASKS))} {known}")
        check_overrides(cfg)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        if needs_own_command(cfg.trainer):
            return run_own_command(Path(__file__))
        metrics = TASKS[cfg.task](cfg)
    return metrics.get("val/t2i/R1", metrics.get("test/t2i/R1"))


if __name__ == "__main__":
    # Waiting threads sleep. Spinning threads would halve the speed, or worse, if other programs use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Memory is left without gaps: 0.8 of 12 GB for IRRA on mSigLIP, measured.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    sys.argv += arguments_of_slurm()
    with stopping.on_signals("what was saved stays"), hydra_errors_in_one_sentence(CONFIG_DIR, "demo"):
        main()
