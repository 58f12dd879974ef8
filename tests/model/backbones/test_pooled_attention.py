"""The attention of the pooled position: the library's own, recorded only where a head asks, and without matrices."""

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.backbones import Backbone, load_backbone
from model.backbones.lora import add_lora
from model.heads import GlobalHead, TokenSelectionHead
from model.tbps import TBPS
from utils.errors import UserError

LENGTH, SIZE = 12, (64, 32)  # 8 x 4 patches
IDS = torch.tensor([[2, 5, 6, 7, 3, 1, 1, 1, 1, 1, 1, 1], [2, 9, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1], [2, *range(4, 14), 3]])
MASK = IDS != 1
WORDS = torch.zeros_like(MASK)
WORDS[0, 1:4] = WORDS[1, 1] = WORDS[2, 1:11] = True


def load(folders: dict[str, Path], name: str) -> Backbone:
    family = name if name in ("siglip", "clip") else "vision-text-dual-encoder"
    options: dict[str, Any] = {"sigmoid": False, "max_length": LENGTH}
    return load_backbone("small", family, folders[name], SIZE, **options).eval()


def pixels(count: int = 3) -> Tensor:
    return torch.randint(256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Matrices(TorchDispatchMode):
    """Collects the shapes of tensors whose last two sizes are both the length of a sequence."""

    def __init__(self, *lengths: int) -> None:
        super().__init__()
        self._lengths = lengths
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.shape[-1] == leaf.shape[-2] in self._lengths:
                self.found.append(tuple(leaf.shape))
        return result


@torch.no_grad()
def eager(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """The last layer's attention matrices of images and texts, mean over heads, as the library returns them."""
    hub = backbone.hub_model
    hub.set_attn_implementation("eager")
    image = hub.vision_model(backbone.normalize(pixels()), output_attentions=True).attentions[-1]
    name = type(backbone).__name__
    if name == "BertBackbone":
        text = hub.text_model(IDS, attention_mask=MASK.long(), output_attentions=True).attentions[-1]
    else:
        text = hub.text_model(IDS if name == "SiglipBackbone" else IDS.masked_fill(~MASK, 0), output_attentions=True)
        text = text.attentions[-1]
    hub.set_attn_implementation("sdpa")
    return image.mean(dim=1), text.mean(dim=1)


@pytest.mark.parametrize("name", ["siglip", "clip", "vit"])
def test_it_is_the_last_layers_own_attention(hub_folders: dict[str, Path], name: str) -> None:
    backbone = load(hub_folders, name)
    image_matrix, text_matrix = eager(backbone)
    backbone.record_attention()
    with torch.no_grad():
        image, text = backbone.image(pixels()).attention, backbone.text(IDS, MASK).attention
    rows = torch.arange(3)
    position = {"siglip": torch.tensor(LENGTH - 1), "clip": torch.tensor([4, 2, 11]), "vit": torch.tensor(0)}[name]
    expected = text_matrix[rows, position]
    words = WORDS.clone()
    if name == "siglip":  # no token starts a text
        words[:, 0] = True
    torch.testing.assert_close(text[words], expected[words])
    assert (text[~words] == -1).all()
    if name == "siglip":
        head = backbone.hub_model.vision_model.head
        hidden = backbone.image(pixels()).tokens
        weights = head.attention(head.probe.expand(3, -1, -1), hidden, hidden)[1]
        torch.testing.assert_close(image, weights[:, 0])
    else:
        torch.testing.assert_close(image[:, 1:], image_matrix[:, 0, 1:])
        assert (image[:, 0] == -1).all()


@pytest.mark.parametrize("name", ["siglip", "clip", "vit"])
def test_no_matrix_is_made_and_outputs_are_the_same_with_and_without(hub_folders: dict[str, Path], name: str) -> None:
    plain, recorded = (load(hub_folders, name) for _ in range(2))
    TBPS(plain, GlobalHead(plain.embed_dim))
    TBPS(recorded, TokenSelectionHead(recorded.embed_dim, recorded.grid, text_length=12, width=8))
    outputs = []
    for backbone in (plain, recorded):
        with Matrices(LENGTH, 32, 33) as matrices, torch.no_grad():
            outputs.append((backbone.image(pixels()), backbone.text(IDS, MASK)))
        assert [shape for shape in matrices.found if shape[1] > 1] == []  # a mask may be (B, 1, L, L)
    for without, with_ in zip(*outputs, strict=True):
        assert without.attention is None
        assert with_.attention is not None
        assert all(torch.equal(*parts) for parts in zip(without[:3], with_[:3], strict=True))


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_adapters_and_recomputed_activations_are_seen_and_nothing_stays(
    hub_folders: dict[str, Path], name: str
) -> None:
    backbone = load(hub_folders, name)
    add_lora(backbone, r=2, alpha=4, dropout=0.0, target=r".*\.(q_proj|k_proj)")
    with torch.no_grad():
        for parameter in (p for key, p in backbone.named_parameters() if "lora_B" in key):
            parameter.normal_()
    _, text_matrix = eager(backbone)
    backbone.record_attention()
    backbone.hub_model.gradient_checkpointing_enable()
    output = backbone.train().text(IDS, MASK)
    torch.testing.assert_close(output.attention[2, 1:11], text_matrix[2, 11, 1:11])
    assert not output.attention.requires_grad
    output.pooled.sum().backward()
    assert not any(recorder._kept for recorder in backbone._attention.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_fp32_under_amp(hub_folders: dict[str, Path], dtype: torch.dtype) -> None:
    backbone = load(hub_folders, "clip")
    exact = backbone.text
    backbone.record_attention()
    with torch.no_grad():
        expected = exact(IDS, MASK).attention
        with torch.autocast("cpu", dtype=dtype):
            found = backbone.text(IDS, MASK).attention
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_compiled_towers_record_too(hub_folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the code that inductor would generate, as in test_backbones.py."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    plain, compiled = load(hub_folders, name), load(hub_folders, name)
    compiled.compile_towers()
    for backbone in (plain, compiled):
        backbone.record_attention()
    for _ in range(2):
        expected, found = ((b.image(pixels()), b.text(IDS, MASK)) for b in (plain, compiled))
        for own, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other.attention, own.attention)
            torch.testing.assert_close(other.pooled, own.pooled)


def test_a_tower_without_attention_is_refused_by_name(hub_folders: dict[str, Path]) -> None:
    backbone = load(hub_folders, "resnet")
    with pytest.raises(UserError, match=r"^head=token_selection selects tokens by attention, but ResNetModel has no"):
        TBPS(backbone, TokenSelectionHead(backbone.embed_dim, backbone.grid, text_length=12, width=8))
