"""Pre-trained dual encoders, loaded from a folder in Hugging Face format and fitted to the input size."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedModel, SiglipModel

from model.architectures import ARCHITECTURES
from utils.errors import UserError


class BackboneOutput(NamedTuple):
    """pooled ``(B, D)``, tokens ``(B, L, D)`` in the space of pooled, mask ``(B, L)`` true on content.

    prefix: how many tokens of an image come before its patches.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    prefix: int = 0


class GridEmbeddings(nn.Module):
    """Patch embeddings whose position table fits a grid of `height` x `width` patches, square or not.

    Takes over the modules of a transformers vision embedding under the same names. The position table is
    interpolated once, bicubic; a [CLS] position is kept apart.
    """

    def __init__(self, pretrained: Any, height: int, width: int) -> None:
        super().__init__()
        self.patch_embedding: nn.Module = pretrained.patch_embedding
        cls = getattr(pretrained, "class_embedding", None)
        self.class_embedding: nn.Parameter | None = cls
        table: Tensor = pretrained.position_embedding.weight.detach()
        prefix, grid = table.split([0 if cls is None else 1, len(table) - (0 if cls is None else 1)])
        side = round(len(grid) ** 0.5)
        resized = torch.cat([prefix, _resize_grid(grid, (side, side), (height, width))])
        self.position_embedding = nn.Embedding.from_pretrained(resized, freeze=False)
        self.grid = (height, width)

    def forward(self, pixel_values: Tensor, **_: Any) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            patches = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        return patches + self.position_embedding.weight


def _resize_grid(table: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Returns positions ``(new[0]*new[1], D)`` from those of a `grid`, ``(grid[0]*grid[1], D)``; bicubic."""
    if grid == new:
        return table.clone()
    image = table.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)


class Backbone(nn.Module):
    """A vision tower and a text tower behind one interface.

    Subclasses say how a family pools and projects; `model` is the transformers model, or a peft model
    around it.
    """

    model_class: type[PreTrainedModel]
    max_logit_scale: float | None = None

    def __init__(self, model: PreTrainedModel, mean: list[float], std: list[float], *, sigmoid: bool) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        self.model: PreTrainedModel | PeftModel = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def hub_model(self) -> Any:
        """The transformers model, with adapters in place where there are any."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def embed_dim(self) -> int:
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return len(self.token_table)

    @property
    def token_table(self) -> nn.Parameter:
        """The embeddings of the vocabulary ``(V, D)``."""
        return self.hub_model.text_model.embeddings.token_embedding.weight

    @torch.no_grad()
    def grow_token_table(self, rows: int) -> None:
        """Gives the token table `rows` rows if it has fewer; new ones are the mean of the old ones."""
        old, missing = self.token_table, rows - self.vocab_size
        if missing > 0:
            # Not resize_token_embeddings: a CLIPModel does not know where its token table is.
            table = torch.cat([old, old.mean(dim=0).expand(missing, -1)])
            embeddings = self.hub_model.text_model.embeddings
            embeddings.token_embedding = nn.Embedding.from_pretrained(table, freeze=not old.requires_grad)
            self.hub_model.config.text_config.vocab_size = rows

    def normalise(self, pixels: Tensor) -> Tensor:
        """Returns float pixels ``(B, 3, H, W)`` as the tower was pre-trained on, from uint8 ones."""
        return (pixels.float() / 255 - self.mean) / self.std  # type: ignore[operator]

    def image(self, pixels: Tensor) -> BackboneOutput:
        """Encodes uint8 pixels ``(B, 3, H, W)``."""
        raise NotImplementedError

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        """Encodes token ids ``(B, L)``; `mask` ``(B, L)`` is handed on, the tower never sees it."""
        raise NotImplementedError

    def temperature(self) -> tuple[Tensor, Tensor]:
        """(logit_scale, logit_bias): scalars with gradient, the scale exponentiated."""
        scale = self.hub_model.logit_scale.squeeze().exp()
        if self.max_logit_scale is not None:
            scale = scale.clamp(max=self.max_logit_scale)
        bias = getattr(self.hub_model, "logit_bias", None)
        return scale, torch.zeros_like(scale) if bias is None else bias.squeeze()


class SiglipBackbone(Backbone):
    """SigLIP and mSigLIP: attention pooling for images, last position for texts, no [CLS].

    Texts are padded to the full length and the padding is attended to, as in pre-training.
    """

    model_class = SiglipModel

    @property
    def embed_dim(self) -> int:
        return self.hub_model.config.vision_config.hidden_size

    def image(self, pixels: Tensor) -> BackboneOutput:
        output = self.hub_model.vision_model(self.normalise(pixels))
        tokens = output.last_hidden_state
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return BackboneOutput(output.pooler_output, tokens, mask)

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        tower = self.hub_model.text_model
        output = tower(ids)
        return BackboneOutput(output.pooler_output, tower.head(output.last_hidden_state), mask)


class ClipBackbone(Backbone):
    """CLIP ViT: [CLS] pooling for images, end-of-text pooling for texts, linear projections after both.

    The image mask is false on [CLS]. The scale is kept at or below 100 (Radford et al., ICML 2021).
    """

    model_class = CLIPModel
    max_logit_scale = 100.0

    @property
    def embed_dim(self) -> int:
        return self.hub_model.config.projection_dim

    def image(self, pixels: Tensor) -> BackboneOutput:
        tower = self.hub_model.vision_model
        hidden = tower(self.normalise(pixels)).last_hidden_state
        tokens = self.hub_model.visual_projection(tower.post_layernorm(hidden))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask[:, 0] = False
        return BackboneOutput(tokens[:, 0], tokens, mask, prefix=1)

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        output = self.hub_model.text_model(ids)
        project = self.hub_model.text_projection
        return BackboneOutput(project(output.pooler_output), project(output.last_hidden_state), mask)


@torch.no_grad()
def save_backbone(backbone: Backbone, folder: str | Path) -> None:
    """Writes config and weights in Hugging Face format; positions go back to the square grid of the config."""
    model = backbone.hub_model
    weights = model.state_dict()
    embeddings: GridEmbeddings = model.vision_model.embeddings
    name = next(name for name in weights if name.endswith("vision_model.embeddings.position_embedding.weight"))
    prefix = 0 if embeddings.class_embedding is None else 1
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    square = _resize_grid(weights[name][prefix:], embeddings.grid, (side, side))
    weights[name] = torch.cat([weights[name][:prefix], square])
    model.save_pretrained(folder, state_dict=weights)


FAMILIES: dict[str, type[Backbone]] = {"siglip": SiglipBackbone, "clip": ClipBackbone}


def load_backbone(
    name: str,
    family: str,
    folder: str | Path,
    img_size: tuple[int, int],
    *,
    sigmoid: bool,
    max_length: int,
    freeze_vision: bool = False,
    freeze_text: bool = False,
    freeze_token_table: bool = False,
    gradient_checkpointing: bool = False,
    weights: bool = True,
) -> Backbone:
    """Returns the backbone of `folder` in fp32, fitted to images of `img_size`.

    Args:
        name: what `prepare_checkpoints.py` calls it.
        family: a key of `FAMILIES`; has to be the `model_type` of the folder's config.json.
        img_size: (height, width) in pixels, multiples of the patch size.
        sigmoid: whether it was pre-trained with the pairwise sigmoid loss; losses that can do both follow.
        max_length: tokens of a caption, at most the text positions of the checkpoint.
        freeze_vision, freeze_text, freeze_token_table: exclude a tower, or the token table, from training.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        weights: whether the pre-trained ones are loaded; without, those that a training from scratch starts from,
            and no folder is needed for a backbone of `ARCHITECTURES`.

    Raises:
        UserError: no folder, another architecture, captions longer than its positions, or a size that the
            patches do not divide.
    """
    folder = Path(folder)
    known = not weights and not folder.exists() and name in ARCHITECTURES
    config = ARCHITECTURES[name] if known else _read_json(folder, "config.json", name)
    found = config.get("model_type")
    if found != family:
        raise UserError(
            f"backbone {name!r}: {folder}/config.json describes a {found!r} model, expected {family!r}; "
            f"choose another backbone= or fill the folder again with 'uv run prepare_checkpoints.py {name}'"
        )
    backbone_class = FAMILIES[family]
    positions = config.get("text_config", {}).get("max_position_embeddings", max_length)
    if max_length > positions:
        raise UserError(f"backbone.max_length: {max_length} asked for, but {name!r} has {positions} text positions")
    patch = config.get("vision_config", {}).get("patch_size", 16)
    if img_size[0] % patch or img_size[1] % patch:
        raise UserError(
            f"img_size_str: {img_size[0]}x{img_size[1]} is not divisible by the {patch}-pixel patches of "
            f"backbone {name!r}; both height and width have to be multiples of {patch}"
        )
    if weights:
        model = _pretrained(backbone_class.model_class, folder, name)
    else:
        model = backbone_class.model_class(backbone_class.model_class.config_class.from_dict(config))
    tower: Any = model.vision_model
    tower.embeddings = GridEmbeddings(tower.embeddings, img_size[0] // patch, img_size[1] // patch)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tower.requires_grad_(not freeze_vision)
    text: Any = model.text_model
    text.requires_grad_(not freeze_text)
    if freeze_token_table:
        text.embeddings.token_embedding.requires_grad_(False)
    model.train()
    if known:
        return backbone_class(model, [0.5] * 3, [0.5] * 3, sigmoid=sigmoid)
    pixels = _read_json(folder, "preprocessor_config.json", name)
    return backbone_class(model, pixels["image_mean"], pixels["image_std"], sigmoid=sigmoid)


def _pretrained(model_class: type[PreTrainedModel], folder: Path, name: str) -> PreTrainedModel:
    try:
        return model_class.from_pretrained(folder, dtype=torch.float32)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"backbone {name!r}: the weights in {folder} cannot be loaded ({_first_line(error)}); "
            f"fill the folder again with 'uv run prepare_checkpoints.py {name}'"
        ) from error


def _read_json(folder: Path, file: str, name: str) -> dict[str, Any]:
    path = folder / file
    if not path.is_file():
        raise UserError(f"backbone {name!r}: {path} does not exist; run 'uv run prepare_checkpoints.py {name}'")
    return json.loads(path.read_text(encoding="utf-8"))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
