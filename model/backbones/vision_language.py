"""Dual encoders that were pre-trained on images with texts: SigLIP, mSigLIP and CLIP."""

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedModel, SiglipModel

from model.backbones.base import Backbone, BackboneOutput, Tower, last_of
from model.backbones.pooled_attention import PooledAttention, PoolingHeadAttention, last_layer
from model.backbones.position_embeddings import Positions, native_positions, resize_positions


class GridEmbeddings(nn.Module):
    """Patch embeddings with a position table for `height` x `width` patches, square or not.

    The modules of `pretrained` are reused under the same names. The position table is interpolated once, without the
    position of [CLS].

    Args:
        pretrained: vision embeddings of transformers, with a square grid.
        mode: mode of interpolation.
        native: positions and their grid, to use instead of those of `pretrained`. None: those of `pretrained`.
    """

    def __init__(self, pretrained: Any, height: int, width: int, mode: str, native: Positions | None) -> None:
        super().__init__()
        self.patch_embedding: nn.Module = pretrained.patch_embedding
        cls = getattr(pretrained, "class_embedding", None)
        self.class_embedding: nn.Parameter | None = cls
        table = pretrained.position_embedding.weight.detach()
        side = isqrt(len(table))
        resized = resize_positions(*native_positions(native, (table, (side, side))), (height, width), mode)
        self.position_embedding = nn.Embedding.from_pretrained(resized, freeze=False)

    def forward(self, pixel_values: Tensor, **_: Any) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            patches = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        return patches + self.position_embedding.weight


class VisionLanguageBackbone(Backbone):
    """The common part of SigLIP and CLIP. Their text towers do not use the mask; it is only passed on."""

    def fit_to_grid(self, native: Positions | None) -> None:
        tower = self.hub_model.vision_model
        tower.embeddings = GridEmbeddings(tower.embeddings, *self.grid, self._pos_interpolation, native)

    def positions(self) -> Tensor:
        return self.hub_model.vision_model.embeddings.position_embedding.weight.detach()

    @torch.no_grad()
    def hub_weights(self) -> dict[str, Tensor]:
        weights = self.hub_model.state_dict()
        name = next(name for name in weights if name.endswith("vision_model.embeddings.position_embedding.weight"))
        vision = self.hub_model.config.vision_config
        side = vision.image_size // vision.patch_size
        return {**weights, name: resize_positions(weights[name], self.grid, (side, side), self._pos_interpolation)}


class SiglipBackbone(VisionLanguageBackbone):
    """SigLIP and mSigLIP: attention pooling for images, last position for texts, no [CLS].

    Texts are padded to the full length, and tokens attend to the padding, as in pre-training.
    """

    model_class = SiglipModel

    @property
    def embed_dim(self) -> int:
        return self.hub_model.config.vision_config.hidden_size

    def attention_recorders(self) -> dict[Tower, PooledAttention]:
        pooling = self.hub_model.vision_model.head.attention
        return {"image": PoolingHeadAttention(pooling), "text": last_layer(self.hub_model.text_model)}

    def image(self, pixels: Tensor) -> BackboneOutput:
        with self.recording("image"):
            output = self.hub_model.vision_model(self.normalize(pixels))
        tokens = output.last_hidden_state
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return BackboneOutput(output.pooler_output, tokens, mask, self.image_attention(mask))

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        tower = self.hub_model.text_model
        with self.recording("text"):
            output = tower(ids)
        attention = self.text_attention(mask, -1, None, starts=False)
        return BackboneOutput(output.pooler_output, tower.head(output.last_hidden_state), mask, attention)


class ClipBackbone(VisionLanguageBackbone):
    """CLIP ViT: [CLS] pooling for images, end-of-text pooling for texts, linear projections after both.

    The image mask is false on [CLS]. Texts are padded with id 0, as in OpenAI's code; the tokenizer of transformers
    would pad with the end token. Words do not attend to padding, but MLM and EFA may read it. The scale is at most 100
    (Radford et al., ICML 2021).
    """

    model_class: type[PreTrainedModel] = CLIPModel
    max_logit_scale = 100.0
    fixed_length = False  # a word attends to the words before it, and padding comes last

    @property
    def embed_dim(self) -> int:
        return self.hub_model.config.projection_dim

    def image(self, pixels: Tensor) -> BackboneOutput:
        tower = self.hub_model.vision_model
        with self.recording("image"):
            hidden = tower(self.normalize(pixels)).last_hidden_state
        tokens = self.hub_model.visual_projection(tower.post_layernorm(hidden))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask[:, 0] = False
        return BackboneOutput(tokens[:, 0], tokens, mask, self.image_attention(mask))

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        with self.recording("text"):
            output = self.hub_model.text_model(self.padded(ids, mask))
        project = self.hub_model.text_projection
        attention = self.text_attention(mask, last_of(mask), mask, starts=True)
        return BackboneOutput(project(output.pooler_output), project(output.last_hidden_state), mask, attention)

    def padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns ids ``(B, L)`` with the padding of the pre-training."""
        return ids.masked_fill(~mask, 0)
