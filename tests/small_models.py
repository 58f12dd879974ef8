"""Small models in Hugging Face format."""

import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    MetaClip2Config,
    MetaClip2Model,
    MetaClip2TextConfig,
    MetaClip2VisionConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTModel,
)

TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
FAMILIES = ("siglip", "clip", "metaclip_2")


def small_model(family: str) -> PreTrainedModel:
    """A seeded SigLIP (width 32), CLIP or MetaCLIP 2 (embedding 24): 32x32 images, 12 text positions, 40 tokens."""
    torch.manual_seed(0)
    if family == "siglip":
        text = SiglipTextConfig(**TEXT, projection_size=32, pad_token_id=1, bos_token_id=2, eos_token_id=3)
        return SiglipModel(
            SiglipConfig(text_config=text.to_dict(), vision_config=SiglipVisionConfig(**VISION).to_dict())
        )
    text = CLIPTextConfig(**TEXT, pad_token_id=1, bos_token_id=2, eos_token_id=3)
    vision = CLIPVisionConfig(**VISION)
    if family == "metaclip_2":
        text, vision = MetaClip2TextConfig.from_dict(text.to_dict()), MetaClip2VisionConfig(**VISION)
        return MetaClip2Model(
            MetaClip2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
        )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24))


def small_towers(vision: str) -> tuple[PreTrainedModel, BertModel]:
    """A seeded ResNet (feature maps of 48 channels) or ViT (width 32, 32x32 images), and a BERT (12 positions)."""
    torch.manual_seed(0)
    text = BertModel(BertConfig(**TEXT, pad_token_id=1))
    if vision == "vit":
        return ViTModel(ViTConfig(**VISION)), text
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic")
    return ResNetModel(config), text


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder
