"""Config resolvers, and the run's description from its config.

Imports nothing heavy, so that --help and errors about misspelt keys appear at once.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from utils.config.dataset_name import dataset_name
from utils.config.run_folders import run_dir
from utils.errors import UserError

RunInfo = dict[str, Any]  # the settings that distinguish a run from others

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


def run_info(cfg: DictConfig, *, language: str, val_is_test: bool, skipped: Mapping[str, int] | None = None) -> RunInfo:
    """Returns the settings that distinguish this run from others in tables and on dashboards.

    Args:
        language: the language of the captions.
        val_is_test: whether the checkpoint is chosen on the test split.
        skipped: split -> the number of its images that were left out because they cannot be read.
    """
    return {
        "strategy": cfg.loss.name,
        "dataset": dataset_name(cfg.dataset.name, language),
        "backbone": cfg.backbone.name,
        "lora": cfg.lora.name,
        "seed": cfg.seed,
        "val_protocol": "paper" if val_is_test else "held_out",
        "variant": " ".join(OmegaConf.select(cfg, "composed.overrides", default=[])),
        **{f"skipped_{split}": images for split, images in (skipped or {}).items()},
    }


def backbone_fact(folder: str | None, model: str | None, fact: str) -> Any:
    """Returns a fact of the backbone in `folder`, see `utils.checkpoints.backbone_facts`."""
    from utils.checkpoints.backbone_facts import read_facts

    return getattr(read_facts(None if folder is None else Path(folder), model), fact)


def register_resolvers() -> None:
    """Registers ``${parse_size:...}``, ``${run_dir:...}`` and ``${backbone_fact:...}`` with OmegaConf."""
    OmegaConf.register_new_resolver("backbone_fact", backbone_fact, replace=True)
    OmegaConf.register_new_resolver("parse_size", parse_size, replace=True)
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
