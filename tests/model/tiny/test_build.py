from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    PreTrainedTokenizerBase,
    SiglipModel,
)

from model.tiny.build import make_tiny
from utils.continuing.composed import described


def architecture_of(name: str) -> tuple[str, Any]:
    backbone = described("backbone", name)
    return backbone.family, OmegaConf.to_container(backbone.description.architecture)


CAPTIONS = [
    "A woman with long black hair wears a red striped T-shirt, blue jeans and white sneakers.",
    "The young man carries a brown backpack and wears a grey cap.",
    "Người phụ nữ tóc dài màu đen mặc áo thun sọc đỏ, quần bò xanh và đi giày trắng.",
    "Chàng trai trẻ đeo ba lô nâu, đội mũ lưỡi trai xám.",
] * 5
VISION_LANGUAGE = ["tiny_siglip", "tiny_clip"]
NAMES = [*VISION_LANGUAGE, "tiny_resnet_bert"]
ARCHITECTURES = {name: architecture_of(name) for name in NAMES}
LENGTHS = {"tiny_siglip": 64, "tiny_clip": 77, "tiny_resnet_bert": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: make_tiny(*ARCHITECTURES[name], CAPTIONS, root / name) for name in NAMES}


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Token ids ``(B, L)``, padded to the model's full length."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    made = {path.name: path.read_bytes() for path in folders[name].iterdir()}
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = make_tiny(*ARCHITECTURES[name], iter(CAPTIONS), tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == made

    other = make_tiny(*ARCHITECTURES[name], CAPTIONS, tmp_path / "other", seed=1)
    different = {path.name for path in other.iterdir() if path.read_bytes() != made[path.name]}
    assert different == {"model.safetensors"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_covers_both_languages_and_ignores_case_and_composition(
    folders: dict[str, Path], name: str
) -> None:
    tokenizer = tokenizer_of(folders[name])
    assert len(tokenizer) <= ARCHITECTURES[name][1]["text_config"]["vocab_size"]
    assert tokenizer.model_max_length == LENGTHS[name]
    unknown = tokenizer.unk_token_id
    assert all(unknown not in tokenizer(caption)["input_ids"] for caption in CAPTIONS)
    plain = tokenizer("người phụ nữ mặc áo đỏ")["input_ids"]
    assert tokenizer("  NGƯỜI PHỤ NỮ, mặc áo đỏ.")["input_ids"] == plain
    decomposed = "ngu\u031bo\u031b\u0300i phu\u0323 nu\u031b\u0303 ma\u0323\u0306c a\u0301o đo\u0309"
    assert tokenizer(decomposed)["input_ids"] == plain
    assert tokenizer.decode(plain, skip_special_tokens=True) == "người phụ nữ mặc áo đỏ"
    assert unknown in tokenizer("漢字")["input_ids"]
    assert unknown not in tokenizer("a jazz quiz 1234567890")["input_ids"]


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_ids_fit_the_token_table_and_special_tokens_agree_with_the_config(folders: dict[str, Path], name: str) -> None:
    tokenizer = tokenizer_of(folders[name])
    model = AutoModel.from_pretrained(folders[name], local_files_only=True)
    text = model.config.text_config
    assert text.vocab_size == len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    assert text.max_position_embeddings == tokenizer.model_max_length
    assert (text.pad_token_id, text.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert text.bos_token_id == tokenizer.bos_token_id
    assert tokenizer.mask_token is None


def test_a_siglip_text_ends_with_eos_and_is_padded_with_another_token(folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(folders["tiny_siglip"])
    ids = encode(tokenizer, ["a red cap", " ".join(["cap"] * 100)])
    assert ids.shape == (2, 64)
    end = ids[0].tolist().index(tokenizer.eos_token_id)
    assert (ids[0, end + 1 :] == tokenizer.pad_token_id).all()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert ids[1, -1] == tokenizer.eos_token_id


def test_siglip_starts_from_its_published_temperature_and_attends_to_padding(
    folders: dict[str, Path],
) -> None:
    model = SiglipModel.from_pretrained(folders["tiny_siglip"], local_files_only=True).eval()
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10
    ids = encode(tokenizer_of(folders["tiny_siglip"]), CAPTIONS[:4])
    with torch.no_grad():
        output = model.text_model(ids)
        last = model.text_model.head(output.last_hidden_state[:, -1])
    assert torch.allclose(output.pooler_output, last)
    assert torch.pdist(output.pooler_output).min() > 1e-3


def test_clip_pools_at_the_first_end_of_text_whatever_the_padding(folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_of(folders["tiny_clip"])
    model = CLIPModel.from_pretrained(folders["tiny_clip"], local_files_only=True).eval()
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-3)
    assert tokenizer.eos_token_id != 2, "2 switches CLIPTextModel to pooling at the largest id"
    ids = encode(tokenizer, CAPTIONS[:4])
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    first_end = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
    with torch.no_grad():
        output = model.text_model(ids)
        unpadded = model.text_model(ids[:1, : int(first_end[0]) + 1])
    assert torch.equal(output.pooler_output, output.last_hidden_state[torch.arange(4), first_end])
    assert torch.allclose(output.pooler_output[:1], unpadded.pooler_output, atol=1e-5)


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_the_model_has_the_promised_size_and_its_images_a_normalisation(folders: dict[str, Path], name: str) -> None:
    model = AutoModel.from_pretrained(folders[name], local_files_only=True)
    vision = model.config.vision_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.num_attention_heads) == (3, 128, 4)
    assert (vision.image_size, vision.patch_size) == (128, 16)
    processor = AutoImageProcessor.from_pretrained(folders[name], local_files_only=True)
    assert len(processor.image_mean) == len(processor.image_std) == 3
    with torch.no_grad():
        pooled = model.vision_model(torch.zeros(2, 3, 128, 128)).pooler_output
    assert pooled.shape == (2, 128)
    assert pooled.isfinite().all()


def test_a_resnet_and_a_bert_have_the_promised_size_and_agree_with_their_tokenizer(folders: dict[str, Path]) -> None:
    folder = folders["tiny_resnet_bert"]
    tokenizer, model = tokenizer_of(folder), AutoModel.from_pretrained(folder, local_files_only=True)
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads) == (3, 128, 4)
    assert (vision.model_type, vision.hidden_sizes[-1], model.config.projection_dim) == ("resnet", 128, 128)
    assert text.vocab_size == len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    assert text.max_position_embeddings == tokenizer.model_max_length
    assert text.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer("a red cap")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.mask_token == "[MASK]"
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    assert len(processor.image_mean) == len(processor.image_std) == 3


def test_of_two_that_make_it_at_once_the_first_one_wins(folders: dict[str, Path]) -> None:
    folder = folders["tiny_clip"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make_tiny(*ARCHITECTURES["tiny_clip"], CAPTIONS, folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not list(folder.parent.glob(".tiny_clip*"))
