"""An exported folder, read by transformers alone with the code of its card, and by this project."""

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoTokenizer

from model.backbones import load_backbone
from model.backbones.bert import join_towers
from model.backbones.lora import add_lora, merge_lora
from model.export.hub import write_hub
from model.heads import GlobalHead, PartHead, TokenSelectionHead
from model.published.converted import load_head
from model.tbps import TBPS
from tests.small_models import save_model, small_towers
from utils.checkpoints.folder import read_interpolation
from utils.errors import UserError
from utils.report.model_card import model_card, usage

LENGTH = 12
CAPTION = "a man in a red jacket"
LORA = r".*text_model.*\.(q_proj|query)"


def source_of(name: str, small_root: Path, folder: Path) -> tuple[Path, str]:
    """A backbone's folder with a tokenizer, and its family."""
    if name in ("siglip", "clip"):
        return small_root / f"tiny_{name}_checkpoints", name
    bert = small_root / "tiny_resnet_bert_checkpoints"
    if name == "vit":
        vision, text = small_towers("vit")
        text.resize_token_embeddings(len(AutoTokenizer.from_pretrained(bert)))
        save_model(join_towers(vision, text, width=24), folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bert / file, folder)
        return folder, "vision-text-dual-encoder"
    return bert, "vision-text-dual-encoder"


def encoder_of(folder: Path, family: str, size: tuple[int, int], head: Any = GlobalHead) -> TBPS:
    backbone = load_backbone("small", family, folder, size, sigmoid=False, max_length=LENGTH)
    torch.manual_seed(1)
    return TBPS(backbone, head(backbone.embed_dim, backbone.grid)).eval().requires_grad_(False)


def write(encoder: TBPS, folder: Path, source: Path, family: str, size: tuple[int, int]) -> str:
    """Writes the folder and returns the code of its card."""
    has_positions = encoder.backbone.positions() is not None
    code = usage(family, max_length=LENGTH, grid=encoder.backbone.grid, has_positions=has_positions)
    card = model_card("m", code, command="c", head="global", found=None, record={}, source="s")
    options = {"size": size, "max_length": LENGTH, "interpolation": read_interpolation(source)}
    write_hub(encoder, folder, source=source, card=card, **options)
    [found] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    return found


@pytest.mark.parametrize("size", [(64, 32), (128, 128)])
@pytest.mark.parametrize("name", ["siglip", "clip", "vit", "resnet"])
def test_transformers_alone_gives_the_same_embeddings(
    name: str, size: tuple[int, int], small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, family = source_of(name, small_root, tmp_path / "source")
    encoder = encoder_of(source, family, size)
    code = write(encoder, tmp_path / "hub", source, family, size)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "hub" / "person.jpg", format="png")  # no losses
    monkeypatch.chdir(tmp_path / "hub")
    found: dict[str, Any] = {}
    exec(code, found)
    tokens = AutoTokenizer.from_pretrained(source)(
        [CAPTION], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    image = encoder.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None]).embedding
    caption = encoder.encode_text(tokens["input_ids"], tokens["attention_mask"].bool()).embedding
    torch.testing.assert_close(found["images"], image, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["captions"], caption, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "head", [partial(PartHead, coarse=2, fine=2), partial(TokenSelectionHead, text_length=LENGTH, width=16)]
)
def test_the_project_reads_back_the_grid_of_training_merged_adapters_and_the_head(
    head: Any, small_root: Path, tmp_path: Path
) -> None:
    source, family = source_of("clip", small_root, tmp_path)
    encoder = encoder_of(source, family, (64, 32), head)
    backbone = encoder.backbone
    with torch.no_grad():  # as after training at this size
        backbone.positions().normal_()  # type: ignore[union-attr]
    add_lora(backbone, r=2, alpha=4, dropout=0.0, target=LORA)
    for module in backbone.model.modules():
        if hasattr(module, "lora_B"):
            nn.init.normal_(module.lora_B["default"].weight, std=0.1)
    pixels = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    ids = torch.randint(3, 30, (2, LENGTH))
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [5]])
    encoder = TBPS(backbone, encoder.head).eval().requires_grad_(False)
    with_adapters = encoder.encode_text(ids, mask).embedding
    merge_lora(backbone)
    encoder = TBPS(backbone, encoder.head).eval().requires_grad_(False)
    write(encoder, tmp_path / "hub", source, family, (64, 32))
    again = encoder_of(tmp_path / "hub", family, (64, 32), head)
    if isinstance(again.head, PartHead):
        nn.init.zeros_(again.head.pos_embed)
    kind = "the part head" if isinstance(again.head, PartHead) else "token selection"
    assert load_head(again.head, tmp_path / "hub") == [f"{kind} starts from {tmp_path / 'hub' / 'heads.safetensors'}"]
    assert torch.equal(again.encode_image(pixels).embedding, encoder.encode_image(pixels).embedding)
    assert torch.equal(again.encode_text(ids, mask).embedding, encoder.encode_text(ids, mask).embedding)
    torch.testing.assert_close(again.encode_text(ids, mask).embedding, with_adapters, atol=1e-6, rtol=0)


def test_a_head_of_other_sizes_is_refused(small_root: Path, tmp_path: Path) -> None:
    source, family = source_of("siglip", small_root, tmp_path)
    encoder = encoder_of(source, family, (64, 32), partial(PartHead, coarse=2, fine=2))
    write(encoder, tmp_path / "hub", source, family, (64, 32))
    other = encoder_of(tmp_path / "hub", family, (64, 32), partial(PartHead, coarse=4, fine=2))
    with pytest.raises(UserError, match="of the part head is 2 x 128, expected 4 x 128; set the head"):
        load_head(other.head, tmp_path / "hub")
