"""Published CLIP checkpoints in OpenAI's layout: IRRA, FMFA, HAM, NAM, MLLM4Text-ReID and CLIP itself."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, log
from pathlib import Path
from typing import Any, Final

import torch
from prettytable import PrettyTable
from torch import Tensor
from transformers import CLIPConfig

from model.positions import resize_positions
from model.published_file import State
from utils.errors import UserError

BLOCK: Final = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
TOWERS: Final = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "logit_scale": "logit_scale",
}
TRANSPOSED: Final = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
IMAGE_POSITIONS: Final = "visual.positional_embedding"
HEADS: Final = {
    "cross_attn.": "mlm.interaction.cross_attention.",
    "ln_pre_t.": "mlm.interaction.text_norm.",
    "ln_pre_i.": "mlm.interaction.image_norm.",
    "ln_post.": "mlm.interaction.blocks.norm.",
    "mlm_head.dense.": "mlm.head.dense.",
    "mlm_head.ln.": "mlm.head.norm.",
    "mlm_head.fc.": "mlm.head.scores.",
    "classifier.": "id.classifier.",
}
HEAD_BLOCK: Final = {
    "attn.": "self_attn.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "linear1.",
    "mlp.c_proj.": "linear2.",
}
NEEDED: Final = {  # what sizes are read from: name -> dimensions
    "visual.conv1.weight": 4,
    IMAGE_POSITIONS: 2,
    "visual.proj": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
    "text_projection": 2,
}
SIZES: Final = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives carry them as tensors
SCALE_OF_SDM: Final = log(50)  # tau = 0.02, which IRRA and FMFA fix instead of learning a scale


@dataclass(frozen=True)
class Published:
    """A converted checkpoint.

    config: of the transformers model, a `CLIPConfig`.
    weights: of the transformers model, fp32; image positions on the square grid of `config`.
    positions: image positions as published ``(1 + rows * columns, D)``, fp32.
    grid: (rows, columns) of `positions`.
    heads: of the loss terms: ``mlm.*`` and ``id.*``, fp32; may be empty.
    dropped: beginning of a name -> how many tensors were not used.
    scale_made: whether the checkpoint has no temperature of its own.
    """

    config: Any
    weights: State
    positions: Tensor
    grid: tuple[int, int]
    heads: State
    dropped: Counter[str]
    scale_made: bool

    def report(self) -> str:
        """Returns a table of what was used, resized, made and dropped."""
        rows, columns = self.grid
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        table = PrettyTable(["part", "tensors", "what became of it"], align="l")
        table.align["tensors"] = "r"
        kept = Counter(name.split(".")[0] for name in self.weights if "vision_model.embeddings.position" not in name)
        for part in ("vision_model", "visual_projection", "text_model", "text_projection"):
            table.add_row([part, kept[part], "used"])
        exact = "used" if rows == columns else f"used, and resized to {side} x {side} for programs that want a square"
        table.add_row(["image positions", 1, f"{rows} x {columns}: {exact}"])
        table.add_row(["temperature", 1, "made: scale 50, that of SDM" if self.scale_made else "used"])
        for term, names in (("mlm", "loss=irra and loss=fmfa start from it"), ("id", "")):
            tensors = [name for name in self.heads if name.startswith(f"{term}.")]
            if term == "id" and tensors:
                names = f"{len(self.heads['id.classifier.weight']):,} identities: used where training has as many"
            if tensors:
                table.add_row([f"head of {term}", len(tensors), names])
        for prefix, number in sorted(self.dropped.items()):
            table.add_row([f"{prefix}*", number, "dropped: no part of this project has it"])
        return str(table)


def convert(state: State, *, source: Path, img_size: tuple[int, int] | None = None) -> Published:
    """Returns what a state dict in OpenAI's layout is in this project's parts.

    Args:
        state: from `model.published_file.read_state`.
        source: named in errors.
        img_size: (height, width) that the image positions are for; None: a square grid, or one of 3 to 1 as
            for 384 x 128.

    Raises:
        UserError: not a CLIP ViT, or image positions that fit no grid.
    """
    _check_layout(state, source)
    patch = state["visual.conv1.weight"].shape[-1]
    positions = state[IMAGE_POSITIONS]
    grid = _grid(len(positions) - 1, patch, img_size, source)
    side = max(1, round((grid[0] * grid[1]) ** 0.5))
    weights: State = {
        "vision_model.embeddings.position_embedding.weight": resize_positions(positions, grid, (side, side), "bicubic")
    }
    heads: State = {}
    dropped: Counter[str] = Counter()
    for name, tensor in state.items():
        if (renamed := _of_towers(name, tensor)) is not None:
            weights |= renamed
        elif (head := _of_heads(name)) is not None:
            heads[head] = tensor
        elif name != IMAGE_POSITIONS and name not in SIZES:
            dropped[name.split(".")[0]] += 1
    scale_made = "logit_scale" not in weights
    weights.setdefault("logit_scale", torch.tensor(SCALE_OF_SDM))
    return Published(_config(state, patch, side), weights, positions, grid, heads, dropped, scale_made)


def _check_layout(state: State, source: Path) -> None:
    if "visual.layer1.0.conv1.weight" in state:
        raise UserError(f"{source} is a CLIP with a ResNet; expected one with a ViT-B/16")
    for name, dimensions in NEEDED.items():
        if name not in state:
            raise UserError(
                f"{source} is not a CLIP in OpenAI's layout: it has no {name!r} (its first tensor is "
                f"{next(iter(state))!r}); expected the checkpoint of IRRA, FMFA, HAM, NAM or of CLIP itself"
            )
        if state[name].ndim != dimensions or not state[name].numel():
            shape = tuple(state[name].shape)
            raise UserError(
                f"{source}: {name!r} is of shape {shape}, expected {dimensions} dimensions as CLIP has them"
            )


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
    raise UserError(f"{source} has positions for {patches} patches, of a grid unknown; give --img-size HEIGHTxWIDTH")


def _of_towers(name: str, tensor: Tensor) -> State | None:
    if name in TRANSPOSED:
        return {TRANSPOSED[name]: tensor.T.contiguous()}
    found = re.match(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if found:
        tower = "vision_model" if found[1] else "text_model"
        layer = f"{tower}.encoder.layers.{found[2]}."
        if found[3].startswith("attn.in_proj_"):
            kind = found[3].removeprefix("attn.in_proj_")
            parts = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{layer}self_attn.{part}_proj.{kind}": rows.clone() for part, rows in parts}
        inner = _renamed(found[3], BLOCK)
        return None if inner is None else {layer + inner: tensor}
    outer = _renamed(name, TOWERS)
    return None if outer is None else {outer: tensor}


def _of_heads(name: str) -> str | None:
    found = re.match(r"cross_modal_transformer\.resblocks\.(\d+)\.(.+)", name)
    if found is None:
        return _renamed(name, HEADS)
    inner = _renamed(found[2], HEAD_BLOCK)
    return None if inner is None else f"mlm.interaction.blocks.layers.{found[1]}.{inner}"


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """Returns `name` with its beginning exchanged; a key without a dot at its end stands for a whole name."""
    for old, new in names.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name[len(old) :]
    return None


def _config(state: State, patch: int, side: int) -> CLIPConfig:
    """Returns the config that the shapes imply: heads are 64 wide, texts are pooled at the largest id."""

    def tower(prefix: str, width: int) -> dict[str, Any]:
        layers = {found[1] for name in state if (found := re.match(rf"{prefix}transformer\.resblocks\.(\d+)\.", name))}
        return {
            "hidden_size": width,
            "intermediate_size": len(state[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"]),
            "num_hidden_layers": len(layers),
            "num_attention_heads": max(1, width // 64),
            "hidden_act": "quick_gelu",
            "projection_dim": state["text_projection"].shape[1],
        }

    vocabulary, text_width = state["token_embedding.weight"].shape
    text = {
        **tower("", text_width),
        "vocab_size": vocabulary,
        "max_position_embeddings": len(state["positional_embedding"]),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        **tower("visual.", len(state["visual.conv1.weight"])),
        "image_size": side * patch,
        "patch_size": patch,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=text["projection_dim"])
