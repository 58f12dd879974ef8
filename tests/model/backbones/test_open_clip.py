"""Small models of open_clip with random weights: what is read, what the library itself gives, and what is refused.

`benchmarks/open_clip_architectures.py` does the same for the architectures of the library.
"""

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.open_clip_architectures import compare, write_tokenizer
from data.text.tokens import Tokenize, load_tokenizer
from model.backbones import Backbone, load_backbone
from model.backbones.lora import add_lora, merge_lora
from model.heads import GlobalHead, PartHead
from model.objectives import EFA, MLM
from model.objectives.base import ModelSpec
from model.objectives.build import build_objective
from model.tbps import TBPS
from tests.model.backbones.test_lora import TARGET
from utils.checkpoints.backbone_facts import read_facts
from utils.checkpoints.folder import read_interpolation
from utils.errors import UserError

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
HUB_TEXT = {
    **TEXT,
    "vocab_size": 400,
    "hf_tokenizer_name": "timm/some",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
}
OWN_VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
MODELS: dict[str, dict[str, Any]] = {  # as in the configs of the library, with small towers
    "ViT": {"vision_cfg": OWN_VIT, "text_cfg": TEXT},
    "average": {"vision_cfg": {**OWN_VIT, "pool_type": "avg"}, "text_cfg": TEXT},
    "SigLIP2": {
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": HUB_TEXT,
        "init_logit_bias": -10,
        "embed_dim": 96,
    },
    "PE-Core": {
        "vision_cfg": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "image_size": 384},
        "text_cfg": TEXT,
    },
    "EVA02": {
        "vision_cfg": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "image_size": 224},
        "text_cfg": TEXT,
    },
    "ConvNeXt": {
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_proj": "linear", "timm_pool": "", "image_size": 160},
        "text_cfg": TEXT,
    },
    "MobileCLIP2": {
        "vision_cfg": {"timm_model_name": "fastvit_mci0", "timm_pool": "avg", "image_size": 256},
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
    "ResNet": {
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "image_size": 64},
        "text_cfg": TEXT,
    },
}
CONVOLUTIONAL = ("ConvNeXt", "MobileCLIP2", "ResNet")
SIZES = {"EVA02": (56, 28), "PE-Core": (64, 32)}  # others: (64, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> a folder in the library's own format."""
    import open_clip

    made = {}
    for name, options in MODELS.items():
        folder = made[name] = tmp_path_factory.mktemp(name)
        options = {"embed_dim": 24, "custom_text": True, **options}
        torch.manual_seed(0)
        library = open_clip.CustomTextCLIP(**{k: v for k, v in options.items() if k != "custom_text"})
        for parameter in library.parameters():  # zeros and ones would hide mistakes
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
        save_file(library.state_dict(), folder / "open_clip_model.safetensors")
        preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 1.0, 0.25], "interpolation": "bilinear"}
        content = {"model_cfg": options, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        if options["text_cfg"].get("hf_tokenizer_name"):
            write_tokenizer(folder)
    return made


def load(folder: Path, size: tuple[int, int], **options: Any) -> Backbone:
    return load_backbone(folder=folder, img_size=size, **{**read_facts(folder)._asdict(), **options})


def encoded(backbone: Backbone, size: tuple[int, int]) -> torch.Tensor:
    """The features of two images and two captions, one after the other."""
    pixels = torch.arange(2 * 3 * size[0] * size[1]).reshape(2, 3, *size).remainder(251).to(torch.uint8)
    ids = torch.tensor([[49406, 5, 6, 49407, 0, 0], [49406, 9, 49407, 0, 0, 0]]).clamp(max=backbone.vocab_size - 1)
    return torch.cat([backbone.image(pixels).pooled, backbone.text(ids, ids != 0).pooled])


@pytest.mark.parametrize("name", MODELS)
def test_ids_and_embeddings_are_those_of_the_library(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.open_clip_architectures.SIZE", SIZES.get(name, (64, 32)))
    found = compare(folders[name])
    assert found.ids_equal
    assert max(found.image, found.text) < 1e-5
    assert (found.grid == (0, 0)) == (name in CONVOLUTIONAL)


@pytest.mark.parametrize("name", ["ViT", "SigLIP2", "EVA02"])
def test_tokens_have_the_space_of_pooled_features(folders: dict[str, Path], name: str) -> None:
    size = SIZES.get(name, (64, 32))
    backbone = load(folders[name], size).eval()
    with torch.no_grad():
        image = backbone.image(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
        ids, mask = Tokenize(load_tokenizer(folders[name]), 16)(["a man", "a woman in red"])
        text = backbone.text(ids, mask)
    rows, columns = backbone.grid
    assert image.mask.sum(dim=1).tolist() == [rows * columns] * 2
    assert text.tokens.shape == (2, 16, backbone.embed_dim)
    if name == "SigLIP2":  # the last position of a text is its feature; images are pooled by attention
        torch.testing.assert_close(text.tokens[:, -1], text.pooled)
    else:
        torch.testing.assert_close(image.tokens[:, 0], image.pooled)
        torch.testing.assert_close(text.tokens[range(2), mask.sum(dim=1) - 1], text.pooled)


def test_what_comes_with_the_model(folders: dict[str, Path]) -> None:
    backbone = load(folders["SigLIP2"], (160, 160))
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert backbone.std.flatten().tolist() == [0.5, 1.0, 0.25]
    assert read_interpolation(folders["SigLIP2"]) == "bilinear"
    assert read_facts(folders["SigLIP2"])[1:] == ("open_clip", 16, True)
    assert read_facts(folders["ViT"])[1:] == ("open_clip", 16, False)
    scale, bias = backbone.logit_scale_and_bias()
    assert (round(scale.item()), round(bias.item())) == pytest.approx((14, -10), abs=2)
    assert read_facts(Path("nowhere/open_clip_PE-Core-B-16_checkpoints"), "PE-Core-B-16") == (
        *("open_clip_PE-Core-B-16", "open_clip", 32, False),
    )


def test_an_added_mask_token_does_not_move_the_end_of_a_text(folders: dict[str, Path]) -> None:
    backbone = load(folders["ViT"], (32, 32)).eval()
    ids = torch.tensor([[49406, 7, 49408, 49407] + [0] * 12])
    backbone.resize_token_embeddings(49409)
    output = backbone.text(ids, ids != 0)
    torch.testing.assert_close(output.tokens[:, 3], output.pooled)


@pytest.mark.parametrize("name", ["ViT", "SigLIP2", "EVA02", "PE-Core"])
def test_lora_and_recomputed_activations(folders: dict[str, Path], name: str) -> None:
    size = SIZES.get(name, (64, 32))
    gradients = []
    for recompute in (False, True):
        backbone = load(folders[name], size, gradient_checkpointing=recompute, max_length=6)
        torch.manual_seed(3)
        add_lora(backbone, r=4, alpha=8, dropout=0.0, target=TARGET)
        for parameter_name, parameter in backbone.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.1)
        encoded(backbone, size).square().sum().backward()
        trained = {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}
        gradients.append(trained)
    for tower in ("vision_model", "text_model"):
        adapters = [g for n, g in trained.items() if tower in n and "lora_" in n]
        assert len(adapters) >= 4
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in adapters), tower
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)
    with torch.no_grad():
        before = encoded(backbone.eval(), size)
        merge_lora(backbone)
        torch.testing.assert_close(encoded(backbone, size), before, atol=1e-4, rtol=1e-3)
    assert not any("lora_" in name for name, _ in backbone.named_parameters())


def test_compiled_towers(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    plain, compiled = (load(folders["ViT"], (64, 32), max_length=6) for _ in range(2))
    compiled.compile_towers()
    for backbone in (plain, compiled):
        encoded(backbone, (64, 32)).square().mean().backward()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for (name, expected), actual in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_tower_without_patches_is_refused_by_what_needs_them(folders: dict[str, Path], name: str) -> None:
    backbone = load(folders[name], (64, 32))
    encoder = TBPS(backbone, GlobalHead(backbone.embed_dim, backbone.grid)).eval()
    image = encoder.encode_image(torch.zeros(2, 3, 64, 32, dtype=torch.uint8))
    assert image.tokens.shape == (2, 0, 24)
    assert image.embedding.norm(dim=1).tolist() == pytest.approx([1, 1])
    with pytest.raises(UserError, match=r"head=part needs the patches of an image, .* or head=global"):
        PartHead(backbone.embed_dim, backbone.grid)
    spec = ModelSpec(24, 24, 5, backbone.vocab_size, patches=backbone.grid[0] * backbone.grid[1])
    for term in (EFA, MLM):
        target = f"model.objectives.{term.__name__}"
        own = {"attend_padding": False} if term is MLM else {"form": "released", "sigma": None, "chunk_size": None}
        own |= {} if term is MLM else {"margin_text": 0.1, "margin_image": 0.1, "lambda_": 1.0, "tau": 0.1}
        with pytest.raises(UserError, match=r"loss.terms.it reads the patches of an image.*leave the term out"):
            build_objective(OmegaConf.create({"it": {"_target_": target, "_partial_": True, **own}}), spec)
    with pytest.raises(UserError, match=r"no module of the image tower is named like .* lora=none"):
        add_lora(backbone, r=4, alpha=8, dropout=0.0, target=TARGET)


def test_a_frozen_image_tower_keeps_its_batch_statistics(folders: dict[str, Path]) -> None:
    backbone = load(folders["ResNet"], (64, 32), freeze_vision=True, max_length=6).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    encoded(backbone, (64, 32))
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())
    with pytest.raises(UserError, match=r"gradient_checkpointing: '.*' cannot recompute activations"):
        load(folders["ResNet"], (64, 32), gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multimodal_cfg": {}}, "is a CoCa, which also writes captions"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "takes its text tower roberta-base from the hub"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:some/repo"}}, "names the image tower hf-hub:some/repo"),
        ({"vision_cfg": {"timm_model_name": "no_such"}}, r"cannot be built \(Unknown model"),
        ({"vision_cfg": {**OWN_VIT, "width": 10**12}}, "width is 1000000000000, expected a number"),
        ({"vision_cfg": {**OWN_VIT, "width": 64}}, r"'visual[\w.]+' is \(.*\), but the architecture has it \("),
        ({"vision_cfg": {**OWN_VIT, "no_such": 5}}, "cannot be built"),
    ],
)
def test_folders_that_are_refused(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = json.loads((folders["ViT"] / "open_clip_config.json").read_text())
    for key, value in change.items():
        content["model_cfg"][key] = {**content["model_cfg"].get(key, {}), **value} if key != "vision_cfg" else value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    (tmp_path / "open_clip_model.safetensors").symlink_to(folders["ViT"] / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=message):
        load(tmp_path, (32, 32))


def test_other_errors_are_sentences(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"img_size_str: 30x32 is not divisible by its 8-pixel patches"):
        load(folders["ViT"], (30, 32))
    with pytest.raises(UserError, match=r"backbone.max_length: 17 given, but '.*' has 16 text positions"):
        load(folders["ViT"], (32, 32), max_length=17)
    with pytest.raises(UserError, match=r"is of another architecture than 'ViT-B-16'"):
        read_facts(folders["ViT"], "ViT-B-16")
    with pytest.raises(UserError, match=r"open_clip has no architecture 'ViT-B-61'. Did you mean 'ViT-B-16'"):
        read_facts(tmp_path, "ViT-B-61")
    weights = load_file(folders["ViT"] / "open_clip_model.safetensors")
    weights["logit_scale"] = torch.tensor(float("nan"))
    (tmp_path / "open_clip_config.json").write_text((folders["ViT"] / "open_clip_config.json").read_text())
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"NaN or infinite weights, the first in 'logit_scale'"):
        load(tmp_path, (32, 32))
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"open_clip_model.safetensors cannot be read: there is no such file"):
        load(tmp_path, (32, 32))
    monkeypatch.setattr("utils.checkpoints.backbone_facts.find_spec", lambda _: None)
    for refused in (lambda: load(folders["ViT"], (32, 32)), lambda: load_tokenizer(folders["ViT"])):
        with pytest.raises(UserError, match=r"needs the library open_clip: run 'uv sync --extra open_clip'"):
            refused()


@pytest.mark.parametrize("rule", [{"reduction_mask": "simple"}, {"strip_sep_token": True}])
def test_rules_for_texts_that_are_not_known_are_refused(
    folders: dict[str, Path], tmp_path: Path, rule: dict[str, Any]
) -> None:
    content = json.loads((folders["ViT"] / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = rule
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"need open_clip's rule '{next(iter(rule))}'"):
        load_tokenizer(tmp_path)
