"""Folders of converted checkpoints: written in Hugging Face format, with the heads of losses beside the backbone."""

from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from model.objectives import ID, MLM, LossTerm, Objective
from model.positions import write_positions
from model.published import Published
from utils.errors import UserError

HEADS_FILE: Final = "heads.safetensors"
CLASSIFIER: Final = "id.classifier.weight"
HEADS_OF: Final[dict[str, type[LossTerm]]] = {"mlm": MLM, "id": ID}


def write_converted(published: Published, folder: Path, *, source: Path) -> None:
    """Writes config, weights and, where there are any, heads and a grid that is no square into `folder`.

    Raises:
        UserError: weights that are not all there.
    """
    with torch.device("meta"):
        model = CLIPModel(published.config)
    try:
        model.load_state_dict(published.weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{source} is not a whole CLIP ViT ({str(error).splitlines()[1].strip()})") from error
    model.save_pretrained(folder)
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
    saved = load_file(folder / HEADS_FILE)
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
    with safe_open(folder / HEADS_FILE, framework="pt") as heads:
        if CLASSIFIER not in set(heads.keys()):
            return None
        classes = heads.get_slice(CLASSIFIER).get_shape()[0]
    if classes == identities:
        return None
    return f"{folder} was trained on {classes:,} identities, this dataset has {identities:,}: ranking needs neither"


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
