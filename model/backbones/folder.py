"""What a backbone's folder in Hugging Face format says, taken as data: checked, and no code that it names is run."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from utils.checkpoints.folder import WEIGHTS, read_json
from utils.checkpoints.tensor_files import UnreadableError, check_finite, read_safetensors
from utils.errors import UserError, library_errors

# Family -> section of its config -> configs of the towers that may stand there, the usual one first.
TOWERS: Final[Mapping[str, Mapping[str, tuple[type[PreTrainedConfig], ...]]]] = {
    "siglip": {"text_config": (SiglipTextConfig,), "vision_config": (SiglipVisionConfig,)},
    "clip": {"text_config": (CLIPTextConfig,), "vision_config": (CLIPVisionConfig,)},
    "vision-text-dual-encoder": {"text_config": (BertConfig,), "vision_config": (ViTConfig, ResNetConfig)},
}
ALSO: Final = {"hidden_size"}  # what a ResNet's config does not declare, but a dual encoder asks for
UNUSED: Final = {"is_decoder", "add_cross_attention", "use_cache", "vision_use_head"}  # would change what a tower is
SIZE: Final = re.compile(r".*_(size|sizes|layers|heads|channels|dim|position_embeddings)|depths|.*_eps")
SHARE: Final = re.compile(r".*(dropout|_prob)")
LARGEST: Final = 10_000_000  # number in a config; a vocabulary has up to 300,000 tokens
MOST_LAYERS: Final = 1_000
PIXELS: Final = ("image_mean", "image_std")


def read_config(path: Path, model_class: type[PreTrainedModel]) -> PreTrainedConfig:
    """Returns the config in a config.json; `model_class` is what it has to be of.

    Raises:
        UserError: absent, damaged, of another model, or with sizes that no model has.
    """
    return make_config(read_json(path), model_class, path)


def make_config(options: Mapping[str, Any], model_class: type[PreTrainedModel], source: Path | str) -> PreTrainedConfig:
    """Returns the config of `options`. Only what its class declares counts; all else a file may name is left out.

    Args:
        source: what errors name.

    Raises:
        UserError: of another model, or with sizes that no model has.
    """
    config_class: Any = model_class.config_class
    family = config_class.model_type
    if options.get("model_type") != family:
        raise UserError(f"{source} describes a {options.get('model_type')!r} model, expected {family!r}")
    sections = {name: _section(options, name, kinds, source) for name, kinds in TOWERS[family].items()}
    with library_errors(f"{source} describes no {family!r} model", "expected the config of one"):
        return config_class(**_declared(config_class, options, source), **sections)


def read_pixel_statistics(path: Path) -> tuple[list[float], list[float]]:
    """Returns mean and deviation of the three channels that a preprocessor_config.json says.

    Raises:
        UserError: absent, damaged, or without three numbers for each.
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
    """Returns the model of `config` in fp32 with the weights in `folder`: all of them are there, and finite.

    Raises:
        UserError: absent, damaged, of another model, or NaN.
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
    model.name_or_path = model.config.name_or_path = str(folder)  # else peft would ask the hub for it
    if report["missing_keys"]:
        raise UserError(f"{path} lacks {min(report['missing_keys'])!r}, which its config.json asks for")
    return model


def untrained(model_class: type[PreTrainedModel], config: PreTrainedConfig, source: Path | str) -> PreTrainedModel:
    """Returns the model of `config` as training from scratch starts from it.

    Args:
        source: what errors name.

    Raises:
        UserError: sizes that do not go together, or that no memory holds.
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
    """Returns those of `options` that the config class declares and that are no sections of their own."""
    declared = (_names(kind) | ALSO) - UNUSED - {*kind.sub_configs}
    kept = {name: value for name, value in options.items() if name in declared}
    for name, value in kept.items():
        numbers = value if isinstance(value, list) else [value]
        least = 1e-12 if SIZE.fullmatch(name) else -1
        most = 1 if SHARE.fullmatch(name) else LARGEST
        of_kind = float if name.endswith("_eps") else int  # not every release of transformers checks it
        if SIZE.fullmatch(name) and any(n is not None and type(n) not in (int, of_kind) for n in numbers):
            raise UserError(f"{source}: {name} is {value!r}, expected a number of type {of_kind.__name__}")
        if any(isinstance(n, int | float) and not least <= n <= most for n in numbers):
            raise UserError(f"{source}: {name} is {value!r}, expected a number that a model can have")
    return kept


def _names(kind: Any) -> set[str]:
    """Returns what a config class declares: in fields or, in the first releases of transformers 5, in `__init__`."""
    return {*kind.__annotations__} or {*inspect.signature(kind.__init__).parameters} - {"self", "kwargs"}


def _check_layers(config: PreTrainedConfig, most: int, source: Path | str) -> None:
    """Passes if the towers of `config` have at most so many layers: each of them takes time, whatever its size."""
    layers = 0
    for tower in (config.text_config, config.vision_config):
        layers += sum(tower.depths or ()) if isinstance(tower, ResNetConfig) else tower.num_hidden_layers
    if layers > most:
        raise UserError(f"{source}: config.json describes {layers} layers, expected at most {most}")


def _check_shapes(weights: Mapping[str, Tensor], model: PreTrainedModel, path: Path) -> None:
    """Passes if `weights` are those of `model`, as far as their names are the same, and enough of them."""
    own = model.state_dict()
    for name in own.keys() & weights.keys():
        found, expected = (f"{tuple(t.shape)} {t.dtype}" for t in (weights[name], own[name]))
        same_kind = own[name].is_floating_point() == weights[name].is_floating_point()
        if own[name].shape != weights[name].shape or not same_kind:
            raise UserError(f"{path}: {name!r} is {found}, but its config.json asks for {expected}")
    if sum(tensor.numel() for tensor in own.values()) > sum(tensor.numel() for tensor in weights.values()):
        raise UserError(f"{path} lacks {min(own.keys() - weights.keys(), default='weights')!r} of its config.json")
