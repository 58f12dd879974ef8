import json
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, SiglipModel

from model.backbones import Backbone, load_backbone
from model.heads import GlobalHead
from model.tbps import TBPS
from utils.errors import UserError

FAMILIES = ("siglip", "clip")
IDS = torch.tensor([[2, 5, 6, 3, 1, 1, 1, 1, 1, 1, 1, 1], [2, 9, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
MASK = IDS != 1


def load(folders: dict[str, Path], family: str, img_size: tuple[int, int] = (32, 32), **options: Any) -> Backbone:
    return load_backbone(
        "small", family, folders[family], img_size, sigmoid=family == "siglip", max_length=12, **options
    ).eval()


def pixels(height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_size_equals_the_library_model(hub_folders: dict[str, Path], family: str) -> None:
    backbone = load(hub_folders, family)
    library = {"siglip": SiglipModel, "clip": CLIPModel}[family].from_pretrained(hub_folders[family]).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    images = pixels()
    normalized = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        output = library(input_ids=IDS, pixel_values=normalized)
        encoder = TBPS(backbone, GlobalHead(backbone.embed_dim))
        image, text = encoder.encode_image(images), encoder.encode_text(IDS, MASK)
    torch.testing.assert_close(image.embedding, output.image_embeds)
    torch.testing.assert_close(text.embedding, output.text_embeds)
    assert image.embedding.norm(dim=-1).allclose(torch.ones(3))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_interpolated_once_and_cls_is_kept(hub_folders: dict[str, Path], family: str, mode: str) -> None:
    native = load(hub_folders, family).hub_model.vision_model.embeddings.position_embedding.weight
    tall = load(hub_folders, family, (64, 16), pos_interpolation=mode).hub_model.vision_model.embeddings
    tall = tall.position_embedding.weight
    cls = 1 if family == "clip" else 0
    assert len(tall) == 8 * 2 + cls
    torch.testing.assert_close(tall[:cls], native[:cls])
    square = native[cls:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(square, size=(8, 2), mode=mode, align_corners=False)
    torch.testing.assert_close(tall[cls:], expected.reshape(32, 16).T)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_live_in_the_space_of_pooled_and_the_mask_marks_content(
    hub_folders: dict[str, Path], family: str
) -> None:
    backbone = load(hub_folders, family, (64, 16))
    with torch.no_grad():
        image, text = backbone.image(pixels(64, 16)), backbone.text(IDS, MASK)
    for output in (image, text):
        assert output.tokens.shape[-1] == output.pooled.shape[-1] == backbone.embed_dim
    assert image.mask.sum(1).tolist() == [16, 16, 16]
    assert torch.equal(text.mask, MASK)
    assert image.mask[:, -16:].all()
    if family == "clip":
        torch.testing.assert_close(image.tokens[:, 0], image.pooled)
        torch.testing.assert_close(text.tokens[[0, 1], [3, 2]], text.pooled)
    else:
        torch.testing.assert_close(text.tokens[:, -1], text.pooled)


@pytest.mark.parametrize("family", FAMILIES)
def test_temperature_has_gradient(hub_folders: dict[str, Path], family: str) -> None:
    backbone = load(hub_folders, family)
    scale, bias = backbone.logit_scale_and_bias()
    assert scale.item() == pytest.approx(backbone.hub_model.logit_scale.exp().item())
    (scale + bias).backward()
    assert backbone.hub_model.logit_scale.grad.item() == pytest.approx(scale.item())
    assert bias.item() == 0
    if family == "siglip":
        assert backbone.hub_model.logit_bias.grad.item() == 1


def test_clip_scale_stops_at_100(hub_folders: dict[str, Path]) -> None:
    backbone = load(hub_folders, "clip")
    torch.nn.init.constant_(backbone.hub_model.logit_scale, 6.0)
    assert backbone.logit_scale_and_bias()[0].item() == 100


def test_freezing(hub_folders: dict[str, Path]) -> None:
    backbone = load(hub_folders, "siglip", freeze_vision=True, freeze_token_table=True)
    trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert not any("vision_model" in name or "token_embedding" in name for name in trainable)
    assert any("text_model.encoder" in name for name in trainable)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(hub_folders: dict[str, Path], family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = load(hub_folders, family, gradient_checkpointing=checkpointing).train()
        (backbone.image(pixels()).pooled.square().sum() + backbone.text(IDS, MASK).pooled.square().sum()).backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_compiled_towers_give_the_same_embeddings_and_gradients_under_the_same_names(
    hub_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the code that inductor would generate: benchmarks/gpu.py compiles for real."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    plain, compiled = load(hub_folders, "clip"), load(hub_folders, "clip")
    compiled.compile_towers()
    for backbone in (plain, compiled):
        image, text = backbone.image(pixels()), backbone.text(IDS, MASK)
        (image.tokens.square().mean() + text.tokens.square().mean()).backward()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    for (name, expected), actual in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_errors_are_sentences(hub_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"describes a 'clip' model, expected 'siglip'"):
        load_backbone("m_siglip", "siglip", hub_folders["clip"], (32, 32), sigmoid=True, max_length=12)
    with pytest.raises(UserError, match=r"img_size_str: 30x32 is not divisible by the 8-pixel patches"):
        load(hub_folders, "siglip", (30, 32))
    with pytest.raises(
        UserError, match=r"img_size_str: 800000x800000 is 100000 x 100000 patches; expected at most 65,536"
    ):
        load(hub_folders, "siglip", (800_000, 800_000))
    with pytest.raises(UserError, match=r"backbone.pos_interpolation=linear is unknown; expected bilinear or bicubic"):
        load(hub_folders, "siglip", pos_interpolation="linear")
    with pytest.raises(UserError, match=r"backbone.max_length: 77 given, but 'small' has 12 text positions"):
        load_backbone("small", "clip", hub_folders["clip"], (32, 32), sigmoid=False, max_length=77)
    with pytest.raises(UserError, match=r"does not exist; run 'uv run prepare_checkpoints.py clip'"):
        load_backbone("clip", "clip", tmp_path / "none", (32, 32), sigmoid=False, max_length=12)


@pytest.mark.parametrize("damage", ["truncated", "narrow"])
def test_damaged_weights_are_one_sentence(hub_folders: dict[str, Path], tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(hub_folders["clip"], tmp_path / "clip")
    if damage == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["hidden_size"] = 16
        (folder / "config.json").write_text(json.dumps(config))
    complaint = {
        "truncated": r"model.safetensors cannot be read: it is damaged .*; run 'uv run prepare_checkpoints.py clip'",
        "narrow": r"model.safetensors: 'vision_model[\w.]+' is \(.*, but its config.json asks for \(",
    }
    with pytest.raises(UserError, match=complaint[damage]):
        load_backbone("clip", "clip", folder, (32, 32), sigmoid=False, max_length=12)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_grown_token_table_keeps_its_rows_and_encodes_as_before(
    hub_folders: dict[str, Path], family: str, frozen: bool
) -> None:
    backbone = load(hub_folders, family, freeze_token_table=frozen)
    ids = torch.randint(4, 40, (2, 12))
    mask = torch.ones_like(ids, dtype=torch.bool)
    before, old = backbone.text(ids, mask).pooled, backbone.token_table.clone()
    backbone.resize_token_embeddings(43)
    assert backbone.vocab_size == 43
    assert backbone.token_table.requires_grad is not frozen
    assert torch.equal(backbone.token_table[:40], old)
    assert torch.equal(backbone.token_table[40:], old.mean(dim=0).expand(3, -1))
    assert torch.equal(backbone.text(ids, mask).pooled, before)
    backbone.resize_token_embeddings(41)
    assert backbone.vocab_size == 43
    assert backbone.hub_model.config.text_config.vocab_size == 43


def test_the_token_table_must_reach_the_largest_id(hub_folders: dict[str, Path]) -> None:
    backbone = load(hub_folders, FAMILIES[0])
    backbone.check_token_id(39)
    with pytest.raises(UserError, match="token id 40 is outside the backbone's table of 40 tokens"):
        backbone.check_token_id(40)
