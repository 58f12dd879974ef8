"""Conversion of published CLIP checkpoints: IRRA, FMFA, RDE, HAM, NAM, MLLM4Text-ReID, open_clip and CLIP itself."""

import re
from collections import Counter
from dataclasses import dataclass
from math import isqrt, log
from pathlib import Path
from typing import Any, Final

import torch
from prettytable import PrettyTable
from torch import Tensor
from transformers import CLIPConfig

from model.backbones.position_embeddings import resize_positions
from model.published.file import State
from model.published.names import IMAGE_POSITIONS, NEEDED, OF_OPENAI, SIZES, of_heads, of_towers, one_layout
from model.published.settings import BILINEAR, Activation, Settings, settings_of
from utils.errors import UserError

SCALE_OF_SDM: Final = log(50)  # tau = 0.02: IRRA and FMFA use this fixed value and learn no scale
SELECTION_HEADS: Final = "token_selection."
RANKED_WITHOUT: Final = (
    "RDE's published ranking adds the cosine of its token-selection heads; this one uses only the global embedding, "
    "unless head=token_selection"
)


@dataclass(frozen=True)
class Published:
    """A converted checkpoint.

    config: the `CLIPConfig` of the transformers model.
    weights: weights of the transformers model, fp32, with image positions on the square grid of `config`.
    positions: image positions as published ``(1 + rows * columns, D)``, fp32.
    grid: (rows, columns) of `positions`.
    heads: weights of loss terms, ``mlm.*`` and ``id.*``, and of RDE's ``token_selection.*``, fp32; may be empty.
    dropped: beginning of a name -> number of tensors that were not used.
    scale_made: true if the checkpoint has no logit scale, so the scale of SDM is used.
    settings: activation, pixel statistics and resizing.
    """

    config: Any
    weights: State
    positions: Tensor
    grid: tuple[int, int]
    heads: State
    dropped: Counter[str]
    scale_made: bool
    settings: Settings

    def report(self) -> str:
        """Returns a table of the parts that were used, resized, made or dropped."""
        rows, columns = self.grid
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        table = PrettyTable(["part", "tensors", "what became of it"], align="l")
        table.align["tensors"] = "r"
        kept = Counter(name.split(".")[0] for name in self.weights if "vision_model.embeddings.position" not in name)
        for part in ("vision_model", "visual_projection", "text_model", "text_projection"):
            table.add_row([part, kept[part], "used"])
        exact = "used" if rows == columns else f"used, and resized to {side} x {side} for programs that need a square"
        table.add_row(["image positions", 1, f"{rows} x {columns}: {exact}"])
        table.add_row(["temperature", 1, "made: scale 50, as in SDM" if self.scale_made else "used"])
        resized = "bilinear" if self.settings.resample == BILINEAR else "bicubic"
        table.add_row(["activation", "", f"{self.settings.activation}: {self.settings.told_by}"])
        table.add_row(["images", "", f"resized {resized} for training and testing"])
        for term, names in (("mlm", "loss=irra and loss=fmfa start from it"), ("id", "")):
            tensors = [name for name in self.heads if name.startswith(f"{term}.")]
            if term == "id" and tensors:
                names = f"{len(self.heads['id.classifier.weight']):,} identities: used where training has as many"
            if tensors:
                table.add_row([f"head of {term}", len(tensors), names])
        if selection := [name for name in self.heads if name.startswith(SELECTION_HEADS)]:
            table.add_row(["token selection", len(selection), "head=token_selection starts from it"])
        for prefix, number in sorted(self.dropped.items()):
            table.add_row([f"{prefix}*", number, "dropped: not used in this project"])
        return "\n".join([str(table), *([RANKED_WITHOUT] if selection else [])])


def convert(
    state: State, *, source: Path, img_size: tuple[int, int] | None = None, activation: Activation | None = None
) -> Published:
    """Returns the converted checkpoint of a state dict in the layout of OpenAI, open_clip or transformers.

    Args:
        state: from `model.published.file.read_state`.
        source: the file. Error messages name it, and a config beside it may say the activation.
        img_size: (height, width) in pixels of the grid of image positions. None: a square grid, or a grid of 3 to 1 as
            for 384 x 128.
        activation: activation of the blocks. None: `settings_of` finds it.

    Raises:
        UserError: it is no CLIP ViT, the image positions fit no grid, or the activation is unknown.
    """
    state, layout = one_layout(state, source)
    settings = settings_of(state, layout, source, activation)
    weights: State = {}
    heads: State = {}
    dropped: Counter[str] = Counter()
    for name, tensor in state.items():
        if name in SIZES or name.endswith(".position_ids"):
            continue
        if (renamed := of_towers(name, tensor, layout)) is not None:
            weights |= renamed
        elif (head := of_heads(name)) is not None:
            heads[head] = tensor
        elif name.startswith(OF_OPENAI):
            raise UserError(f"{source} has {name!r}, which the towers of CLIP do not have; expected a ViT of CLIP")
        else:
            dropped[name.split(".")[0]] += 1
    patch = weights[NEEDED[0].transformers].shape[-1]
    positions = weights[IMAGE_POSITIONS]
    grid = _grid(len(positions) - 1, patch, img_size, source)
    side = max(1, round((grid[0] * grid[1]) ** 0.5))
    weights[IMAGE_POSITIONS] = resize_positions(positions, grid, (side, side), "bicubic")
    scale_made = "logit_scale" not in weights
    scale = weights.get("logit_scale", torch.tensor(SCALE_OF_SDM))
    if scale.numel() != 1:
        raise UserError(f"{source}: 'logit_scale' is of shape {tuple(scale.shape)}, expected one number")
    weights["logit_scale"] = scale.reshape(())
    config = _config(weights, patch, side, settings.activation)
    return Published(config, weights, positions, grid, heads, dropped, scale_made, settings)


def _grid(patches: int, patch: int, img_size: tuple[int, int] | None, source: Path) -> tuple[int, int]:
    if img_size is not None:
        grid = (img_size[0] // patch, img_size[1] // patch)
        if grid[0] * grid[1] != patches:
            raise UserError(
                f"--img-size {img_size[0]}x{img_size[1]}: that is {grid[0] * grid[1]} patches of {patch} pixels, but "
                f"{source} has positions for {patches}; give the size that it was trained on"
            )
        return grid
    for ratio in (1, 3):
        columns = isqrt(patches // ratio)
        if ratio * columns * columns == patches:
            return (ratio * columns, columns)
    raise UserError(
        f"{source} has positions for {patches} patches of an unknown grid; give --img-size HEIGHTxWIDTH to "
        "prepare_checkpoints.py"
    )


def _config(weights: State, patch: int, side: int, activation: Activation) -> CLIPConfig:
    """Returns the config that follows from the shapes. Heads are 64 wide, and texts are pooled at the largest id."""

    def tower(name: str, width: int) -> dict[str, Any]:
        layers = {found[1] for key in weights if (found := re.match(rf"{name}\.encoder\.layers\.(\d+)\.", key))}
        return {
            "hidden_size": width,
            "intermediate_size": len(weights[f"{name}.encoder.layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": len(layers),
            "num_attention_heads": max(1, width // 64),
            "hidden_act": activation,
            "projection_dim": len(weights["text_projection.weight"]),
        }

    vocabulary, text_width = weights["text_model.embeddings.token_embedding.weight"].shape
    text = {
        **tower("text_model", text_width),
        "vocab_size": vocabulary,
        "max_position_embeddings": len(weights["text_model.embeddings.position_embedding.weight"]),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        **tower("vision_model", len(weights[NEEDED[0].transformers])),
        "image_size": side * patch,
        "patch_size": patch,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=text["projection_dim"])
