"""Backbones from folders in Hugging Face format, and back."""

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from model.architectures import ARCHITECTURES
from model.backbones.base import Backbone
from model.backbones.bert import RESNET_STRIDE, BertBackbone
from model.backbones.vision_language import ClipBackbone, SiglipBackbone
from model.positions import read_positions
from utils.errors import UserError

FAMILIES: dict[str, type[Backbone]] = {
    "siglip": SiglipBackbone,
    "clip": ClipBackbone,
    "vision-text-dual-encoder": BertBackbone,
}

_NO_PIXELS: Final = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def load_backbone(
    name: str,
    family: str,
    folder: str | Path,
    img_size: tuple[int, int],
    *,
    sigmoid: bool,
    max_length: int,
    freeze_vision: bool = False,
    freeze_text: bool = False,
    freeze_token_table: bool = False,
    gradient_checkpointing: bool = False,
    weights: bool = True,
) -> Backbone:
    """Returns the backbone of `folder` in fp32, fitted to images of `img_size`.

    Args:
        name: what `prepare_checkpoints.py` calls it.
        family: a key of `FAMILIES`; has to be the `model_type` of the folder's config.json.
        img_size: (height, width) in pixels, multiples of the patch size (of 16 for a ResNet).
        sigmoid: whether it was pre-trained with the pairwise sigmoid loss; losses that can do both follow.
        max_length: tokens of a caption, at most the text positions of the checkpoint.
        freeze_vision, freeze_text, freeze_token_table: exclude a tower, or the token table, from training.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        weights: whether the pre-trained ones are loaded. Without, they are those that a training from scratch starts
            from, and a backbone of `ARCHITECTURES` needs no folder.

    Raises:
        UserError: no folder, another architecture, captions longer than its positions, a size that the patches
            do not divide, or towers that cannot recompute activations.
    """
    folder = Path(folder)
    known = not weights and not folder.exists() and name in ARCHITECTURES
    config = ARCHITECTURES[name] if known else _read_json(folder, "config.json", name)
    found = config.get("model_type")
    if found != family:
        raise UserError(
            f"backbone {name!r}: {folder}/config.json describes a {found!r} model, expected {family!r}; "
            f"choose another backbone= or fill the folder again with 'uv run prepare_checkpoints.py {name}'"
        )
    backbone_class = FAMILIES[family]
    positions = config.get("text_config", {}).get("max_position_embeddings", max_length)
    if max_length > positions:
        raise UserError(f"backbone.max_length: {max_length} asked for, but {name!r} has {positions} text positions")
    patch = config.get("vision_config", {}).get("patch_size", RESNET_STRIDE)
    if img_size[0] % patch or img_size[1] % patch:
        raise UserError(
            f"img_size_str: {img_size[0]}x{img_size[1]} is not divisible by the {patch}-pixel patches of "
            f"backbone {name!r}; both height and width have to be multiples of {patch}"
        )
    model_class = backbone_class.model_class
    model = _pretrained(name, folder, model_class) if weights else _untrained(model_class, config)
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"backbone.gradient_checkpointing: {name!r} cannot recompute activations; leave it false")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    pixels = _NO_PIXELS if known else _read_json(folder, "preprocessor_config.json", name)
    grid = (img_size[0] // patch, img_size[1] // patch)
    mean, std = pixels["image_mean"], pixels["image_std"]
    backbone = backbone_class(model, mean, std, grid, sigmoid=sigmoid, native=read_positions(folder))
    for tower, frozen in ((model.vision_model, freeze_vision), (model.text_model, freeze_text)):
        if frozen:
            tower.requires_grad_(False)
    if freeze_token_table:
        backbone.token_table.requires_grad_(False)
    return backbone.train()


def _pretrained(name: str, folder: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    try:
        return model_class.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"backbone {name!r}: the weights in {folder} cannot be loaded ({_first_line(error)}); "
            f"fill the folder again with 'uv run prepare_checkpoints.py {name}'"
        ) from error


def _untrained(model_class: type[PreTrainedModel], config: dict[str, Any]) -> PreTrainedModel:
    config_class: Any = model_class.config_class
    return model_class(config_class.from_dict(config))


def _read_json(folder: Path, file: str, name: str) -> dict[str, Any]:
    path = folder / file
    if not path.is_file():
        raise UserError(f"backbone {name!r}: {path} does not exist; run 'uv run prepare_checkpoints.py {name}'")
    return json.loads(path.read_text(encoding="utf-8"))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def save_backbone(backbone: Backbone, folder: str | Path) -> None:
    """Writes config and weights in Hugging Face format; positions go back to the square grid of the config."""
    backbone.hub_model.save_pretrained(folder, state_dict=backbone.hub_weights())
