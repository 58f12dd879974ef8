"""What the config inside a checkpoint means for the run that continues or tests it."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from utils.config import find_checkpoint, task_overrides
from utils.errors import UserError

OF_THE_MODEL = ("img_size_str", "backbone", "head", "lora")


def checkpoint_of(cfg: DictConfig) -> Path | None:
    """Returns the checkpoint file to continue or test, if `cfg.ckpt_path` asks for one.

    Raises:
        UserError: it does not exist.
    """
    path = find_checkpoint(cfg.output_dir, cfg.run_name, cfg.ckpt_path)
    if path is not None and not path.is_file():
        raise UserError(
            f"ckpt_path={cfg.ckpt_path}: {path} does not exist; give the path of a .ckpt file under "
            f"{cfg.output_dir}/, or 'last' for the newest run of {cfg.run_name}"
        )
    return path


def refuse_other_model(cfg: DictConfig, trained: dict[str, Any], path: Path) -> None:
    """Raises `UserError` where another backbone or LoRA was trained, before anything is made or downloaded for it."""
    for section in ("backbone", "lora"):
        if cfg[section].name != trained[section]["name"]:
            raise UserError(
                f"ckpt_path: {path} is of another architecture: it was trained with {section} "
                f"{trained[section]['name']!r}, not {cfg[section].name!r}; continue with that one"
            )


def take_over_model(cfg: DictConfig, trained: dict[str, Any], path: Path) -> None:
    """Sets the parts of `cfg` that describe the encoder, and what it was trained with, to a checkpoint's.

    Raises:
        UserError: the command line asks for another encoder than the checkpoint's.
    """
    named = {override.split("=")[0] for override in task_overrides()}
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
