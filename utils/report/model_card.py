"""The model card of an exported encoder: how to use it, its results, and how it was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from utils.checkpoints.folder import IncompleteError, read_json
from utils.errors import one_line
from utils.ranking.metrics import METRICS
from utils.report.provenance import file_hash

LOADING: Final = """\
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = "."
model = AutoModel.from_pretrained(folder).eval()
processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
pixels = processor(Image.open("person.jpg"), return_tensors="pt")["pixel_values"]
texts = tokenizer(
    ["a man in a red jacket"], padding="max_length", truncation=True, max_length={max_length}, return_tensors="pt"
)
"""
POSITIONS: Final = """\
from safetensors.torch import load_file
positions = load_file(f"{folder}/positions.safetensors")["positions"][None]  # of {rows} x {columns} patches
model.vision_model.embeddings.interpolate_pos_encoding = lambda *_: positions
"""
STRIDE: Final = """\
for module in model.vision_model.encoder.stages[-1].modules():  # the stride of training
    if isinstance(module, torch.nn.Conv2d):
        module.stride = (1, 1)
"""
POOLED: Final = """\
with torch.inference_mode():
    images = normalize(model.get_image_features(pixels{interpolate}).pooler_output, dim=-1)
    captions = normalize(model.get_text_features(texts["input_ids"]{mask}).pooler_output, dim=-1)
scores = captions @ images.T
"""
MAXIMUM: Final = """\
with torch.inference_mode():  # the maximum over patches and over words
    hidden = model.vision_model(pixels{interpolate}).last_hidden_state
    hidden = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden[:, 1:]
    images = normalize(model.visual_projection(hidden).amax(dim=1), dim=-1)
    words = model.text_projection(model.text_model(texts["input_ids"], texts["attention_mask"]).last_hidden_state)
    padding = texts["attention_mask"][:, :, None] == 0
    captions = normalize(words.masked_fill(padding, -torch.inf).amax(dim=1), dim=-1)
scores = captions @ images.T
"""


def usage(family: str, *, max_length: int, grid: tuple[int, int], has_positions: bool) -> str:
    """Returns Python code that computes global embeddings with transformers alone.

    Args:
        family: `model_type` of the config.
        grid: (rows, columns) of patches.
        has_positions: whether the image tower has position embeddings.
    """
    joined = family == "vision-text-dual-encoder"
    parts = [LOADING.replace("{max_length}", str(max_length))]
    if has_positions:
        parts.append(POSITIONS.replace("{rows}", str(grid[0])).replace("{columns}", str(grid[1])))
    elif joined:
        parts.append(STRIDE)
    mask = ', texts["attention_mask"]' if family == "clip" else ""
    interpolate = ", interpolate_pos_encoding=True" if has_positions else ""
    parts.append((MAXIMUM if joined else POOLED).replace("{mask}", mask).replace("{interpolate}", interpolate))
    return "".join(parts)


def results_of(run: Path, checkpoint: Path) -> Mapping[str, Any] | None:
    """Returns the metrics.json in the folder `run` if it is of a test of `checkpoint`, else None."""
    try:
        found = read_json(run / "metrics.json")
    except IncompleteError:
        return None
    tested = _mapping(_mapping(found.get("provenance")).get("tested"))
    return found if tested.get("sha256") == file_hash(checkpoint) else None


def model_card(
    name: str,
    code: str,
    *,
    command: str,
    head: str,
    found: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    source: str,
) -> str:
    """Returns the text of README.md.

    Args:
        name: title of the model.
        code: as from `usage`.
        command: the command that ranks with the project.
        head: name of the head; its weights, if it has any, are in heads.safetensors.
        found: content of metrics.json, or None if the model was not tested.
        record: the provenance of the training; empty for a backbone as it is.
        source: the checkpoint or folder that was exported.
    """
    lines = [
        "---",
        "library_name: transformers",
        "tags: [text-based-person-search, image-text-retrieval]",
        "---",
        f"# {_plain(name)}",
        "",
        "A dual encoder for text-based person search: it finds images of a person from a sentence.",
        "",
        "## Use",
        "",
        "With transformers alone:",
        "",
        f"```python\n{code}```",
        "",
        f"With the project that trained it: `{_plain(command)}`",
        "",
    ]
    if head != "global":
        lines += [
            f"**`from_pretrained` alone gives the global embedding.** The head `{head}` has weights of its own, in "
            "heads.safetensors. Only the project itself adds its part of the score, so rankings by transformers alone "
            "differ from the results below.",
            "",
        ]
    return "\n".join([*lines, "## Results", "", *_results(found), "", "## How it was made", "", *_made(record, source)])


def _results(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["This checkpoint was not tested in its run."]
    run, rows = _mapping(found.get("run")), _mapping(found.get("metrics"))
    limits = [str(run[key]) for key in ("limited", "noise") if run.get(key)]
    told = f"`{_plain(run.get('dataset'))}`, test split" + "".join(f" ({_plain(limit)})" for limit in limits)
    if run.get("val_protocol") == "paper":
        told += ". The checkpoint was chosen on this split"
    columns = [name for name in METRICS if any(name in _mapping(row) for row in rows.values())]
    table = [f"| | {' | '.join(columns)} | queries |", f"|---|{'---|' * (len(columns) + 1)}"]
    for direction, row in rows.items():
        cells = [f"{float(row[name]):.2f}" if name in row else "" for name in columns]
        table.append(f"| {_plain(direction)} | {' | '.join(cells)} | {row.get('queries', '')} |")
    return [f"{told}, percent:", "", *table]


def _made(record: Mapping[str, Any], source: str) -> list[str]:
    code, data, training = (_mapping(record.get(key)) for key in ("code", "data", "training"))
    versions = ", ".join(f"{name} {version}" for name, version in _mapping(record.get("versions")).items() if version)
    counted = ", ".join(f"{training[key]:,} {key}" for key in ("epochs", "steps", "images") if key in training)
    facts = {
        "exported from": source,
        "trained": counted,
        "command": record.get("command"),
        "commit": code.get("commit") and f"{code['commit']}{'' if code.get('clean') else ', with changes'}",
        "sources": code.get("sources"),
        "annotations": data.get("annotations"),
        "seed": record.get("seed"),
        "versions": versions,
        "device": record.get("device"),
    }
    rows = [f"| {name} | `{_plain(value)}` |" for name, value in facts.items() if value not in (None, "")]
    return ["| | |", "|---|---|", *rows, ""]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> str:
    """Returns a value as one line that ends no table and no code."""
    return one_line(str(value)).replace("|", "/").replace("`", "'")
