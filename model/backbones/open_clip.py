"""Dual encoders of the library open_clip: any of its architectures with a text transformer of its own."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from model.backbones.base import Backbone, BackboneOutput, Tower
from model.backbones.pooled_attention import PooledAttention
from model.backbones.position_embeddings import Positions, resize_positions
from utils.checkpoints.backbone_facts import open_clip_config, open_clip_library
from utils.checkpoints.layouts import OPEN_CLIP
from utils.checkpoints.tensor_files import UnreadableError, check_finite, read_safetensors
from utils.errors import UserError, library_errors

STATISTICS: Final = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # of OpenAI's CLIP
RESNET_STRIDE: Final = 32  # pixels of a cell of the last feature map of the library's own ResNet
LARGEST: Final = 10_000_000  # largest number in a config


class ImageTower(nn.Module):
    """The image tower of open_clip: its own ViT or ResNet, or a model of timm with a projection.

    Args:
        visual: `visual` of a model of open_clip. Its positions are resized to `size` in place.
        size: (height, width) of images in pixels.
        mode: mode of interpolation of positions.
    """

    def __init__(self, visual: Any, size: tuple[int, int], mode: str) -> None:
        super().__init__()
        self.visual = visual
        own = visual.image_size
        self.native: tuple[int, int] = (own, own) if isinstance(own, int) else tuple(own)
        for module in visual.modules():  # otherwise EVA passes by the adapters on its qkv, which would stay untrained
            if getattr(module, "qkv_bias_separate", None) is False:
                module.qkv_bias_separate = True
        trunk = self.trunk
        self.has_patches = hasattr(trunk, "num_prefix_tokens") or getattr(visual, "attn_pool", ...) is None
        self.grid = (0, 0)
        if self.has_patches:
            self.grid = self._fit_patches(size, mode)
        elif hasattr(visual, "attnpool"):
            place, cells = visual.attnpool, tuple(side // RESNET_STRIDE for side in size)
            place.positional_embedding = _resized(place.positional_embedding, cells, mode)
        elif size != self.native:
            visual.set_input_size(size)

    @property
    def trunk(self) -> Any:
        """The model of timm, or the library's own tower."""
        return getattr(self.visual, "trunk", self.visual)

    def _fit_patches(self, size: tuple[int, int], mode: str) -> tuple[int, int]:
        """Resizes positions to images of `size`. Returns (rows, columns) of patches."""
        trunk = self.trunk
        rows = (trunk if trunk is self.visual else trunk.patch_embed).grid_size[0]
        patch = self.native[0] // rows
        if size[0] % patch or size[1] % patch:
            raise UserError(f"img_size_str: {size[0]}x{size[1]} is not divisible by its {patch}-pixel patches")
        grid = (size[0] // patch, size[1] // patch)
        name = "positional_embedding" if trunk is self.visual else "pos_embed"
        table = getattr(trunk, name, None)
        if trunk is not self.visual:
            if size != self.native:
                self.visual.set_input_size(size)
        else:
            trunk.image_size, trunk.grid_size = size, grid
        if table is not None:
            setattr(trunk, name, _resized(table, grid, mode))
        return grid

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns pooled features ``(B, D)`` and tokens ``(B, L, D)`` of normalised pixels; L is 0 without patches."""
        if not self.has_patches:
            pooled = self.visual(pixels)
            return pooled, pooled.new_empty(len(pooled), 0, pooled.shape[1])
        found = self.visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
        )
        prefix = found.get("image_intermediates_prefix", [])
        return found["image_features"], self._project(torch.cat([*prefix, *found["image_intermediates"]], dim=1))

    def _project(self, tokens: Tensor) -> Tensor:
        """Returns tokens behind the layers that follow the pooling."""
        if self.trunk is self.visual:
            return tokens if self.visual.proj is None else tokens @ self.visual.proj
        for name in ("fc_norm", "head_drop", "head"):
            tokens = getattr(self.trunk, name, nn.Identity())(tokens)
        return self.visual.head(tokens)


class TextTower(nn.Module):
    """The text transformer of open_clip, for captions of at most `length` tokens."""

    def __init__(self, text: Any, length: int) -> None:
        super().__init__()
        self.embeddings = text  # has `token_embedding`
        if text.attn_mask is not None:
            text.attn_mask = text.attn_mask[:length, :length]
        if text.pool_type == "argmax":  # the end token is the largest id, but for an added mask token
            text.pool_type, text.eos_id = "eos", text.vocab_size - 1

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns pooled features ``(B, D)`` and tokens ``(B, L, D)`` of ids ``(B, L)``."""
        found = self.embeddings.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
        (tokens,) = found["text_intermediates"]
        projection = self.embeddings.text_projection
        if isinstance(projection, nn.Linear):
            tokens = projection(tokens)
        elif projection is not None:
            tokens = tokens @ projection
        return found["text_features"], tokens


class OpenClipModel(nn.Module):
    """Both towers and the temperature, under the names that the models of transformers have."""

    def __init__(self, library: Any, size: tuple[int, int], length: int, mode: str) -> None:
        super().__init__()
        self.vision_model = ImageTower(library.visual, size, mode)
        self.text_model = TextTower(library.text, length)
        self.logit_scale: nn.Parameter = library.logit_scale
        self.logit_bias: nn.Parameter | None = library.logit_bias
        self.config = PreTrainedConfig()
        self.config.text_config = PreTrainedConfig()

    @property
    def supports_gradient_checkpointing(self) -> bool:
        return not hasattr(self.vision_model.visual, "attnpool")

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """Makes both towers recompute activations."""
        with library_errors("backbone.gradient_checkpointing: the image tower cannot recompute", "leave it false"):
            self.vision_model.trunk.set_grad_checkpointing(True)
        self.text_model.embeddings.set_grad_checkpointing(True)


class OpenClipBackbone(Backbone):
    """A model of open_clip. Pooling and projections are the library's; the towers are fitted to the image size before.

    Tokens go through the layers that follow the pooling. An image tower without patches (a ConvNet) gives no tokens,
    and its grid is (0, 0).

    Args:
        embed_dim: width of the features.
        pad: id with which captions are padded. None: as the tokenizer pads.
    """

    has_hub_format = False

    def __init__(self, *args: Any, embed_dim: int, pad: int | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._embed_dim = embed_dim
        self._pad = pad

    @property
    def max_logit_scale(self) -> float | None:  # type: ignore[override]
        return None if self.sigmoid else 100.0

    @property
    def embed_dim(self) -> int:
        return self._embed_dim

    def fit_to_grid(self, native: Positions | None) -> None:
        pass

    def attention_recorders(self) -> dict[Tower, PooledAttention]:
        raise UserError("head=token_selection selects tokens by attention, which the towers of open_clip do not tell")

    def image(self, pixels: Tensor) -> BackboneOutput:
        pooled, tokens = self.hub_model.vision_model(self.normalize(pixels))
        length, patches = tokens.shape[1], self.grid[0] * self.grid[1]
        mask = torch.arange(length, device=tokens.device) >= length - patches
        return BackboneOutput(pooled, tokens, mask.expand(tokens.shape[:2]))

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        pooled, tokens = self.hub_model.text_model(ids if self._pad is None else ids.masked_fill(~mask, self._pad))
        return BackboneOutput(pooled, tokens, mask)


def load_open_clip(
    folder: Path,
    model: str | None,
    img_size: tuple[int, int],
    *,
    sigmoid: bool,
    max_length: int,
    pos_interpolation: str,
    weights: bool,
) -> OpenClipBackbone:
    """Returns the model of open_clip in `folder`. The arguments are those of `load_backbone`.

    Raises:
        UserError: the library or the folder is absent or damaged, or the model does not encode such images or texts.
    """
    open_clip_library()
    name = model or folder.name
    options = open_clip_config(folder, model)
    text = options["model_cfg"]["text_cfg"]
    library = build(options["model_cfg"], name)
    if max_length > library.text.context_length:
        raise UserError(
            f"backbone.max_length: {max_length} given, but {name!r} has {library.text.context_length} text positions"
        )
    if weights:
        load_weights(library, folder / OPEN_CLIP.weights)
    preprocess = options["preprocess_cfg"]
    mean, std = (
        _three(preprocess.get(key, default), key, folder)
        for key, default in zip(("mean", "std"), STATISTICS, strict=True)
    )
    size = f"{img_size[0]}x{img_size[1]}"
    with library_errors(f"open_clip's {name} does not encode images of {size}", "choose another img_size_str or model"):
        fitted = OpenClipModel(library, img_size, max_length, pos_interpolation)
        backbone = OpenClipBackbone(
            fitted,
            mean,
            std,
            fitted.vision_model.grid,
            sigmoid=sigmoid,
            pos_interpolation=pos_interpolation,
            embed_dim=options["model_cfg"]["embed_dim"],
            pad=None if text.get("hf_tokenizer_name") else text.get("pad_id", 0),
        ).eval()
        with torch.no_grad():  # the library finds out only now whether it can encode such images
            backbone.image(torch.zeros(1, 3, *img_size, dtype=torch.uint8, device=backbone.token_table.device))
    return backbone


def build(options: Mapping[str, Any], name: str) -> Any:
    """Returns open_clip's `CustomTextCLIP` of a `model_cfg`, with initial weights.

    Raises:
        UserError: the model is no plain dual encoder, its text tower comes from the hub, or its sizes do not fit.
    """
    vision, text = options["vision_cfg"], options["text_cfg"]
    if "multimodal_cfg" in options:
        raise UserError(f"open_clip's {name} is a CoCa, which also writes captions: choose a plain dual encoder")
    if text.get("hf_model_name"):
        raise UserError(
            f"open_clip's {name} takes its text tower {text['hf_model_name']} from the hub: choose one with "
            "a text tower of its own, or backbone=folder"
        )
    if ":" in str(vision.get("timm_model_name")):
        raise UserError(f"open_clip's {name} names the image tower {vision['timm_model_name']}, expected one of timm")
    for section in (options, vision, text):
        for key, value in section.items():
            if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
                raise UserError(f"open_clip's {name}: {key} is {value!r}, expected a number that a model can have")

    from open_clip import CustomTextCLIP

    own = {key: value for key, value in options.items() if key != "custom_text"}
    with library_errors(f"open_clip's {name} cannot be built", "expected the model_cfg of an architecture"):
        return CustomTextCLIP(**{**own, "vision_cfg": {**vision, "timm_model_pretrained": False}})


def load_weights(library: Any, path: Path) -> None:
    """Loads the weights of a model, which have to be complete and finite, from a safetensors file.

    Raises:
        UserError: the file is absent, damaged, or holds other weights.
    """
    from open_clip.model import convert_to_custom_text_state_dict

    try:
        state = read_safetensors(path)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    check_finite(state, str(path))
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    own = library.state_dict()
    for name in own.keys() | state.keys():
        found, expected = (tuple(t[name].shape) if name in t else "absent" for t in (state, own))
        if found != expected and not (name.startswith("logit_") and state[name].numel() == own[name].numel()):
            raise UserError(f"{path}: {name!r} is {found}, but the architecture has it {expected}")
    library.load_state_dict({name: tensor.reshape(own[name].shape) for name, tensor in state.items()})


def _resized(table: nn.Parameter, grid: Any, mode: str) -> nn.Parameter:
    """Returns positions ``(1, N, D)`` or ``(N, D)`` for `grid`; those of `table` are of a square."""
    rows = table.detach().flatten(0, -2)
    side = isqrt(len(rows))  # without prefix, or with one that is shorter than a row
    resized = resize_positions(rows, (side, side), grid, mode)
    return nn.Parameter(resized.reshape(*table.shape[:-2], *resized.shape), requires_grad=table.requires_grad)


def _three(value: Any, key: str, folder: Path) -> list[float]:
    numbers = [*value] if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(n) in (int, float) and abs(n) <= LARGEST for n in numbers):
        raise UserError(f"{folder}: {key} is {value!r}, expected three numbers, one for each channel")
    if key == "std" and min(numbers) <= 0:
        raise UserError(f"{folder}: {key} is {value!r}, expected numbers above 0")
    return [float(n) for n in numbers]
