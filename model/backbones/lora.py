"""Low-rank adapters on the attention projections of both towers, through peft.

Sources: LoRA (Hu et al., ICLR 2022), DoRA (Liu et al., ICML 2024), rsLoRA (Kalajdzievski, 2023).
"""

import re
from pathlib import Path
from typing import Final

from torch import nn

from model.backbones import Backbone
from utils.errors import UserError

LARGEST_RANK: Final = 4096


def add_lora(
    backbone: Backbone,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target: str,
    use_dora: bool = False,
    use_rslora: bool = False,
) -> None:
    """Freezes the backbone and adds trainable adapters to it, in place.

    The logit scale and bias stay trainable. Heads and losses are not part of the backbone and do not change.

    Args:
        r: rank of the adapters.
        alpha: the update is scaled by alpha / r, under rsLoRA by alpha / sqrt(r).
        dropout: dropout probability at the input of the adapters.
        target: regular expression. A module gets an adapter if its whole name matches. The whole name is needed
            because the pooling head of SigLIP also has an `out_proj`, inside an `nn.MultiheadAttention`.
        use_dora: whether each output of an adapted layer also gets a trained magnitude (DoRA). The weight W becomes
            magnitude * (W + update) / norm of its rows, and the norm gets no gradient. The magnitude starts as the
            norm of W, so the embeddings do not change.
        use_rslora: whether the update is scaled as in rsLoRA.

    Raises:
        UserError: `r` or `dropout` is out of range, `target` is no regular expression, no module of a tower that is
            trained matches it, or peft cannot adapt a module that matches.
    """
    if not 1 <= r <= LARGEST_RANK or not 0 <= dropout < 1:
        raise UserError(f"lora: r={r}, dropout={dropout}; expected a rank of 1 to {LARGEST_RANK} and a share below 1")
    try:
        re.compile(target)
    except re.error as error:
        raise UserError(f"lora.target: {target!r} is no regular expression ({error})") from error
    towers = {"image": backbone.hub_model.vision_model, "text": backbone.hub_model.text_model}
    trained = [of for of, tower in towers.items() if any(p.requires_grad for p in tower.parameters())]
    modules = dict(backbone.model.named_modules())
    matched = [name for name in modules if re.fullmatch(target, name)]
    if not matched:
        raise UserError(f"lora.target: no module of the backbone is named like {target!r}; see lora/default.yaml")
    for name in matched:
        if isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention):
            raise UserError(
                f"lora.target: {target!r} matches {name}, inside an nn.MultiheadAttention, which never calls it, so "
                "its adapter would not be trained; match fewer modules, see lora/default.yaml"
            )
    from peft import LoraConfig, get_peft_model  # takes a tenth of the time of all imports

    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target, use_dora=use_dora, use_rslora=use_rslora
    )
    try:
        backbone.model = get_peft_model(backbone.model, config)
        backbone.has_adapters = True
    except ValueError as error:
        raise UserError(f"lora.target: {target!r} matches a module that peft cannot adapt ({error})") from error
    for of in trained:
        if not any(p.requires_grad for p in towers[of].parameters()):
            raise UserError(
                f"lora.target: no module of the {of} tower is named like {target!r}, so it would not be trained: set "
                f"backbone.freeze_{'vision' if of == 'image' else of}=true if that is meant, or lora=none"
            )
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(backbone.hub_model, name, None)
        if isinstance(parameter, nn.Parameter):
            parameter.requires_grad_(True)


def save_adapters(backbone: Backbone, folder: str | Path) -> None:
    """Writes the adapters in peft's format, which `PeftModel.from_pretrained(model, folder)` reads."""
    if not backbone.has_adapters:
        raise TypeError("the backbone carries no adapters")
    backbone.model.save_pretrained(str(folder))


def merge_lora(backbone: Backbone) -> None:
    """Merges the adapters into the weights and removes them, in place."""
    if not backbone.has_adapters:
        raise TypeError("the backbone carries no adapters")
    backbone.model = backbone.model.merge_and_unload()
    backbone.has_adapters = False
