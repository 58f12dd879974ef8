"""Conversion of CLIP as open_clip and transformers save it: embeddings equal to those of the library itself."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from model.backbones import load_backbone
from model.published.convert import convert
from model.published.converted import write_converted
from model.published.file import read_state
from model.published.settings import Activation
from tests.model.openai_clip import VOCABULARY, Irra
from utils.errors import UserError

SIDE, LENGTH, PATCH = 24, 12, 4
CONFIG: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 64, "patch_size": PATCH},
    "text_cfg": {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 128, "heads": 2, "layers": 2},
}


def library_model(kind: type[nn.Module], *, quick_gelu: bool) -> nn.Module:
    """A small model of open_clip, whose norms and biases show when they are in the wrong place."""
    torch.manual_seed(0)
    model = kind(**CONFIG, quick_gelu=quick_gelu).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Pixels ``(3, 3, SIDE, SIDE)`` of whole values and captions ``(3, LENGTH)`` that end in the largest id."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    ids = torch.randint(1, VOCABULARY - 2, (3, LENGTH), generator=random)
    ids[torch.arange(3), torch.tensor([5, 11, 7])] = VOCABULARY - 1
    return pixels, ids


@torch.no_grad()
def embeddings(
    path: Path, folder: Path, size: tuple[int, int] = (SIDE, SIDE), activation: Activation | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Image and text embeddings of the converted file, and the pixels as its image tower sees them."""
    folder.mkdir()
    write_converted(convert(read_state(path), source=path, activation=activation), folder, source=path)
    backbone = load_backbone("clip", "clip", folder, size, sigmoid=False, max_length=LENGTH).eval()
    pixels, ids = batch()
    image, text = backbone.image(pixels), backbone.text(ids, torch.ones_like(ids, dtype=torch.bool))
    return image.pooled, text.pooled, backbone.normalize(pixels)


def save(model: nn.Module, path: Path) -> Path:
    """Saves as open_clip's training does, or its weights alone as safetensors."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    else:
        state = {f"module.{name}": value for name, value in model.state_dict().items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)
    return path


def resample_of(folder: Path) -> int:
    return json.loads((folder / "preprocessor_config.json").read_text())["resample"]


@pytest.mark.parametrize("file", ["epoch_3.pt", "open_clip_model.safetensors"])
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_open_clip_gives_the_same_embeddings(
    kind: type[nn.Module], quick_gelu: bool, file: str, tmp_path: Path
) -> None:
    model: Any = library_model(kind, quick_gelu=quick_gelu)
    path = save(model, tmp_path / file)
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**CONFIG, "quick_gelu": quick_gelu}, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3]}})
    )
    image, text, pixels = embeddings(path, tmp_path / "converted")
    with torch.no_grad():
        torch.testing.assert_close(image, model.encode_image(pixels), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(text, model.encode_text(batch()[1]), rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "converted" / "preprocessor_config.json").read_text()) == {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
    }


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_activation_is_asked_for_where_nothing_tells_it(activation: Activation, tmp_path: Path) -> None:
    model: Any = library_model(open_clip.CLIP, quick_gelu=activation == "quick_gelu")
    path = save(model, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"does not say the activation .* give --activation quick_gelu") as caught:
        convert(read_state(path), source=path)
    assert len(str(caught.value)) <= 500
    image, text, pixels = embeddings(path, tmp_path / "converted", activation=activation)
    with torch.no_grad():
        torch.testing.assert_close(image, model.encode_image(pixels), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(text, model.encode_text(batch()[1]), rtol=1e-5, atol=1e-5)
    assert f"{activation}: --activation" in convert(read_state(path), source=path, activation=activation).report()
    other: Activation = "gelu" if activation == "quick_gelu" else "quick_gelu"
    assert not torch.allclose(embeddings(path, tmp_path / "other", activation=other)[0], image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "weights.safetensors"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_file_of_transformers_gives_the_same_embeddings(activation: Activation, file: str, tmp_path: Path) -> None:
    model = library_model(open_clip.CLIP, quick_gelu=activation == "quick_gelu")
    origin = save(model, tmp_path / "origin.pt")
    image, text, _ = embeddings(origin, tmp_path / "hub", activation=activation)
    hub = CLIPModel.from_pretrained(tmp_path / "hub")
    path = tmp_path / file
    if path.suffix == ".bin":
        torch.save(hub.state_dict(), path)
    else:
        save_file(hub.state_dict(), path)
    with pytest.raises(UserError, match=r"nor does a config.json beside it"):
        convert(read_state(path), source=path)
    (tmp_path / "config.json").write_text((tmp_path / "hub" / "config.json").read_text())
    again, words, _ = embeddings(path, tmp_path / "converted")
    torch.testing.assert_close(again, image, rtol=0, atol=0)
    torch.testing.assert_close(words, text, rtol=0, atol=0)
    assert resample_of(tmp_path / "converted") == 3


def test_person_search_is_resized_bilinearly_and_needs_no_word_on_its_activation(tmp_path: Path) -> None:
    irra = Irra(patches=12, identities=7)
    torch.save({"model": irra.state_dict()}, tmp_path / "irra.pth")
    torch.save({"model": irra.base_model.state_dict()}, tmp_path / "sdm_alone.pth")
    learnt = irra.state_dict() | {"base_model.logit_scale": torch.tensor(4.0)}
    torch.save({"model": learnt}, tmp_path / "learnt.pth")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": false}}')
    for name in ("irra", "sdm_alone", "learnt"):
        path = tmp_path / f"{name}.pth"
        settings = convert(read_state(path), source=path).settings
        assert (settings.activation, settings.resample) == ("quick_gelu", 2), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_cfg": {"text_cfg": {"no_causal_mask": True}}}, r"text_cfg.no_causal_mask is 'True', CLIP has False"),
        ({"model_cfg": {"vision_cfg": {"pool_type": "avg"}}}, r"vision_cfg.pool_type is 'avg', CLIP has 'tok'"),
        ({"model_cfg": []}, "has no 'model_cfg' and 'preprocess_cfg' as open_clip writes them"),
        ({"model_cfg": {"quick_gelu": "no"}}, "quick_gelu has to be true or false"),
        ({"preprocess_cfg": {"interpolation": "random"}}, "interpolation bilinear or bicubic"),
        ({"preprocess_cfg": {"mean": [0.5, "a", 0]}}, r"preprocess_cfg.mean is \[0.5, 'a', 0\], expected three"),
        ([], "is not a JSON object"),
    ],
)
def test_configs_of_other_models_are_one_sentence(config: Any, message: str, tmp_path: Path) -> None:
    path = save(library_model(open_clip.CLIP, quick_gelu=False), tmp_path / "weights.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        convert(read_state(path), source=path)


def test_towers_that_clip_does_not_have_are_one_sentence(tmp_path: Path) -> None:
    path = save(library_model(open_clip.CLIP, quick_gelu=False), tmp_path / "weights.pt")
    state, source = read_state(path), Path("a.pt")
    for name, message in {
        "visual.trunk.blocks.0.weight": r"has an image tower of timm",
        "transformer.resblocks.0.ls_1.gamma": r"has 'transformer.resblocks.0.ls_1.gamma', which the towers of CLIP",
        "visual.attn_pool.query": r"has 'visual.attn_pool.query', which the towers of CLIP do not have",
    }.items():
        with pytest.raises(UserError, match=message):
            convert(state | {name: torch.zeros(4)}, source=source, activation="gelu")
    with pytest.raises(UserError, match=r"'logit_scale' is of shape \(2,\), expected one number"):
        convert(state | {"logit_scale": torch.zeros(2)}, source=source, activation="gelu")
    siglip = {"vision_model.embeddings.patch_embedding.weight": torch.zeros(4, 3, 2, 2)}
    with pytest.raises(UserError, match=r"not a CLIP in the layout of transformers: it has no"):
        convert(siglip, source=source)


def test_a_config_of_transformers_that_is_no_clip_is_one_sentence(hub_folders: dict[str, Path]) -> None:
    path = hub_folders["siglip"] / "model.safetensors"
    with pytest.raises(UserError, match="not a CLIP in the layout of transformers: it has no 'visual_projection"):
        convert(read_state(path), source=path)
