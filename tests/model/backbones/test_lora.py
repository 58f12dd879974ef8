from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import PeftModel
from transformers import CLIPModel, SiglipModel

from model.backbones import Backbone, load_backbone
from model.backbones.lora import add_lora, merge_lora, save_adapters
from utils.errors import UserError

FAMILIES = ("siglip", "clip")
TARGET = (
    r".*(vision_model|text_model)\.(.+\.)?(encoder\.layers?\.\d+\."
    r"(self_attn\.(q|k|v|out)_proj|attention\.(self\.(query|key|value)|output\.dense))"
    r"|resblocks\.\d+\.attn|blocks\.\d+\.attn\.(qkv|[qkv]_proj|proj))"
)
IDS = torch.tensor([[2, 5, 6, 3, 1, 1, 1, 1, 1, 1, 1, 1], [2, 9, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
CONFIG = Path(__file__).parents[3] / "config"


def adapted(folders: dict[str, Path], family: str, *, checkpointing: bool = False) -> Backbone:
    backbone = load_backbone(
        "small",
        family,
        folders[family],
        (32, 32),
        sigmoid=True,
        max_length=12,
        gradient_checkpointing=checkpointing,
    )
    torch.manual_seed(3)
    add_lora(backbone, r=4, alpha=8, dropout=0.0, target=TARGET)
    return backbone


def embeddings(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).remainder(251).to(torch.uint8)
    return backbone.image(images).pooled, backbone.text(IDS, IDS != 1).pooled


def randomize_adapters(backbone: Backbone) -> None:
    torch.manual_seed(4)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)


def test_the_target_of_the_config_is_the_one_tested() -> None:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        assert compose("lora/default").lora.target == TARGET


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_sit_on_the_attention_of_both_towers_only(hub_folders: dict[str, Path], family: str) -> None:
    backbone = adapted(hub_folders, family)
    trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}
    adapters = {name for name in trainable if "lora_" in name}
    assert len(adapters) == 2 * 2 * 4 * 2  # towers x layers x projections x (A, B)
    assert not any("head" in name for name in adapters)
    rest = {name.rsplit(".", 1)[-1] for name in trainable - adapters}
    assert rest == ({"logit_scale", "logit_bias"} if family == "siglip" else {"logit_scale"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_towers_get_gradient(hub_folders: dict[str, Path], family: str, checkpointing: bool) -> None:
    backbone = adapted(hub_folders, family, checkpointing=checkpointing).train()
    randomize_adapters(backbone)
    image, text = embeddings(backbone)
    (image.square().sum() + text.square().sum()).backward()
    for tower in ("vision_model", "text_model"):
        gradients = [p.grad for n, p in backbone.named_parameters() if tower in n and "lora_" in n]
        assert gradients
        assert all(g is not None and g.abs().sum() > 0 for g in gradients), tower


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_saved_adapters_give_the_same_embeddings(
    hub_folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    backbone = adapted(hub_folders, family).eval()
    randomize_adapters(backbone)
    with torch.no_grad():
        image, text = embeddings(backbone)
        save_adapters(backbone, tmp_path / "adapter")
        merge_lora(backbone)
        assert not any("lora_" in name for name, _ in backbone.named_parameters())
        for ours, expected in zip(embeddings(backbone), (image, text), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)

        library = {"siglip": SiglipModel, "clip": CLIPModel}[family].from_pretrained(hub_folders[family])
        loaded = PeftModel.from_pretrained(library, str(tmp_path / "adapter")).merge_and_unload().eval()
        output = loaded.get_text_features(input_ids=IDS)
        torch.testing.assert_close(getattr(output, "pooler_output", output), text, atol=1e-5, rtol=1e-4)


def test_a_target_that_matches_nothing_is_one_sentence(hub_folders: dict[str, Path]) -> None:
    backbone = load_backbone("small", "clip", hub_folders["clip"], (32, 32), sigmoid=False, max_length=12)
    with pytest.raises(UserError, match=r"lora.target: no module of the backbone is named like 'nothing'"):
        add_lora(backbone, r=4, alpha=8, dropout=0.0, target="nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 10**9}, "lora: r=1000000000, dropout=0.0; expected a rank of 1 to 4096"),
        ({"dropout": 7.0}, "lora: r=2, dropout=7.0"),
        ({"target": "(q_proj"}, r"lora.target: '\(q_proj' is no regular expression \(missing \)"),
    ],
)
def test_adapters_that_cannot_be_are_one_sentence(
    hub_folders: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    backbone = load_backbone("small", "clip", hub_folders["clip"], (32, 32), sigmoid=False, max_length=12)
    with pytest.raises(UserError, match=message):
        add_lora(backbone, **{"r": 2, "alpha": 2, "dropout": 0.0, "target": ".*q_proj", **options})
