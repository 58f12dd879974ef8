"""Shared fixtures: small backbones in Hugging Face format, a small dataset with tiny backbones beside it."""

# ruff: noqa: E402

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # figures of the tests are those of a CPU; a GPU has benchmarks/gpu.py
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time; before torch counts the cores


def share_bytecode() -> None:
    """Gives all processes of the tests one folder for bytecode, if Python is told to write none.

    Without it, each command that a test starts compiles libraries for 8 s.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode = False
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        folder = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


share_bytecode()

import pytest
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

from data.synthetic import SyntheticSpec, generate
from model.backbones.bert import join_towers
from prepare_checkpoints import prepare
from utils.report.run_report import RunReport

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


@pytest.fixture(scope="session")
def hub_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family, or image tower of a BERT -> folder as `prepare_checkpoints.py` leaves it, without a tokenizer."""
    models = {family: small_model(family) for family in FAMILIES}
    models |= {vision: join_towers(*small_towers(vision), width=24) for vision in ("resnet", "vit")}
    folders = {name: save_model(model, tmp_path_factory.mktemp(name)) for name, model in models.items()}
    return {**folders, "vision-text-dual-encoder": folders["resnet"]}


@pytest.fixture(scope="module")
def fit_to_fork() -> Iterator[None]:
    """One thread, because those of a pool are not there in a fork; no pictures, which take as long as the training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReport, "draw", lambda *_: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dataset_root_dir` with 12 + 4 + 4 drawn persons, two pictures of each, and the tiny backbones."""
    folder = tmp_path_factory.mktemp("root")
    spec = SyntheticSpec(train=12, val=4, test=4, pretrain=12, images_per_identity=2, height=64, width=32)
    generate(folder, spec, workers=1)
    for name in ("tiny_siglip", "tiny_clip", "tiny_resnet_bert"):
        prepare(name, folder, steps=1)
    return folder
