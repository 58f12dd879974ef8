"""The weights that a run tests, and the form in which it leaves them for other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from safetensors import SafetensorError

from encoder_export import export_hub
from lightning_data import TBPSDataModule
from lightning_models import LitTBPS
from model.backbones.lora import save_adapters
from model.export.hub import hub_refusal
from model.published.converted import load_head, ranking_notes
from model.tbps import TBPS, build_encoder
from utils.checkpoints.disk import why_not_written
from utils.checkpoints.schema import Checkpoint
from utils.checkpoints.weights import encoder_weights, load_weights, read_checkpoint
from utils.errors import UserError


def load_best(cfg: DictConfig, trainer: L.Trainer, module: LitTBPS) -> tuple[str, Checkpoint]:
    """Loads the checkpoint with the best validation metric into `module`, and returns its path and content.

    Raises:
        UserError: if there is none.
    """
    best = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    if not best:
        raise UserError(
            "no epoch was validated, so there is no best checkpoint to test: leave trainer.limit_val_batches and "
            f"trainer.check_val_every_n_epoch as they are, or test {cfg.run_dir}/checkpoints/last.ckpt with task=test"
        )
    checkpoint = read_checkpoint(best)
    load_weights(module, checkpoint["state_dict"], source=best)
    return best, checkpoint


def tested_encoder(cfg: DictConfig, data: TBPSDataModule, path: Path | None, checkpoint: Mapping[str, Any]) -> TBPS:
    """Returns the encoder of a checkpoint or, if `path` is None, the backbone itself; prints notes on its heads.

    Args:
        path, checkpoint: file and content.
    """
    encoder = build_encoder(cfg)
    if path is not None:
        weights = encoder_weights(checkpoint)  # type: ignore[arg-type]
        encoder.grow_like(weights)
        load_weights(encoder, weights, source=path)
    encoder.backbone.check_token_id(data.max_token_id)
    folder = Path(cfg.backbone.folder)
    loaded = load_head(encoder.head, folder) if path is None else []
    for note in loaded + ranking_notes(folder, encoder.head, data.num_classes):
        print(f"note    {note}", flush=True)
    return encoder


def leave_encoder(cfg: DictConfig, encoder: TBPS, best: str) -> None:
    """Writes the trained encoder into the run's folder: adapters/ of LoRA, or hub/ of full fine-tuning.

    A model of open_clip and a head of one's own leave no hub/.

    The result of the run is saved before, so a failure to write is only printed.

    Args:
        best: the checkpoint that `encoder` has the weights of.
    """
    if cfg.lora.r == 0 and hub_refusal(encoder) is not None:
        return
    run = Path(cfg.run_dir)
    name = "adapters" if cfg.lora.r > 0 else "hub"
    try:
        if cfg.lora.r > 0:
            save_adapters(encoder.backbone, run / name)
        else:
            export_hub(cfg, encoder, run / name, Path(best))
    except (OSError, SafetensorError) as error:
        why = why_not_written(error, run)
        print(f"note    {run / name} cannot be written ({why}); task=export ckpt_path={best} writes it", flush=True)
        return
    print(f"model   {run / name}", flush=True)
