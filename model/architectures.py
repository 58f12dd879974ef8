"""The published hyper-parameters of the backbones, as their config.json has them: sizes without a download."""

from collections.abc import Mapping
from typing import Any, Final

from model.tiny import TEXT_POSITIONS, TOWER, VISION, VOCAB_SIZE, WIDTH

_BASE: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def _siglip(vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "siglip",
        "text_config": {**_BASE, "vocab_size": vocab_size, "max_position_embeddings": 64},
        "vision_config": {**_BASE, "image_size": 256, "patch_size": 16},
    }


# Name in config/backbone/ -> config; keys that are left out have the default of transformers.
ARCHITECTURES: Final[Mapping[str, dict[str, Any]]] = {
    "m_siglip": _siglip(vocab_size=250_000),
    "siglip": _siglip(vocab_size=32_000),
    "clip": {
        "model_type": "clip",
        "projection_dim": 512,
        "text_config": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "vocab_size": 49_408,
            "max_position_embeddings": 77,
        },
        "vision_config": {**_BASE, "image_size": 224, "patch_size": 16},
    },
    "tiny_siglip": {
        "model_type": "siglip",
        "text_config": {**TOWER, "vocab_size": VOCAB_SIZE, "max_position_embeddings": TEXT_POSITIONS["siglip"]},
        "vision_config": VISION,
    },
    "tiny_clip": {
        "model_type": "clip",
        "projection_dim": WIDTH,
        "text_config": {**TOWER, "vocab_size": VOCAB_SIZE, "max_position_embeddings": TEXT_POSITIONS["clip"]},
        "vision_config": VISION,
    },
}
