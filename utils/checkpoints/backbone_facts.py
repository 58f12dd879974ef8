"""Facts of a backbone that its folder or its architecture gives: name, family, length of captions, kind of loss.

Only small JSON files are read, so that a config is composed at once.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from utils.checkpoints.folder import check_fixed_resolution, is_open_clip, read_json
from utils.checkpoints.layouts import CONFIGS, OPEN_CLIP_CONFIG
from utils.errors import UserError, nearest

OPEN_CLIP: Final = "open_clip"
DEFAULT_LENGTH: Final = 77  # of open_clip's text towers
# Text towers that have more positions than the tokens that their authors give them.
LENGTHS: Final = {"chinese_clip": 52, "altclip": 77}


class Facts(NamedTuple):
    """The facts of a backbone, named as the options in `config/backbone/_base.yaml`."""

    name: str
    family: str
    max_length: int
    sigmoid: bool


def read_facts(folder: Path | None, model: str | None = None) -> Facts:
    """Returns the facts of the backbone in `folder`.

    Args:
        model: architecture of open_clip. If it is given, there need not be a folder.

    Raises:
        UserError: there is no such folder or architecture, or `folder` holds no dual encoder.
    """
    if folder is None or (model is None and not folder.exists()):
        raise UserError(
            f"backbone.folder: {folder or 'null'} is no folder; name one of transformers or open_clip, or choose "
            "backbone=open_clip and name an architecture with backbone.model"
        )
    name = re.sub(r"[^\w.-]+", "_", folder.name.removesuffix("_checkpoints"))
    if model is not None or is_open_clip(folder):
        options = open_clip_config(folder, model)["model_cfg"]
        length = options["text_cfg"].get("context_length", DEFAULT_LENGTH)
        return Facts(name, OPEN_CLIP, length, options.get("init_logit_bias") is not None)
    config = read_json(folder / CONFIGS[0])
    check_fixed_resolution(config, folder)
    family, text = str(config.get("model_type")), config.get("text_config")
    default = 64 if family == "siglip" else DEFAULT_LENGTH
    positions = text.get("max_position_embeddings", default) if isinstance(text, dict) else default
    return Facts(name, family, LENGTHS.get(family, positions), family == "siglip")


def open_clip_config(folder: Path, model: str | None) -> dict[str, Any]:
    """Returns ``{"model_cfg": ..., "preprocess_cfg": ...}`` of a folder of open_clip.

    If there is no folder yet, it is the library's config of `model`, with an empty `preprocess_cfg`.

    Raises:
        UserError: the folder is one of transformers as well, is of another architecture than `model`, or there is none.
    """
    path = folder / OPEN_CLIP_CONFIG
    if not path.is_file():
        if model is None:
            raise UserError(f"{folder} has no {OPEN_CLIP_CONFIG}; name a folder of open_clip, or set backbone.model")
        return {"model_cfg": library_config(model), "preprocess_cfg": {}}
    if not is_open_clip(folder):
        raise UserError(
            f"{folder} holds a model of transformers and one of open_clip: choose backbone=folder for the first, "
            "or copy the second with 'uv run prepare_checkpoints.py open_clip --model NAME --from FOLDER --to OTHER'"
        )
    found = read_json(path)
    options = found.get("model_cfg")
    if not isinstance(options, dict) or not all(
        isinstance(options.get(f"{of}_cfg"), dict) for of in ("vision", "text")
    ):
        raise UserError(f"{path}: expected model_cfg with vision_cfg and text_cfg, as open_clip writes it")
    if model is not None and _differ(options, library_config(model)):
        raise UserError(
            f"{folder} is of another architecture than {model!r}: correct backbone.model or backbone.folder"
        )
    preprocess = found.get("preprocess_cfg")
    return {"model_cfg": options, "preprocess_cfg": preprocess if isinstance(preprocess, dict) else {}}


def library_config(model: str) -> dict[str, Any]:
    """Returns open_clip's own config of the architecture `model`; the library is not imported."""
    files = {path.stem: path for path in (open_clip_library() / "model_configs").glob("*.json")}
    if model not in files:
        raise UserError(
            f"backbone.model: open_clip has no architecture {model!r}.{nearest(model, [*files])} "
            "'uv run python -c \"import open_clip; print(open_clip.list_models())\"' lists them"
        )
    return read_json(files[model])


def open_clip_library() -> Path:
    """Returns the folder of the library open_clip, which is not imported. Raises `UserError` if it is not installed."""
    spec = find_spec(OPEN_CLIP)
    if spec is None or spec.origin is None:
        raise UserError("backbone=open_clip needs the library open_clip: run 'uv sync --extra open_clip'")
    return Path(spec.origin).parent


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether two model_cfg have different values of a number or name that both have."""
    of_vision = ("timm_model_name", "layers", "width", "patch_size", "image_size")
    of_text = ("layers", "width", "vocab_size", "context_length")
    sections: list[Any] = [(one, other, ("embed_dim",))]
    sections += [(one[of], other[of], keys) for of, keys in (("vision_cfg", of_vision), ("text_cfg", of_text))]
    return any(a[key] != b[key] for a, b, keys in sections for key in keys if key in a and key in b)
