"""The hyper-parameters of the backbones, as their config.json has them: sizes without a download."""

from collections.abc import Mapping
from typing import Any, Final

_BASE: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_TINY: Final = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_VIT: Final = {**_BASE, "image_size": 224, "patch_size": 16}
_TINY_VIT: Final = {**_TINY, "image_size": 128, "patch_size": 16}


def _siglip(vocab_size: int, text: Mapping[str, Any] = _BASE, vision: Mapping[str, Any] = _VIT) -> dict[str, Any]:
    return {
        "model_type": "siglip",
        "text_config": {**text, "vocab_size": vocab_size, "max_position_embeddings": 64},
        "vision_config": {**vision},
    }


def _clip(vocab_size: int, text: Mapping[str, Any], vision: Mapping[str, Any], projection_dim: int) -> dict[str, Any]:
    return {
        "model_type": "clip",
        "projection_dim": projection_dim,
        "text_config": {**text, "vocab_size": vocab_size, "max_position_embeddings": 77},
        "vision_config": {**vision},
    }


def _bert(vision: Mapping[str, Any], text: Mapping[str, Any], projection_dim: int) -> dict[str, Any]:
    return {
        "model_type": "vision-text-dual-encoder",
        "projection_dim": projection_dim,
        "text_config": {"model_type": "bert", **text},
        "vision_config": {**vision},
    }


_CLIP_TEXT: Final = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
_BERT: Final = {**_BASE, "vocab_size": 30_522, "max_position_embeddings": 512}
_RESNET: Final = {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}
_TINY_RESNET: Final = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
_NO_DROPOUT: Final = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# Name in config/backbone/ -> config; what is left out is as transformers has it by default.
ARCHITECTURES: Final[Mapping[str, dict[str, Any]]] = {
    "m_siglip": _siglip(250_000, vision={**_VIT, "image_size": 256}),
    "siglip": _siglip(32_000, vision={**_VIT, "image_size": 256}),
    "clip": _clip(49_408, _CLIP_TEXT, _VIT, 512),
    "vit_bert": _bert({"model_type": "vit", **_VIT}, _BERT, 768),
    "resnet50_bert": _bert({"model_type": "resnet", "hidden_size": 2048, **_RESNET}, _BERT, 768),
    "tiny_siglip": _siglip(2000, _TINY, _TINY_VIT),
    "tiny_clip": _clip(2000, _TINY, _TINY_VIT, 128),
    "tiny_clip_100steps": _clip(2000, _TINY, _TINY_VIT, 128),
    "tiny_resnet_bert": _bert(
        {"model_type": "resnet", "hidden_size": 128, "layer_type": "basic", **_TINY_RESNET},
        {**_TINY, **_NO_DROPOUT, "vocab_size": 2000, "max_position_embeddings": 64},
        128,
    ),
}
