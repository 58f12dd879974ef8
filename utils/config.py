"""Config resolvers, and what the config says of a run.

Imports nothing heavy, so that --help and a misspelt key answer at once.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from utils.errors import UserError
from utils.own_command import started_by_others

# Overrides that `run_facts` tells by themselves, or that change no result.
IN_FACTS = (
    "task",
    "seed",
    "dataset",
    "dataset.language",
    "dataset.cache",
    "dataset.cache_dir",
    "backbone",
    "lora",
    "loss",
    "logger",
    "output_dir",
    "dataset_root_dir",
    "run_name",
    "ckpt_path",
)
_SIZE = re.compile(r"\(?\s*(\d+)\s*[x,]\s*(\d+)\s*\)?")


def parse_size(text: str, key: str = "img_size_str") -> list[int]:
    """Returns [height, width] from ``(384,128)``, ``384x128`` or ``384,128``.

    >>> parse_size("(384,128)"), parse_size("384x128"), parse_size("384, 128")
    ([384, 128], [384, 128], [384, 128])
    """
    match = _SIZE.fullmatch(str(text).strip().strip("'\""))
    if match is None or "0" in match.groups():
        raise UserError(f"{key}: {text!r} is not a size; write height and width as (384,128) or 384x128")
    return [int(match[1]), int(match[2])]


def find_checkpoint(output_dir: str, run_name: str, ckpt_path: str | None) -> Path | None:
    """Returns the file that `ckpt_path` means: None, a path, or ``last`` for the newest run of `run_name`.

    ``last`` without any run gives the path where a run would have left it, which does not exist.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        return Path(ckpt_path)
    runs = Path(output_dir) / run_name
    found = sorted(runs.glob("*/checkpoints/last.ckpt"))
    return found[-1] if found else runs / "<time>" / "checkpoints" / "last.ckpt"


@lru_cache
def run_dir(task: str, output_dir: str, run_name: str, ckpt_path: str | None, dataset: str) -> str:
    """Returns the folder of a run: a new one, or that of the checkpoint which it continues or tests.

    Raises:
        UserError: a new one for processes that do not know of each other's start; the time would tell them apart.
    """
    checkpoint = find_checkpoint(output_dir, run_name, ckpt_path)
    if checkpoint is None or not checkpoint.is_file():
        if started_by_others():
            raise UserError(
                "run_dir: processes that torchrun or srun starts need one folder, and each would name another; "
                f"give it, as in run_dir={output_dir}/{run_name}/my_run"
            )
        return str(Path(output_dir) / run_name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return str(run / f"test-{dataset}" if task == "test" else run)


def task_overrides() -> list[str]:
    """Returns the overrides of the command line, none where the config was composed by other code."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def run_facts(
    cfg: DictConfig, *, language: str, val_is_test: bool, skipped: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Returns what tells this run from others, in tables and on dashboards.

    Args:
        language: of the captions.
        val_is_test: whether the checkpoint is chosen on the test split.
        skipped: split -> how many images were left out of it because they cannot be read.
    """
    return {
        "strategy": cfg.loss.name,
        "dataset": f"{cfg.dataset.name}-{language}",
        "backbone": cfg.backbone.name,
        "lora": cfg.lora.name,
        "seed": cfg.seed,
        "val_protocol": "paper" if val_is_test else "held_out",
        "variant": " ".join(o for o in task_overrides() if o.split("=")[0] not in IN_FACTS),
        **{f"skipped_{split}": images for split, images in (skipped or {}).items()},
    }


def register_resolvers() -> None:
    """Makes ``${parse_size:...}`` and ``${run_dir:...}`` known to OmegaConf."""
    OmegaConf.register_new_resolver("parse_size", parse_size, replace=True)
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
