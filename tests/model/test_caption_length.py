"""Captions padded to about the longest of their batch give the embeddings of captions padded to the full length."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.batch import Tokens
from model.backbones import Backbone, load_backbone
from model.features import Encoded
from model.heads import GlobalHead, PartHead, TokenSelectionHead
from model.tbps import TBPS
from tests.model.backbones.test_clip_like import CLASSES, by_folder, small
from tests.small_models import save_model

LENGTH = 12
IDS = torch.tensor([[2, 5, 6, 7, 3] + [1] * 7, [2, 9, 3] + [1] * 9])
TOKENS = Tokens(IDS, IDS != 1)


def encoded(backbone: Backbone, head: str, tokens: Tokens) -> Encoded:
    torch.manual_seed(0)
    if head == "part":
        made = PartHead(backbone.embed_dim, backbone.grid, coarse=2, fine=2)
    elif head == "token_selection":
        made = TokenSelectionHead(backbone.embed_dim, backbone.grid, text_length=LENGTH, width=8)
    else:
        made = GlobalHead(backbone.embed_dim)
    return TBPS(backbone, made).eval().encode_text(*tokens)


def check(backbone: Backbone, head: str) -> None:
    assert not backbone.fixed_length
    whole, short = (encoded(backbone, head, tokens) for tokens in (TOKENS, TOKENS.cut(1)))
    assert short.tokens.shape[1] == 5
    torch.testing.assert_close(short.embedding, whole.embedding, atol=1e-6, rtol=0)
    mask = TOKENS.mask[:, :5]
    torch.testing.assert_close(short.tokens[mask], whole.tokens[:, :5][mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["global", "part", "token_selection"])
@pytest.mark.parametrize("family", ["clip", "metaclip_2", "vit"])
def test_embeddings_do_not_depend_on_padding(hub_folders: dict[str, Path], family: str, head: str) -> None:
    of_bert = "vision-text-dual-encoder"
    kind = of_bert if family == "vit" else family
    check(load_backbone("small", kind, hub_folders[family], (32, 32), sigmoid=False, max_length=LENGTH).eval(), head)


@pytest.mark.parametrize("family", ["chinese_clip", "altclip"])
def test_those_of_relatives_of_clip_neither(tmp_path: Path, family: str) -> None:
    assert family in CLASSES
    check(by_folder(save_model(small(family), tmp_path)).eval(), "global")


def test_siglip_and_compiled_towers_keep_one_length(hub_folders: dict[str, Path]) -> None:
    siglip = load_backbone("small", "siglip", hub_folders["siglip"], (32, 32), sigmoid=True, max_length=LENGTH).eval()
    assert siglip.fixed_length
    whole, short = (encoded(siglip, "global", tokens).embedding for tokens in (TOKENS, TOKENS.cut(1)))
    assert (whole - short).abs().max() > 1e-3
    clip = load_backbone("small", "clip", hub_folders["clip"], (32, 32), sigmoid=False, max_length=LENGTH)
    clip.compile_towers()
    assert clip.fixed_length


def lengths_after_cut(mask: Tensor, multiple: int) -> tuple[int, int]:
    cut = Tokens(mask.long(), mask).cut(multiple)
    return cut.ids.shape[1], cut.mask.shape[1]


def test_the_length_is_that_of_the_longest_caption_rounded_up() -> None:
    mask = torch.arange(20) < torch.tensor([3, 9])[:, None]
    assert lengths_after_cut(mask, 1) == (9, 9)
    assert lengths_after_cut(mask, 8) == (16, 16)
    assert lengths_after_cut(mask[:, :12], 8) == (12, 12), "no longer than it was"
    assert lengths_after_cut(mask & False, 8) == (8, 8), "empty captions keep a position"
