"""The towers as ONNX files: what ONNX Runtime computes from a batch of any size, and the files of 8 bits."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from model.backbones import load_backbone
from model.export import onnx_towers
from model.export.onnx_towers import PACKAGES, OnnxEncoder, check_packages, quantize, size_of, write_onnx
from model.heads import GlobalHead, PartHead, TokenSelectionHead
from model.tbps import TBPS
from utils.errors import UserError

SIZE, LENGTH = (64, 32), 12


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("siglip", GlobalHead),
        ("clip", partial(TokenSelectionHead, text_length=LENGTH, width=16)),
        ("vit", partial(PartHead, coarse=2, fine=2)),
    ],
)
def test_onnx_runtime_gives_the_embeddings_of_pytorch_for_a_batch_of_any_size(
    name: str, head: Any, hub_folders: dict[str, Path], tmp_path: Path
) -> None:
    for package in PACKAGES:
        pytest.importorskip(package)
    family = name if name in ("siglip", "clip") else "vision-text-dual-encoder"
    backbone = load_backbone(name, family, hub_folders[name], SIZE, sigmoid=False, max_length=LENGTH)
    torch.manual_seed(0)
    encoder = TBPS(backbone, head(backbone.embed_dim, backbone.grid)).eval().requires_grad_(False)
    write_onnx(encoder, tmp_path / "onnx", size=SIZE, max_length=LENGTH)
    quantize(tmp_path / "onnx", tmp_path / "int8")
    whole, small = OnnxEncoder(tmp_path / "onnx"), OnnxEncoder(tmp_path / "int8")
    for count in (1, 5):
        pixels = torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8)
        ids = torch.randint(4, 40, (count, LENGTH))
        mask = torch.arange(LENGTH) < torch.randint(4, LENGTH + 1, (count, 1))
        for expected, found, in_8_bits in (
            (encoder.encode_image(pixels).embedding, whole.images(pixels), small.images(pixels)),
            (encoder.encode_text(ids, mask).embedding, whole.texts(ids, mask), small.texts(ids, mask)),
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            assert in_8_bits.shape == expected.shape
            assert cosine_similarity(in_8_bits, expected).min() > 0.7
    assert size_of(tmp_path / "int8") < size_of(tmp_path / "onnx")


def test_an_absent_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_towers, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(UserError, match="no_such_package is not installed; install them with 'uv sync --extra export'"):
        check_packages()


def test_a_tower_that_pytorch_cannot_export_is_refused_by_name(
    hub_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    backbone = load_backbone("siglip", "siglip", hub_folders["siglip"], SIZE, sigmoid=True, max_length=LENGTH)
    encoder = TBPS(backbone, GlobalHead(backbone.embed_dim))
    message = r"cannot export the image tower of SiglipBackbone with GlobalHead to ONNX \(no such operation\)"
    with pytest.raises(UserError, match=message):
        write_onnx(encoder, tmp_path, size=SIZE, max_length=LENGTH)
