"""Reading of a backbone's folder in Hugging Face format: values are checked, and no code that it names is run."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import (
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    BertConfig,
    ChineseCLIPTextConfig,
    ChineseCLIPVisionConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    MetaClip2TextConfig,
    MetaClip2VisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from utils.checkpoints.folder import WEIGHTS, check_fixed_resolution, read_json
from utils.checkpoints.tensor_files import UnreadableError, check_finite, read_safetensors
from utils.errors import UserError, library_errors

# Family -> section of its config -> config classes allowed in this section, the default one first.
TOWERS: Final[Mapping[str, Mapping[str, tuple[type[PreTrainedConfig], ...]]]] = {
    "siglip": {"text_config": (SiglipTextConfig,), "vision_config": (SiglipVisionConfig,)},
    "clip": {"text_config": (CLIPTextConfig,), "vision_config": (CLIPVisionConfig,)},
    "metaclip_2": {"text_config": (MetaClip2TextConfig,), "vision_config": (MetaClip2VisionConfig,)},
    "chinese_clip": {"text_config": (ChineseCLIPTextConfig,), "vision_config": (ChineseCLIPVisionConfig,)},
    "altclip": {"text_config": (AltCLIPTextConfig,), "vision_config": (AltCLIPVisionConfig,)},
    "vision-text-dual-encoder": {"text_config": (BertConfig,), "vision_config": (ViTConfig, ResNetConfig)},
}
ALSO: Final = {"hidden_size"}  # a dual encoder reads it, but a ResNet's config does not declare it
UNUSED: Final = {"is_decoder", "add_cross_attention", "use_cache", "vision_use_head"}  # would make another tower
SIZE: Final = re.compile(r".*_(size|sizes|layers|heads|channels|dim|position_embeddings)|depths|.*_eps")
SHARE: Final = re.compile(r".*(dropout|_prob)")
LARGEST: Final = 10_000_000  # largest number in a config; a vocabulary has up to 300,000 tokens
MOST_LAYERS: Final = 1_000
PIXELS: Final = ("image_mean", "image_std")


class OtherModelError(UserError):
    """A config that describes another kind of model."""


def read_config(path: Path, model_class: type[PreTrainedModel]) -> PreTrainedConfig:
    """Returns the config in the config.json at `path`, which has to describe a `model_class`.

    Raises:
        UserError: the file is absent, damaged, of another model, or has sizes that no model has.
    """
    return make_config(read_json(path), model_class, path)


def make_config(options: Mapping[str, Any], model_class: type[PreTrainedModel], source: Path | str) -> PreTrainedConfig:
    """Returns the config with the values of `options`. Keys that the config class does not declare are ignored.

    Args:
        source: file or backbone that error messages name.

    Raises:
        UserError: the options describe another model, or sizes that no model has.
    """
    config_class: Any = model_class.config_class
    family = config_class.model_type
    check_fixed_resolution(options, source)
    if options.get("model_type") != family:
        raise OtherModelError(f"{source} describes a {options.get('model_type')!r} model, expected {family!r}")
    sections = {name: _section(options, name, kinds, source) for name, kinds in TOWERS[family].items()}
    with library_errors(f"{source} describes no {family!r} model", "expected the config of one"):
        return config_class(**_declared(config_class, options, source), **sections)


def read_pixel_statistics(path: Path) -> tuple[list[float], list[float]]:
    """Returns mean and deviation of the three channels from a preprocessor_config.json.

    Raises:
        UserError: the file is absent, damaged, or does not have three numbers for each.
    """
    content = read_json(path)
    for name in PIXELS:
        numbers = content.get(name)
        if (
            not isinstance(numbers, list)
            or len(numbers) != 3
            or not all(type(number) in (int, float) and abs(number) <= LARGEST for number in numbers)
            or (name == "image_std" and not all(number > 0 for number in numbers))
        ):
            raise UserError(f"{path}: {name} is {numbers!r}, expected three numbers, one for each channel")
    return content["image_mean"], content["image_std"]


def pretrained(model_class: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Returns the model of `config` in fp32 with the weights in `folder`, which have to be complete and finite.

    Raises:
        UserError: the weights are absent, incomplete, damaged, of another model, or not finite.
    """
    path = folder / WEIGHTS
    try:
        weights = read_safetensors(path)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    _check_layers(config, len(weights), path)
    with torch.device("meta"):
        _check_shapes(weights, untrained(model_class, config, path), path)
    check_finite(weights, str(path))
    with library_errors(f"{path} does not fit its config.json", "expected the weights of that model"):
        loaded: Any = model_class.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, report = loaded
    model.name_or_path = model.config.name_or_path = str(folder)  # otherwise peft would look for it on the hub
    if report["missing_keys"]:
        raise UserError(f"{path} lacks {min(report['missing_keys'])!r}, which its config.json asks for")
    return model


def untrained(model_class: type[PreTrainedModel], config: PreTrainedConfig, source: Path | str) -> PreTrainedModel:
    """Returns the model of `config` with the initial weights of a training from scratch.

    Args:
        source: file or backbone that error messages name.

    Raises:
        UserError: the sizes do not fit together, or are too large.
    """
    _check_layers(config, MOST_LAYERS, source)
    with library_errors(f"{source} describes no model that can be built", "expected sizes that go together"):
        return model_class(config)


def _section(
    options: Mapping[str, Any], name: str, kinds: tuple[type[PreTrainedConfig], ...], source: Path | str
) -> dict[str, Any]:
    section = options.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{source}: {name} is {section!r}, expected the sizes of a tower")
    known = {kind.model_type: kind for kind in kinds}
    model_type = section.get("model_type", kinds[0].model_type)
    if model_type not in known:
        raise UserError(f"{source}: {name} is of a {model_type!r} model, expected {' or '.join(map(repr, known))}")
    return {**_declared(known[model_type], section, f"{source}, {name}"), "model_type": model_type}


def _declared(kind: Any, options: Mapping[str, Any], source: Path | str) -> dict[str, Any]:
    """Returns the entries of `options` that the config class declares, except its sections (sub-configs)."""
    declared = (_names(kind) | ALSO) - UNUSED - {*kind.sub_configs}
    kept = {name: value for name, value in options.items() if name in declared}
    for name, value in kept.items():
        numbers = value if isinstance(value, list) else [value]
        least = 1e-12 if SIZE.fullmatch(name) else -1
        most = 1 if SHARE.fullmatch(name) else LARGEST
        of_kind = float if name.endswith("_eps") else int  # some releases of transformers do not check the type
        if SIZE.fullmatch(name) and any(n is not None and type(n) not in (int, of_kind) for n in numbers):
            raise UserError(f"{source}: {name} is {value!r}, expected a number of type {of_kind.__name__}")
        if any(isinstance(n, int | float) and not least <= n <= most for n in numbers):
            raise UserError(f"{source}: {name} is {value!r}, expected a number that a model can have")
    return kept


def _names(kind: Any) -> set[str]:
    """Returns the names that a config class declares: fields, or arguments of `__init__` in early transformers 5."""
    return {*kind.__annotations__} or {*inspect.signature(kind.__init__).parameters} - {"self", "kwargs"}


def _check_layers(config: PreTrainedConfig, most: int, source: Path | str) -> None:
    """Raises `UserError` if the towers have more than `most` layers, each of which takes time to build."""
    layers = 0
    for tower in (config.text_config, config.vision_config):
        layers += sum(tower.depths or ()) if isinstance(tower, ResNetConfig) else tower.num_hidden_layers
    if layers > most:
        raise UserError(f"{source}: config.json describes {layers} layers, expected at most {most}")


def _check_shapes(weights: Mapping[str, Tensor], model: PreTrainedModel, path: Path) -> None:
    """Raises `UserError` if a weight differs from the one of that name in `model`, or if weights are missing."""
    own = model.state_dict()
    for name in own.keys() & weights.keys():
        found, expected = (f"{tuple(t.shape)} {t.dtype}" for t in (weights[name], own[name]))
        same_kind = own[name].is_floating_point() == weights[name].is_floating_point()
        if own[name].shape != weights[name].shape or not same_kind:
            raise UserError(f"{path}: {name!r} is {found}, but its config.json asks for {expected}")
    if sum(tensor.numel() for tensor in own.values()) > sum(tensor.numel() for tensor in weights.values()):
        raise UserError(f"{path} lacks {min(own.keys() - weights.keys(), default='weights')!r} of its config.json")
