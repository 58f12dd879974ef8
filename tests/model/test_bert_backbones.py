"""ResNet or ViT joined with a BERT: features, grid, freezing, saving, joining folders, LoRA's refusal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerFast, ResNetModel, VisionTextDualEncoderModel, ViTModel

from model.backbones import Backbone, load_backbone, save_backbone
from model.backbones.bert import BertBackbone, join_folders
from model.backbones.lora import add_lora
from model.heads import GlobalHead, PartHead
from model.tbps import TBPS
from tests.small_models import save_model, small_towers
from utils.errors import UserError

CONFIG = Path(__file__).parents[2] / "config"
TOWERS = ("resnet", "vit")
PATCH = {"resnet": 16, "vit": 8}
IDS = torch.tensor([[2, 5, 6, 3, 1, 1, 1, 1, 1, 1, 1, 1], [2, 9, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
MASK = IDS != 1


def load(folder: Path, img_size: tuple[int, int] = (32, 32), **options: Any) -> Backbone:
    return load_backbone("small", "vision-text-dual-encoder", folder, img_size, sigmoid=False, max_length=12, **options)


def pixels(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(256, (3, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("vision", TOWERS)
def test_features_are_the_projected_maxima_of_the_librarys(hub_folders: dict[str, Path], vision: str) -> None:
    backbone = load(hub_folders[vision]).eval()
    library = VisionTextDualEncoderModel.from_pretrained(hub_folders[vision]).eval()
    if vision == "resnet":
        for conv in library.vision_model.encoder.stages[-1].modules():
            if isinstance(conv, torch.nn.Conv2d):
                conv.stride = (1, 1)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    with torch.no_grad():
        hidden = library.vision_model((pixels() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)).last_hidden_state
        hidden = hidden.flatten(2).mT if vision == "resnet" else hidden
        words = library.text_projection(library.text_model(IDS, attention_mask=MASK).last_hidden_state)
        image, text = backbone.image(pixels()), backbone.text(IDS, MASK)
    torch.testing.assert_close(image.tokens, library.visual_projection(hidden))
    torch.testing.assert_close(text.tokens, words)
    for pair, length in enumerate((4, 3)):
        torch.testing.assert_close(text.pooled[pair], words[pair, :length].max(dim=0).values)
    patches = image.tokens[:, 1:] if vision == "vit" else image.tokens
    torch.testing.assert_close(image.pooled, patches.max(dim=1).values)
    assert image.pooled.shape == (3, backbone.embed_dim) == (3, 24)


@pytest.mark.parametrize("vision", TOWERS)
@pytest.mark.parametrize("img_size", [(64, 32), (96, 32)])
def test_a_token_stands_for_a_cell_of_the_grid(
    hub_folders: dict[str, Path], vision: str, img_size: tuple[int, int]
) -> None:
    backbone = load(hub_folders[vision], img_size).eval()
    assert backbone.grid == (img_size[0] // PATCH[vision], img_size[1] // PATCH[vision])
    image = backbone.image(pixels(*img_size))
    assert image.mask.sum(dim=1).tolist() == [backbone.grid[0] * backbone.grid[1]] * 3
    assert image.mask[:, -1].all()
    encoder = TBPS(backbone, PartHead(backbone.embed_dim, backbone.grid, fine=2))
    assert encoder.encode_image(pixels(*img_size)).embedding.shape == (3, encoder.embed_dim)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_positions_of_a_vit_are_interpolated_and_cls_is_kept(
    hub_folders: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    native = load(hub_folders["vit"]).hub_model.vision_model.embeddings.position_embeddings[0]
    tall = load(hub_folders["vit"], (64, 16), pos_interpolation=mode)
    table = tall.hub_model.vision_model.embeddings.position_embeddings
    assert table.requires_grad
    expected = F.interpolate(native[1:].T.reshape(1, 32, 4, 4), size=(8, 2), mode=mode, align_corners=False)
    torch.testing.assert_close(table[0], torch.cat([native[:1], expected.reshape(32, 16).T]))
    save_backbone(tall, tmp_path / "saved")
    again = VisionTextDualEncoderModel.from_pretrained(tmp_path / "saved")
    assert again.vision_model.embeddings.position_embeddings.shape == (1, 17, 32)


@pytest.mark.parametrize("vision", TOWERS)
def test_saving_gives_back_what_was_loaded(hub_folders: dict[str, Path], tmp_path: Path, vision: str) -> None:
    backbone = load(hub_folders[vision])
    save_backbone(backbone, tmp_path / "saved")
    again = VisionTextDualEncoderModel.from_pretrained(tmp_path / "saved").state_dict()
    for name, weight in VisionTextDualEncoderModel.from_pretrained(hub_folders[vision]).state_dict().items():
        assert torch.equal(again[name], weight), name


def test_a_frozen_tower_stays_in_evaluation_mode_and_gets_no_gradient(hub_folders: dict[str, Path]) -> None:
    backbone = load(hub_folders["resnet"], freeze_text=True)
    encoder = TBPS(backbone, GlobalHead(backbone.embed_dim)).train()
    assert not backbone.hub_model.text_model.training
    assert backbone.hub_model.vision_model.training
    first, second = (encoder.encode_text(IDS, MASK).embedding for _ in range(2))
    assert torch.equal(first, second), "BERT's dropout is off"
    (first + encoder.encode_image(pixels()[:2]).embedding).square().sum().backward()
    trained = {n.split(".")[0] for n, p in backbone.hub_model.named_parameters() if p.grad is not None}
    assert trained == {"vision_model", "visual_projection", "text_projection"}

    statistics = load(hub_folders["resnet"], freeze_vision=True).train()
    before = statistics.hub_model.vision_model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    statistics.image(pixels())
    for name, value in statistics.hub_model.vision_model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("vision", TOWERS)
def test_every_trainable_weight_but_the_temperature_gets_gradient(hub_folders: dict[str, Path], vision: str) -> None:
    backbone = load(hub_folders[vision])
    (backbone.image(pixels()).tokens.square().sum() + backbone.text(IDS, MASK).tokens.square().sum()).backward()
    missing = {name for name, p in backbone.hub_model.named_parameters() if p.requires_grad and p.grad is None}
    assert missing == {"logit_scale"}


def test_the_token_table_grows_and_can_be_frozen(hub_folders: dict[str, Path]) -> None:
    backbone = load(hub_folders["resnet"], freeze_token_table=True).eval()
    before = backbone.text(IDS, MASK).pooled
    backbone.resize_token_embeddings(43)
    assert backbone.vocab_size == 43
    assert not backbone.token_table.requires_grad
    assert torch.equal(backbone.text(IDS, MASK).pooled, before)


def test_errors_are_sentences(hub_folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"img_size_str: 30x32 is not divisible by the 16-pixel patches"):
        load(hub_folders["resnet"], (30, 32))
    with pytest.raises(UserError, match=r"backbone.gradient_checkpointing: 'small' cannot recompute activations"):
        load(hub_folders["resnet"], gradient_checkpointing=True)
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        target = compose("lora/default").lora.target
    for vision in TOWERS:
        with pytest.raises(UserError, match=r"lora.target: no module of the image tower is named like"):
            add_lora(load(hub_folders[vision]), r=4, alpha=8, dropout=0.0, target=target)


@pytest.mark.parametrize("vision", TOWERS)
def test_two_folders_are_joined_into_one_that_loads(tmp_path: Path, vision: str) -> None:
    towers = small_towers(vision)
    sources = [save_model(tower, tmp_path / name) for name, tower in zip(("vision", "text"), towers, strict=True)]
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "red": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(sources[1])
    folder = join_folders(sources[0], sources[1], tmp_path / "joined", width=768)
    backbone = load(folder)
    assert isinstance(backbone, BertBackbone)
    assert backbone.embed_dim == 768
    assert AutoTokenizer.from_pretrained(folder)("red cap")["input_ids"] == [2, 0]
    tower = {"resnet": ResNetModel, "vit": ViTModel}[vision].from_pretrained(sources[0])
    joined = VisionTextDualEncoderModel.from_pretrained(folder).vision_model.state_dict()
    assert all(torch.equal(joined[name], weight) for name, weight in tower.state_dict().items())
    again = join_folders(sources[0], sources[1], tmp_path / "again", width=768)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
