"""Folders of converted checkpoints in Hugging Face format, with the heads of losses beside the backbone."""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from model.backbones.position_embeddings import write_positions
from model.heads import PartHead, TokenSelectionHead
from model.objectives import ID, MLM, LossTerm, Objective
from model.published.convert import RANKED_WITHOUT, SELECTION_HEADS, Published
from model.published.file import State
from utils.checkpoints.tensor_files import UnreadableError, check_finite, read_safetensors
from utils.errors import UserError, library_errors

HEADS_FILE: Final = "heads.safetensors"
CLASSIFIER: Final = "id.classifier.weight"
SCORES: Final = "mlm.head.scores.bias"
PARTS: Final = "part."
HEADS_OF: Final[dict[str, type[LossTerm]]] = {"mlm": MLM, "id": ID}


def write_converted(published: Published, folder: Path, *, source: Path) -> None:
    """Writes configs and weights to `folder`, and heads and positions of a grid that is not square, if there are any.

    Raises:
        UserError: weights are missing.
    """
    with library_errors(f"{source} has no sizes of a CLIP ViT", "expected those of CLIP"), torch.device("meta"):
        model = CLIPModel(published.config)
    try:
        model.load_state_dict(published.weights, assign=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip()
        raise UserError(f"{source} is not a whole CLIP ViT ({reason}); download it again") from error
    model.save_pretrained(folder)
    told = published.settings
    pixels = {"image_mean": told.mean, "image_std": told.std, "resample": told.resample}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n", encoding="utf-8")
    rows, columns = published.grid
    if rows != columns:
        write_positions(folder, published.positions, published.grid)
    if published.heads:
        save_file({name: tensor.contiguous() for name, tensor in published.heads.items()}, folder / HEADS_FILE)


def head_weights(head: nn.Module) -> State:
    """Returns the weights of `head`, as `load_head` finds them in `HEADS_FILE`; empty for a head without weights."""
    weights = head.state_dict()
    if isinstance(head, TokenSelectionHead):
        split = {name: name.split("_selection.") for name in weights}
        return {f"{SELECTION_HEADS}{of}.{rest}": weights[name] for name, (of, rest) in split.items()}
    return {f"{PARTS}{name}": value for name, value in weights.items()}


def load_head(head: object, folder: Path) -> list[str]:
    """Loads the token selection or the parts in `folder` into `head`, and returns lines that say so.

    Raises:
        UserError: the weights have other shapes than `head`.
    """
    if not isinstance(head, TokenSelectionHead | PartHead):
        return []
    selects = isinstance(head, TokenSelectionHead)
    title, prefix = ("token selection", SELECTION_HEADS) if selects else ("the part head", PARTS)
    saved = _read_heads(folder) if (folder / HEADS_FILE).is_file() else {}
    weights = _of(saved, prefix.removesuffix("."))
    if not weights:
        return [f"token selection is new: {folder} has none"] if selects else []
    own = head.state_dict()
    if selects:
        sides = {f"{of}_selection.": _of(weights, of) for of in ("image", "text")}
        weights = {f"{start}{name}": value for start, side in sides.items() for name, value in side.items()}
    for name in own:
        if name not in weights or weights[name].shape != own[name].shape:
            raise UserError(
                f"{folder / HEADS_FILE}: {name} of {title} is {_size(weights.get(name))}, expected "
                f"{_size(own[name])}; set the head.* options, and img_size_str, of the model in this folder"
            )
    head.load_state_dict({name: weights[name] for name in own})
    return [f"{title} starts from {folder / HEADS_FILE}"]


def load_heads(objective: Objective, folder: Path) -> list[str]:
    """Loads the heads in `folder` into `objective` where shapes fit, and returns one line for each head.

    A classifier of other identities, or scores of another vocabulary, are not loaded. If the MLM head is loaded, words
    attend to padding in its interaction encoder, unless the config sets `attend_padding`.
    """
    if not (folder / HEADS_FILE).is_file():
        return []
    saved = _read_heads(folder)
    lines = []
    for name, kind in HEADS_OF.items():
        weights = _of(saved, name)
        term = next((term for term in objective.terms.values() if isinstance(term, kind)), None)
        if weights and term is not None:
            line = f"{name} starts from {folder / HEADS_FILE}{_load_fitting(term, weights)}"
            if isinstance(term, MLM) and term.attend_padding is None:
                term.attend_padding = True
                line += "; words attend to padding, as they did there"
            lines.append(line)
    return lines


def mask_row(folder: Path, vocab_size: int) -> int | None:
    """Returns the row of [MASK] in the token table of `vocab_size` rows, or None if `folder` has no published MLM head.

    The tokenizer of IRRA and its successors has [MASK] before the tokens of start and end: row 49405 of 49408.
    """
    if not (folder / HEADS_FILE).is_file():
        return None
    scores = _read_heads(folder).get(SCORES)
    return None if scores is None or scores.shape != (vocab_size,) else vocab_size - 3


def ranking_notes(folder: Path, head: object, identities: int) -> list[str]:
    """Returns notes on a ranking by the backbone in `folder`: one line for each head that ranking does not use.

    Args:
        head: the head that ranks.
        identities: number of identities of the dataset. There is a note if the classifier has another number.
    """
    if not (folder / HEADS_FILE).is_file():
        return []
    heads = _read_heads(folder)
    notes = []
    classifier = heads.get(CLASSIFIER)
    if classifier is not None and classifier.ndim and len(classifier) != identities:
        notes.append(
            f"{folder} was trained on {len(classifier):,} identities, this dataset has {identities:,}: ranking needs "
            "neither"
        )
    if not isinstance(head, TokenSelectionHead) and any(name.startswith(SELECTION_HEADS) for name in heads):
        notes.append(RANKED_WITHOUT)
    return notes


def _read_heads(folder: Path) -> State:
    path = folder / HEADS_FILE
    try:
        heads = read_safetensors(path)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read: {error}; delete it, or convert the checkpoint again") from error
    check_finite(heads, str(path))
    return heads


def _of(weights: State, prefix: str) -> State:
    """Returns the weights below `prefix`, named without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def _load_fitting(term: nn.Module, weights: dict[str, Tensor]) -> str:
    """Loads the weights that fit the shapes of `term`, and returns a clause that lists the others."""
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
