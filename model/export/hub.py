"""An encoder as a folder that transformers' `from_pretrained` and this project's `backbone.folder=` read."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from transformers import ViTImageProcessor

from model.backbones.folder import read_pixel_statistics
from model.backbones.loading import save_backbone
from model.backbones.position_embeddings import write_positions
from model.published.converted import HEADS_FILE, head_weights
from model.tbps import TBPS
from utils.checkpoints.disk import scratch_folder
from utils.checkpoints.folder import CONFIGS, RESAMPLE, copy_small_files, read_json

CARD: Final = "README.md"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
HEADS: Final = {"GlobalHead": "global", "PartHead": "part", "TokenSelectionHead": "token_selection"}


def hub_refusal(encoder: TBPS) -> str | None:
    """Returns why `encoder` cannot be written as a hub folder, or None if it can."""
    if not encoder.backbone.has_hub_format:
        return "export.formats: transformers has no class for a model of open_clip; choose export.formats=[onnx]"
    head = type(encoder.head).__name__
    return None if head in HEADS else f"export.formats: hub knows no head {head}; choose export.formats=[onnx]"


def write_hub(
    encoder: TBPS,
    folder: Path,
    *,
    source: Path,
    size: tuple[int, int],
    max_length: int,
    interpolation: str,
    card: str,
) -> None:
    """Writes weights, config, tokenizer, image processor and model card to `folder`, which appears whole or not at all.

    The weights have the positions of the square grid of the config. The positions of the grid of training stand in a
    file beside them, and so do the weights of a part or token selection head.

    Args:
        encoder: an encoder without adapters.
        source: the folder of its backbone, from which the tokenizer is copied.
        size: (height, width) of images in pixels.
        max_length: tokens of a caption.
        interpolation: the filter with which images are resized.
        card: text of README.md.
    """
    with scratch_folder(folder) as scratch:
        made = scratch / folder.name
        made.mkdir()
        write_tokenizer(made, source, max_length)
        save_backbone(encoder.backbone, made)
        positions = encoder.backbone.positions()
        if positions is not None:
            write_positions(made, positions, encoder.backbone.grid)
        if heads := head_weights(encoder.head):  # type: ignore[arg-type]
            save_file({name: tensor.contiguous() for name, tensor in heads.items()}, made / HEADS_FILE)
        write_image_processor(made, source, size, interpolation)
        (made / CARD).write_text(card, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def write_tokenizer(folder: Path, source: Path, max_length: int) -> None:
    """Copies the tokenizer of a backbone and its other small files, and sets the length to which it pads and cuts."""
    copy_small_files(source, folder)
    path = folder / TOKENIZER_CONFIG
    options = read_json(path) if path.is_file() else {}
    path.write_text(json.dumps(options | {"model_max_length": max_length}, indent=2) + "\n", encoding="utf-8")


def write_image_processor(folder: Path, source: Path, size: tuple[int, int], interpolation: str) -> None:
    """Writes the image processor of transformers that resizes and normalises as this project does.

    Args:
        folder, source, size, interpolation: as in `write_hub`.
    """
    mean, std = read_pixel_statistics(source / CONFIGS[1])
    resample = next(number for number, name in RESAMPLE.items() if name == interpolation)
    sides = {"height": size[0], "width": size[1]}
    made: Any = ViTImageProcessor(size=sides, resample=resample, image_mean=mean, image_std=std, do_convert_rgb=True)
    made.save_pretrained(folder)
