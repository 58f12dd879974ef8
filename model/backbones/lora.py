"""Low-rank adapters (Hu et al., ICLR 2022) on the attention projections of both towers, through peft."""

import re
from pathlib import Path
from typing import Final

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from model.backbones import Backbone
from utils.errors import UserError

LARGEST_RANK: Final = 4096


def add_lora(backbone: Backbone, *, r: int, alpha: int, dropout: float, target: str) -> None:
    """Freezes the backbone and adds trainable adapters to it, in place.

    The temperature stays trainable; heads and losses lie outside the backbone and are not touched.

    Args:
        r: rank of the adapters.
        alpha: the update is scaled by alpha / r.
        dropout: probability, on the input of the adapters.
        target: regular expression; a module whose whole name matches gets an adapter. Anchored, because the
            pooling head of SigLIP has an `out_proj` too, inside an `nn.MultiheadAttention`.

    Raises:
        UserError: numbers that no adapter has, no regular expression, or no module matches.
    """
    if not 1 <= r <= LARGEST_RANK or not 0 <= dropout < 1:
        raise UserError(f"lora: r={r}, dropout={dropout}; expected a rank of 1 to {LARGEST_RANK} and a share below 1")
    try:
        re.compile(target)
    except re.error as error:
        raise UserError(f"lora.target: {target!r} is no regular expression ({error})") from error
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target)
    try:
        backbone.model = get_peft_model(backbone.model, config)
    except ValueError as error:
        raise UserError(
            f"lora.target: no module of the backbone is named like {target!r}; see lora/default.yaml"
        ) from error
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(backbone.hub_model, name, None)
        if isinstance(parameter, nn.Parameter):
            parameter.requires_grad_(True)


def save_adapters(backbone: Backbone, folder: str | Path) -> None:
    """Writes the adapters in peft's own format; `PeftModel.from_pretrained(model, folder)` reads them."""
    if not isinstance(backbone.model, PeftModel):
        raise TypeError("the backbone carries no adapters")
    backbone.model.save_pretrained(str(folder))


def merge_lora(backbone: Backbone) -> None:
    """Adds the adapters to the weights that they adapt and removes them, in place."""
    if not isinstance(backbone.model, PeftModel):
        raise TypeError("the backbone carries no adapters")
    backbone.model = backbone.model.merge_and_unload()
