"""An image tower and a BERT that were pre-trained separately, with a new linear projection after each."""

import shutil
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    ResNetModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from model.backbones.base import Backbone, BackboneOutput
from model.backbones.position_embeddings import Positions, native_positions, resize_positions
from utils.errors import library_errors

RESNET_STRIDE: Final = 16  # height and width in pixels of a cell of its last feature map


class BertBackbone(Backbone):
    """A ResNet or a ViT with a BERT. Features are projected to one width and max-pooled over patches or words.

    Source: Park et al. (ECCV 2024), section 3.1. Decisions, which the paper leaves open: both modalities get a linear
    projection, because features of a ResNet and of BERT differ in width. The last stage of a ResNet has stride 1 (Luo
    et al., CVPRW 2019), so that a token covers 16x16 pixels with either image tower. A frozen tower stays in
    evaluation mode: no dropout, and batch statistics do not change. There is no pooled position, so the attention of
    `record_attention` is that of [CLS].
    """

    model_class = VisionTextDualEncoderModel
    token_embedding = "word_embeddings"
    max_logit_scale = 100.0
    fixed_length = False  # words do not attend to padding

    @property
    def embed_dim(self) -> int:
        return self.hub_model.config.projection_dim

    @torch.no_grad()
    def fit_to_grid(self, native: Positions | None) -> None:
        vision = self.hub_model.vision_model
        for tower in (vision, self.hub_model.text_model):
            tower.pooler.requires_grad_(False)  # not used
        if self._has_positions:
            own = vision.embeddings.position_embeddings[0], self._square_grid
            table, grid = native_positions(native, own)
            vision.embeddings.position_embeddings = nn.Parameter(self._resized(table, grid, self.grid))
            patch = vision.config.patch_size
            for module in (vision.embeddings, vision.embeddings.patch_embeddings):
                module.image_size = (patch * self.grid[0], patch * self.grid[1])  # transformers checks it
        else:
            for module in vision.encoder.stages[-1].modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)

    @torch.no_grad()
    def hub_weights(self) -> dict[str, Tensor]:
        weights = self.hub_model.state_dict()
        if self._has_positions:
            name = "vision_model.embeddings.position_embeddings"
            weights[name] = self._resized(weights[name][0], self.grid, self._square_grid)
        return weights

    def positions(self) -> Tensor | None:
        return self.hub_model.vision_model.embeddings.position_embeddings[0].detach() if self._has_positions else None

    def _resized(self, table: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
        return resize_positions(table, grid, new, self._pos_interpolation)[None]

    @property
    def _has_positions(self) -> bool:
        return hasattr(self.hub_model.vision_model, "embeddings")

    @property
    def _square_grid(self) -> tuple[int, int]:
        vision = self.hub_model.config.vision_config
        side = vision.image_size // vision.patch_size
        return side, side

    def image(self, pixels: Tensor) -> BackboneOutput:
        with self.recording("image"):
            hidden = self.hub_model.vision_model(self.normalize(pixels)).last_hidden_state
        if hidden.ndim == 4:  # a feature map (B, C, H, W)
            hidden = hidden.flatten(2).transpose(1, 2)
        tokens = self.hub_model.visual_projection(hidden)
        patches = self.grid[0] * self.grid[1]
        mask = torch.arange(tokens.shape[1], device=tokens.device) >= tokens.shape[1] - patches
        mask = mask.expand(tokens.shape[:2])
        return BackboneOutput(tokens[:, -patches:].amax(dim=1), tokens, mask, self.image_attention(mask))

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        # (B, 1, 1, L): with a mask (B, L), transformers would wait for the device to know if anything is masked.
        with self.recording("text"):
            hidden = self.hub_model.text_model(ids, attention_mask=mask[:, None, None]).last_hidden_state
        tokens = self.hub_model.text_projection(hidden)
        pooled = tokens.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)
        return BackboneOutput(pooled, tokens, mask, self.text_attention(mask, 0, mask, starts=True))


def join_towers(vision: PreTrainedModel, text: PreTrainedModel, width: int) -> VisionTextDualEncoderModel:
    """Returns a model of both towers with new projections to features of `width`."""
    if isinstance(vision, ResNetModel):
        vision.config.hidden_size = list(vision.config.hidden_sizes or ())[-1]  # the dual encoder reads this key
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision.config, text.config, projection_dim=width)
    return VisionTextDualEncoderModel(config, vision, text)


def join_folders(vision: Path, text: Path, folder: Path, *, width: int, seed: int = 0) -> Path:
    """Writes a dual encoder to `folder`: the image tower of folder `vision`, BERT and tokenizer of `text`.

    Args:
        width: width of the features after the projections.
        seed: seed of the projections.
    """
    local = {"local_files_only": True, "trust_remote_code": False}
    with (
        library_errors(f"{vision} and {text} cannot be joined", "expected an image tower and a BERT, with tokenizer"),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(seed)
        image_tower, bert = (AutoModel.from_pretrained(path, use_safetensors=True, **local) for path in (vision, text))
        join_towers(image_tower, bert, width).save_pretrained(folder)
        AutoTokenizer.from_pretrained(text, **local).save_pretrained(folder)
    shutil.copyfile(vision / "preprocessor_config.json", folder / "preprocessor_config.json")
    return folder
