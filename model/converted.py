"""Folders of converted checkpoints: written in Hugging Face format, with the heads of losses beside the backbone."""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from model.objectives import ID, MLM, LossTerm, Objective
from model.positions import write_positions
from model.published import Published
from model.published_file import State
from utils.errors import UserError, library_errors
from utils.tensor_files import UnreadableError, check_finite, read_safetensors

HEADS_FILE: Final = "heads.safetensors"
PIXELS: Final = {  # mean and deviation of CLIP, which all of them start from; resized bilinear, as their code does
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 2,
}
CLASSIFIER: Final = "id.classifier.weight"
HEADS_OF: Final[dict[str, type[LossTerm]]] = {"mlm": MLM, "id": ID}


def write_converted(published: Published, folder: Path, *, source: Path) -> None:
    """Writes configs, weights and, where there are any, heads and a grid that is no square into `folder`.

    Raises:
        UserError: weights that are not all there.
    """
    with library_errors(f"{source} has no sizes of a CLIP ViT", "expected those of CLIP"), torch.device("meta"):
        model = CLIPModel(published.config)
    try:
        model.load_state_dict(published.weights, assign=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip()
        raise UserError(f"{source} is not a whole CLIP ViT ({reason}); download it again") from error
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS, indent=2) + "\n", encoding="utf-8")
    rows, columns = published.grid
    if rows != columns:
        write_positions(folder, published.positions, published.grid)
    if published.heads:
        save_file({name: tensor.contiguous() for name, tensor in published.heads.items()}, folder / HEADS_FILE)


def load_heads(objective: Objective, folder: Path) -> list[str]:
    """Starts the heads of `objective` from those in `folder`, where shapes fit; returns a line on each that was there.

    A classifier of other identities, or scores of another vocabulary, stay as they are.
    """
    if not (folder / HEADS_FILE).is_file():
        return []
    saved = _read_heads(folder)
    lines = []
    for name, kind in HEADS_OF.items():
        prefix = f"{name}."
        weights = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        term = next((term for term in objective.terms.values() if isinstance(term, kind)), None)
        if weights and term is not None:
            lines.append(f"{name} starts from {folder / HEADS_FILE}{_load_fitting(term, weights)}")
    return lines


def classifier_note(folder: Path, identities: int) -> str | None:
    """Returns a line where the classifier in `folder` is of another number of identities; ranking needs none."""
    if not (folder / HEADS_FILE).is_file():
        return None
    classifier = _read_heads(folder).get(CLASSIFIER)
    if classifier is None or not classifier.ndim or len(classifier) == identities:
        return None
    classes = len(classifier)
    return f"{folder} was trained on {classes:,} identities, this dataset has {identities:,}: ranking needs neither"


def _read_heads(folder: Path) -> State:
    path = folder / HEADS_FILE
    try:
        heads = read_safetensors(path)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read: {error}; delete it, or convert the checkpoint again") from error
    check_finite(heads, str(path))
    return heads


def _load_fitting(term: nn.Module, weights: dict[str, Tensor]) -> str:
    """Loads the weights whose shapes are those of `term`; returns a clause on the others."""
    own = term.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    term.load_state_dict(fitting, strict=False)
    others = sorted(weights.keys() - fitting.keys())
    if not others:
        return ""
    sizes = ", ".join(f"{name} is {_size(weights[name])}, here {_size(own.get(name))}" for name in others)
    return f", but not {sizes}"


def _size(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else " x ".join(f"{size:,}" for size in tensor.shape)
