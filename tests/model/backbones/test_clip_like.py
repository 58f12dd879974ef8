"""Families of transformers that only their folder names: each gives what the library's own model gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.nn import functional as F
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPTextConfig,
    ChineseCLIPVisionConfig,
    MetaClip2Config,
    MetaClip2Model,
    MetaClip2TextConfig,
    MetaClip2VisionConfig,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2VisionConfig,
)

from model.backbones import Backbone, load_backbone
from model.backbones.lora import add_lora
from model.heads import GlobalHead
from model.tbps import TBPS
from tests.model.backbones.test_lora import TARGET
from tests.small_models import TEXT, VISION, save_model
from utils.checkpoints.backbone_facts import read_facts
from utils.checkpoints.folder import Architecture, check_folder
from utils.config.resolvers import register_resolvers
from utils.errors import UserError

CONFIG = str(Path(__file__).parents[3] / "config")
PAD, END = 1, 2
IDS = torch.tensor([[0, 5, 6, END] + [PAD] * 8, [0, 9, END] + [PAD] * 9])
MASK = IDS != PAD
ROLES: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": END}
BERT: dict[str, Any] = {**TEXT, **ROLES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CLASSES: dict[str, tuple[Any, Any, Any, Any, dict[str, Any]]] = {
    "metaclip_2": (MetaClip2Model, MetaClip2Config, MetaClip2TextConfig, MetaClip2VisionConfig, {**TEXT, **ROLES}),
    "chinese_clip": (ChineseCLIPModel, ChineseCLIPConfig, ChineseCLIPTextConfig, ChineseCLIPVisionConfig, BERT),
    "altclip": (
        *(AltCLIPModel, AltCLIPConfig, AltCLIPTextConfig, AltCLIPVisionConfig),
        {**BERT, "max_position_embeddings": 14, "project_dim": 20},
    ),
}


def small(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model, config, text, vision, options = CLASSES[family]
    built: PreTrainedModel = model(
        config(text_config=text(**options).to_dict(), vision_config=vision(**VISION).to_dict(), projection_dim=24)
    )
    for parameter in built.parameters():  # zeros and ones would hide mistakes
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return built


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_model(small(family), tmp_path_factory.mktemp(family)) for family in CLASSES}


def by_folder(folder: Path, size: str = "32x32", **options: Any) -> Backbone:
    """What `backbone=folder backbone.folder=FOLDER` loads."""
    register_resolvers()
    given = {"backbone": "folder", "backbone.folder": folder, "img_size_str": size, "backbone.max_length": 12}
    overrides = [f"{key}={value}" for key, value in (given | {f"backbone.{k}": v for k, v in options.items()}).items()]
    with initialize_config_dir(CONFIG, version_base="1.3"):
        built: Backbone = instantiate(compose("demo", overrides=overrides).backbone)
    return built


@pytest.mark.parametrize("family", CLASSES)
def test_embeddings_are_those_of_the_library(folders: dict[str, Path], family: str) -> None:
    backbone = by_folder(folders[family]).eval()
    library = CLASSES[family][0].from_pretrained(folders[family]).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = library(input_ids=IDS, attention_mask=MASK.long(), pixel_values=backbone.normalize(pixels))
        encoder = TBPS(backbone, GlobalHead(backbone.embed_dim))
        image, text = encoder.encode_image(pixels), encoder.encode_text(IDS, MASK)
    torch.testing.assert_close(image.embedding, F.normalize(output.image_embeds, dim=-1))
    torch.testing.assert_close(text.embedding, F.normalize(output.text_embeds, dim=-1))
    assert torch.equal(text.mask, MASK)
    assert text.tokens.shape == (2, 12, 24)
    torch.testing.assert_close(text.tokens[[0, 1], [3, 2] if family == "metaclip_2" else [0, 0]], text.pooled)


@pytest.mark.parametrize("family", CLASSES)
def test_attention_to_words_is_the_last_layers_own(folders: dict[str, Path], family: str) -> None:
    backbone = by_folder(folders[family]).eval()
    hub = backbone.hub_model
    hub.set_attn_implementation("eager")
    options = {} if family == "metaclip_2" else {"attention_mask": MASK.long()}
    with torch.no_grad():
        matrix = hub.text_model(IDS, output_attentions=True, **options).attentions[-1].mean(dim=1)
        hub.set_attn_implementation("sdpa")
        backbone.record_attention()
        attention = backbone.text(IDS, MASK).attention
    position = torch.tensor([3, 2] if family == "metaclip_2" else [0, 0])
    words = torch.zeros_like(MASK)
    words[0, 1:3] = words[1, 1] = True
    torch.testing.assert_close(attention[words], matrix[torch.arange(2), position][words])
    assert (attention[~words] == -1).all()


@pytest.mark.parametrize("family", CLASSES)
def test_tall_images_lora_and_more_tokens(folders: dict[str, Path], family: str) -> None:
    backbone = by_folder(folders[family], "64x16", gradient_checkpointing=True)
    assert backbone.grid == (8, 2)
    backbone.resize_token_embeddings(43)
    assert len(backbone.token_table) == 43
    add_lora(backbone, r=4, alpha=8, dropout=0.0, target=TARGET)
    pixels = torch.randint(0, 256, (2, 3, 64, 16), dtype=torch.uint8)
    (backbone.image(pixels).pooled.sum() + backbone.text(IDS, MASK).pooled.square().sum()).backward()
    for tower, modules in (("vision_model", 4), ("text_model", 4)):
        found = [p.grad for n, p in backbone.named_parameters() if tower in n and "lora_B" in n]
        assert len(found) == 2 * modules
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found)


def test_facts_of_folders(folders: dict[str, Path], hub_folders: dict[str, Path]) -> None:
    assert read_facts(folders["metaclip_2"])[1:] == ("metaclip_2", 12, False)
    assert read_facts(folders["chinese_clip"])[1:] == ("chinese_clip", 52, False)
    assert read_facts(hub_folders["siglip"])[1:] == ("siglip", 12, True)
    assert by_folder(hub_folders["siglip"]).sigmoid
    with pytest.raises(
        UserError, match=r"backbone.folder: nowhere is no folder; name one of transformers or open_clip, or"
    ):
        read_facts(Path("nowhere"))


def test_naflex_is_refused_by_name(tmp_path: Path) -> None:
    text, vision = (
        Siglip2TextConfig(**TEXT),
        Siglip2VisionConfig(**{k: v for k, v in VISION.items() if k != "image_size"}),
    )
    model = Siglip2Model(Siglip2Config(text_config=text.to_dict(), vision_config=vision.to_dict()))
    save_model(model, tmp_path)
    sentence = r"NaFlex checkpoint of SigLIP 2 \(Siglip2Model\).* such as google/siglip2-base-patch16-256"
    with pytest.raises(UserError, match=sentence):
        read_facts(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_backbone("siglip2", "siglip", tmp_path, (32, 32), sigmoid=True, max_length=12)
    with pytest.raises(UserError, match=sentence):
        check_folder(tmp_path, Architecture("siglip", None, None, None, None))


def test_other_models_are_refused_by_name(hub_folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((hub_folders["clip"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "clipseg"}))
    with pytest.raises(Exception, match=r"backbone.family=clipseg is unknown; expected siglip or clip or"):
        by_folder(tmp_path)
