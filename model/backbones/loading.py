"""Loading and saving of backbones in Hugging Face format."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from model.backbones.base import Backbone
from model.backbones.bert import RESNET_STRIDE, BertBackbone
from model.backbones.clip_like import AltClipBackbone, ChineseClipBackbone, MetaClip2Backbone
from model.backbones.folder import (
    OtherModelError,
    make_config,
    pretrained,
    read_config,
    read_pixel_statistics,
    untrained,
)
from model.backbones.open_clip import load_open_clip
from model.backbones.position_embeddings import MODES, read_positions
from model.backbones.vision_language import ClipBackbone, SiglipBackbone
from utils.checkpoints.backbone_facts import OPEN_CLIP
from utils.errors import UserError, check_choice

FAMILIES: dict[str, type[Backbone]] = {
    "siglip": SiglipBackbone,
    "clip": ClipBackbone,
    "metaclip_2": MetaClip2Backbone,
    "chinese_clip": ChineseClipBackbone,
    "altclip": AltClipBackbone,
    "vision-text-dual-encoder": BertBackbone,
}

CONFIG: Final = "config.json"
MOST_PATCHES: Final = 65_536
_NO_PIXELS: Final = ([0.5] * 3, [0.5] * 3)


def load_backbone(
    name: str,
    family: str,
    folder: str | Path,
    img_size: tuple[int, int],
    *,
    sigmoid: bool,
    max_length: int,
    model: str | None = None,
    pos_interpolation: str = "bicubic",
    freeze_vision: bool = False,
    freeze_text: bool = False,
    freeze_token_table: bool = False,
    gradient_checkpointing: bool = False,
    description: Mapping[str, Any] | None = None,
    weights: bool = True,
) -> Backbone:
    """Returns the backbone in `folder` in fp32, fitted to images of `img_size`.

    Args:
        name: name of the backbone in `config/backbone/`, for error messages.
        family: a key of `FAMILIES`, which has to equal `model_type` in the folder's config.json, or open_clip.
        img_size: (height, width) in pixels, multiples of the patch size (of 16 for a ResNet with BERT).
        sigmoid: whether it was pre-trained with the pairwise sigmoid loss. N-ITC then uses sigmoid, not softmax.
        max_length: tokens of a caption, at most the number of text positions of the checkpoint.
        model: architecture of open_clip, if there is no folder that says it.
        pos_interpolation: one of `position_embeddings.MODES`, to resize positions to the grid of `img_size`.
        freeze_vision, freeze_text, freeze_token_table: whether to exclude a tower, or the token table, from training.
        gradient_checkpointing: whether to recompute activations in the backward pass instead of keeping them.
        description: `description` in the backbone's YAML.
        weights: whether to load the pre-trained weights. If false, weights are initialised as for a training from
            scratch, and if there is no folder, `description["architecture"]` or `model` defines the model.

    Raises:
        UserError: the folder is absent, the family unknown, the architecture another one, `max_length` too large, the
            image size no multiple of the patch size, or the towers cannot recompute activations.
    """
    check_choice("backbone.pos_interpolation", pos_interpolation, MODES)
    check_choice("backbone.family", family, (*FAMILIES, OPEN_CLIP))
    options: Any = {"sigmoid": sigmoid, "max_length": max_length, "pos_interpolation": pos_interpolation}
    options |= {"weights": weights}
    if family == OPEN_CLIP:
        backbone: Backbone = load_open_clip(Path(folder), model, (img_size[0], img_size[1]), **options)
    else:
        architecture = {} if description is None else description["architecture"]
        backbone = _load(name, family, Path(folder), img_size, architecture, **options)
    loaded = backbone.hub_model
    if gradient_checkpointing:
        if not loaded.supports_gradient_checkpointing:
            raise UserError(f"backbone.gradient_checkpointing: {name!r} cannot recompute activations; leave it false")
        loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for tower, frozen in ((loaded.vision_model, freeze_vision), (loaded.text_model, freeze_text)):
        if frozen:
            tower.requires_grad_(False)
    if freeze_token_table:
        backbone.token_table.requires_grad_(False)
    return backbone.train()


def _load(
    name: str,
    family: str,
    folder: Path,
    img_size: tuple[int, int],
    architecture: Mapping[str, Any],
    *,
    sigmoid: bool,
    max_length: int,
    pos_interpolation: str,
    weights: bool,
) -> Backbone:
    """Returns a backbone of one of `FAMILIES`. The arguments are those of `load_backbone`."""
    backbone_class = FAMILIES[family]
    model_class = backbone_class.model_class
    with _advice(name):
        if architecture and not weights and not folder.is_dir():
            config, (mean, std) = make_config({"model_type": family, **architecture}, model_class, name), _NO_PIXELS
        else:
            config = read_config(folder / CONFIG, model_class)
            mean, std = read_pixel_statistics(folder / "preprocessor_config.json")
        native = read_positions(folder)
    positions = config.text_config.max_position_embeddings
    if max_length > positions:
        raise UserError(f"backbone.max_length: {max_length} given, but {name!r} has {positions} text positions")
    patch = getattr(config.vision_config, "patch_size", RESNET_STRIDE)
    if img_size[0] % patch or img_size[1] % patch:
        raise UserError(
            f"img_size_str: {img_size[0]}x{img_size[1]} is not divisible by the {patch}-pixel patches of "
            f"backbone {name!r}; both height and width have to be multiples of {patch}"
        )
    grid = (img_size[0] // patch, img_size[1] // patch)
    if not 1 <= grid[0] * grid[1] <= MOST_PATCHES:
        raise UserError(
            f"img_size_str: {img_size[0]}x{img_size[1]} is {grid[0]} x {grid[1]} patches; expected at most "
            f"{MOST_PATCHES:,}"
        )
    with _advice(name):
        model = pretrained(model_class, config, folder) if weights else untrained(model_class, config, folder)
        return backbone_class(
            model, mean, std, grid, sigmoid=sigmoid, pos_interpolation=pos_interpolation, native=native
        )


@contextmanager
def _advice(name: str) -> Iterator[None]:
    """Adds the backbone's name and advice to the message of a `UserError` about its folder."""
    try:
        yield
    except UserError as error:
        advice = f"run 'uv run prepare_checkpoints.py {name}' to fill the folder, or choose another backbone="
        if isinstance(error, OtherModelError):  # such as the hub/ of a run on another backbone
            advice = "choose the backbone= that wrote the folder, or backbone=folder, which finds out what it holds"
        raise UserError(f"backbone {name!r}: {error}; {advice}") from error


def save_backbone(backbone: Backbone, folder: str | Path) -> None:
    """Writes config and weights in Hugging Face format. Positions are resized to the square grid of the config."""
    backbone.hub_model.save_pretrained(folder, state_dict=backbone.hub_weights())
