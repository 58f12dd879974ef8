import json
from functools import partialmethod
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import PeftModel
from torch import nn
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
FORMS: Final[dict[str, dict[str, bool]]] = {
    "default": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
}


def adapted(folders: dict[str, Path], family: str, *, checkpointing: bool = False, **options: Any) -> Backbone:
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
    add_lora(backbone, **{"r": 4, "alpha": 8, "dropout": 0.0, "target": TARGET, **options})
    return backbone


def embeddings(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).remainder(251).to(torch.uint8)
    return backbone.image(images).pooled, backbone.text(IDS, IDS != 1).pooled


def randomize_adapters(backbone: Backbone) -> None:
    torch.manual_seed(4)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "lora_magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)


def test_the_target_of_the_config_is_the_one_tested() -> None:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        assert compose("lora/default").lora.target == TARGET


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_the_config_are_those_tested(form: str) -> None:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        found = compose(f"lora/{form}").lora
    assert found.name == {"default": "lora"}.get(form, form)
    assert {key: value for key, value in found.items() if key.startswith("use_")} == FORMS[form]
    assert (found.r, found.dropout, found.target) == (32, 0.05, TARGET)


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
@pytest.mark.parametrize("form", ["default", "dora"])
def test_both_towers_get_gradient(hub_folders: dict[str, Path], family: str, checkpointing: bool, form: str) -> None:
    backbone = adapted(hub_folders, family, checkpointing=checkpointing, dropout=0.1, **FORMS[form]).train()
    randomize_adapters(backbone)
    image, text = embeddings(backbone)
    (image.square().sum() + text.square().sum()).backward()
    for tower in ("vision_model", "text_model"):
        gradients = [p.grad for n, p in backbone.named_parameters() if tower in n and "lora_" in n]
        assert len(gradients) == 2 * 4 * (3 if form == "dora" else 2)  # layers x projections x tensors
        assert all(g is not None and g.abs().sum() > 0 for g in gradients), tower


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_merged_and_saved_adapters_give_the_same_embeddings(
    hub_folders: dict[str, Path], tmp_path: Path, family: str, form: str
) -> None:
    backbone = adapted(hub_folders, family, **FORMS[form]).eval()
    randomize_adapters(backbone)
    with torch.no_grad():
        image, text = embeddings(backbone)
        save_adapters(backbone, tmp_path / "adapter")
        saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (saved["use_dora"], saved["use_rslora"]) == (form == "dora", form == "rslora")
        merge_lora(backbone)
        assert not any("lora_" in name for name, _ in backbone.named_parameters())
        for ours, expected in zip(embeddings(backbone), (image, text), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)

        library = {"siglip": SiglipModel, "clip": CLIPModel}[family].from_pretrained(hub_folders[family])
        loaded = PeftModel.from_pretrained(library, str(tmp_path / "adapter")).merge_and_unload().eval()
        output = loaded.get_text_features(input_ids=IDS)
        torch.testing.assert_close(getattr(output, "pooler_output", output), text, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
def test_dora_starts_as_the_backbone_whatever_the_dropout(hub_folders: dict[str, Path], amp: bool) -> None:
    plain = load_backbone("small", "clip", hub_folders["clip"], (32, 32), sigmoid=True, max_length=12).train()
    backbone = adapted(hub_folders, "clip", use_dora=True, dropout=0.5).train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        for found, expected in zip(embeddings(backbone), embeddings(plain), strict=True):
            torch.testing.assert_close(found, expected)


def test_dora_is_the_direction_of_the_updated_weight_times_a_magnitude(hub_folders: dict[str, Path]) -> None:
    backbone = adapted(hub_folders, "clip", use_dora=True)
    randomize_adapters(backbone)
    layer = backbone.hub_model.vision_model.encoder.layers[1].self_attn.v_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))

    def by_hand() -> torch.Tensor:
        updated = layer.base_layer.weight + 8 / 4 * b @ a
        rows = [m * row / row.detach().square().sum().sqrt() for m, row in zip(magnitude, updated, strict=True)]
        return x @ torch.stack(rows).T + layer.base_layer.bias

    found, expected = layer(x), by_hand()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(output.square().sum(), (a, b, magnitude)) for output in (found, expected)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_rslora_divides_by_the_root_of_the_rank(hub_folders: dict[str, Path]) -> None:
    of_rank_4 = [
        adapted(hub_folders, "clip", alpha=12, use_rslora=True),  # 12 / sqrt(4)
        adapted(hub_folders, "clip", alpha=24),  # 24 / 4
    ]
    for backbone in of_rank_4:
        randomize_adapters(backbone.eval())
    for found, expected in zip(*map(embeddings, of_rank_4), strict=True):
        assert torch.equal(found, expected)


def test_compiled_towers_with_dora_give_the_same_gradients(
    hub_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the code that inductor would generate."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    plain, compiled = (adapted(hub_folders, "clip", use_dora=True).train() for _ in range(2))
    compiled.compile_towers()
    for backbone in (plain, compiled):
        randomize_adapters(backbone)
        image, text = embeddings(backbone)
        (image.square().sum() + text.square().sum()).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    for (name, expected), actual in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


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
        ({"target": ".*layer_norm1"}, r"lora.target: '\.\*layer_norm1' matches a module that peft cannot adapt"),
    ],
)
def test_adapters_that_cannot_be_are_one_sentence(
    hub_folders: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    backbone = load_backbone("small", "clip", hub_folders["clip"], (32, 32), sigmoid=False, max_length=12)
    with pytest.raises(UserError, match=message):
        add_lora(backbone, **{"r": 2, "alpha": 2, "dropout": 0.0, "target": ".*q_proj", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": ".*out_proj"},
            r"matches vision_model\.head\.attention\.out_proj, inside an nn\.Multihead",
        ),
        (
            {"target": ".*head.attention", "use_dora": True},
            r"peft cannot adapt \(Multihead.* not support DoRA",
        ),
    ],
)
def test_the_pooling_head_is_adapted_as_peft_can_or_refused(
    hub_folders: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        adapted(hub_folders, "siglip", **options)
