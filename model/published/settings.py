"""Settings of a published CLIP that its weights do not contain: activation, resizing and pixel statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from model.published.file import State
from model.published.names import SIZES, Layout, of_heads
from utils.checkpoints.folder import read_json
from utils.errors import UserError

Activation = Literal["gelu", "quick_gelu"]
BILINEAR, BICUBIC = 2, 3  # numbers in PIL and in preprocessor_config.json
MEAN: Final = [0.48145466, 0.4578275, 0.40821073]  # of CLIP, from which all of these models start
STD: Final = [0.26862954, 0.26130258, 0.27577711]
OPEN_CLIP: Final = "open_clip_config.json"
# Keys of open_clip's configs that change the towers, each with the value of CLIP. An absent key has CLIP's value.
OF_CLIP: Final[Mapping[tuple[str, str], Any]] = {
    ("text_cfg", "no_causal_mask"): False,
    ("text_cfg", "pool_type"): "argmax",
    ("text_cfg", "embed_cls"): False,
    ("text_cfg", "hf_model_name"): None,
    ("text_cfg", "norm_kwargs"): None,
    ("text_cfg", "act_kwargs"): None,
    ("vision_cfg", "pool_type"): "tok",
    ("vision_cfg", "global_average_pool"): False,
    ("vision_cfg", "final_ln_after_pool"): False,
    ("vision_cfg", "norm_kwargs"): None,
    ("vision_cfg", "act_kwargs"): None,
}


@dataclass(frozen=True)
class Settings:
    """The settings with which a checkpoint is run.

    activation: activation of the blocks of both towers. told_by: the source of this value, in words.
    resample: how images are resized: 2 bilinear, 3 bicubic. mean, std: of the three channels, for pixels from 0 to 1.
    """

    activation: Activation
    told_by: str
    resample: int
    mean: list[float] = field(default_factory=lambda: [*MEAN])
    std: list[float] = field(default_factory=lambda: [*STD])


def settings_of(state: State, layout: Layout, source: Path, given: Activation | None) -> Settings:
    """Returns the settings of a checkpoint. The activation is never guessed: if it is unknown, this is an error.

    IRRA and models based on its code (FMFA, RDE, HAM, NAM) start from OpenAI's CLIP and resize bilinearly. Their heads
    identify them, or the absence of a logit scale. Other models resize as in their pre-training: bicubic, unless
    open_clip's config says otherwise.

    Args:
        state, layout: from `one_layout`.
        source: the file. A config file is searched in the same folder.
        given: the activation that the user gave. It overrides all other sources.

    Raises:
        UserError: the activation is unknown, or the config beside the file is not of a CLIP.
    """
    if "logit_scale" not in state or any(of_heads(name) for name in state):
        found = Settings("quick_gelu", "as in OpenAI's CLIP, from which IRRA and its successors start", BILINEAR)
    elif (source.parent / OPEN_CLIP).is_file() and layout == "openai":
        found = _of_open_clip(source.parent / OPEN_CLIP)
    elif (source.parent / "config.json").is_file() and layout == "transformers":
        found = _of_transformers(source.parent / "config.json")
    elif all(name in state for name in SIZES):
        found = Settings("quick_gelu", "the archive is OpenAI's own", BICUBIC)
    elif given is None:
        beside = OPEN_CLIP if layout == "openai" else "config.json"
        raise UserError(
            f"{source} does not say the activation of its blocks, nor does a {beside} beside it; give --activation "
            "quick_gelu (OpenAI, DFN, MetaCLIP) or gelu (LAION, DataComp) to 'uv run prepare_checkpoints.py clip "
            "--from FILE --to FOLDER', and use backbone.folder=FOLDER"
        )
    else:
        found = Settings(given, "", BICUBIC)
    if given is None:
        return found
    return Settings(given, "--activation", found.resample, found.mean, found.std)


def _of_open_clip(path: Path) -> Settings:
    """Returns the settings in an open_clip_config.json. An absent key has open_clip's default."""
    content = read_json(path)
    model, pixels = (content.get(part, {}) for part in ("model_cfg", "preprocess_cfg"))
    if not isinstance(model, dict) or not isinstance(pixels, dict):
        raise UserError(f"{path} has no 'model_cfg' and 'preprocess_cfg' as open_clip writes them; download it again")
    for (section, name), usual in OF_CLIP.items():
        value = model[section].get(name) if isinstance(model.get(section), dict) else None
        if value and value != usual:
            raise UserError(
                f"{path}: {section}.{name} is {str(value)[:50]!r}, CLIP has {usual!r}; expected a ViT-B-16 of CLIP"
            )
    quick = model.get("quick_gelu", False)
    resample = {"bilinear": BILINEAR, "bicubic": BICUBIC}.get(str(pixels.get("interpolation", "bicubic")))
    if not isinstance(quick, bool) or resample is None:
        raise UserError(f"{path}: quick_gelu has to be true or false, interpolation bilinear or bicubic")
    mean, std = (pixels.get(name, usual) for name, usual in (("mean", MEAN), ("std", STD)))
    for name, numbers in (("mean", mean), ("std", std)):
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(type(n) in (int, float) for n in numbers):
            raise UserError(f"{path}: preprocess_cfg.{name} is {numbers!r}, expected three numbers")
    return Settings("quick_gelu" if quick else "gelu", path.name, resample, mean, std)


def _of_transformers(path: Path) -> Settings:
    """Returns the settings in a config.json of `CLIPModel`. An absent activation is the default, quick_gelu."""
    content = read_json(path)
    sections = [content.get(f"{tower}_config") or {} for tower in ("vision", "text")]
    found = {section.get("hidden_act", "quick_gelu") for section in sections if isinstance(section, dict)}
    if content.get("model_type") != "clip" or len(found) != 1 or not found <= {*get_args(Activation)}:
        raise UserError(
            f"{path} describes a {content.get('model_type')!r} model with activation {' and '.join(map(str, found))}; "
            f"expected a 'clip' model whose towers both have {' or '.join(get_args(Activation))}"
        )
    return Settings(found.pop(), path.name, BICUBIC)
