"""`prepare_checkpoints.py open_clip`: random weights, a file, a folder, and the hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from data.text.tokens import load_tokenizer
from model.published.open_clip import add_tokenizer
from prepare_checkpoints import prepare, prepare_folder
from tests.http_server import WebServer, web_server
from utils.continuing.composed import described
from utils.download import download as download_module
from utils.errors import UserError

MODEL = "ViT-S-32-alt"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def backbone(model: str | None = MODEL) -> DictConfig:
    option = described("backbone", "open_clip")
    if model is not None:
        option.model = model
    return option


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights."""
    root = tmp_path_factory.mktemp("root")
    return prepare(backbone(), root, pretrained="random")


def test_random_weights_are_written_in_the_format_of_the_library(
    random: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random.name == f"open_clip_{MODEL}_checkpoints"
    assert sorted(path.name for path in random.iterdir()) == [CONFIG, WEIGHTS]
    content = json.loads((random / CONFIG).read_text())
    assert content["model_cfg"]["embed_dim"] == 256
    weights = load_file(random / WEIGHTS)
    assert weights["visual.conv1.weight"].shape[-1] == 32
    assert prepare(backbone(), random.parent) == random
    assert "is complete and kept" in capsys.readouterr().out
    assert load_tokenizer(random)("A man")["input_ids"][-1] == 49407


@pytest.mark.parametrize("format_", ["torch.save", "safetensors", "folder"])
def test_a_file_and_a_folder_are_converted(random: Path, tmp_path: Path, format_: str) -> None:
    expected = load_file(random / WEIGHTS)
    if format_ == "safetensors":
        source = tmp_path / "weights.safetensors"
        save_file(expected, source)
    elif format_ == "torch.save":
        source = tmp_path / "epoch_32.pt"
        torch.save({"epoch": 32, "state_dict": {f"module.{k}": v for k, v in expected.items()}}, source)
    else:
        source = tmp_path / "folder"
        source.mkdir()
        (source / CONFIG).write_text((random / CONFIG).read_text())
        torch.save(expected, source / "open_clip_pytorch_model.bin")
    made = prepare(backbone(), tmp_path, source=source)
    found = load_file(made / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_run_converts_a_file_once_beside_it(random: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mine.safetensors"
    save_file(load_file(random / WEIGHTS), source)
    option = OmegaConf.create({"name": "mine", "model": MODEL, "folder": str(source), "description": {"steps": None}})
    folder = prepare_folder(option, tmp_path)
    assert folder.name.startswith("mine-")
    assert (folder / CONFIG).is_file()
    capsys.readouterr()
    assert prepare_folder(option, tmp_path) == folder
    assert "converted" in capsys.readouterr().out


def test_errors_are_sentences(random: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name an architecture of open_clip, such as: .* --model ViT-B-16"):
        prepare(backbone(None), tmp_path)
    with pytest.raises(UserError, match=r"no weights are named.* one of openai, .*laion400m_e31.* or random"):
        prepare(backbone("ViT-B-16"), tmp_path)
    with pytest.raises(UserError, match=r"has no weights 'datacomp_xl': give --pretrained one of openai, .* or random"):
        prepare(backbone("ViT-B-16"), tmp_path, pretrained="datacomp_xl")
    with pytest.raises(UserError, match=r"is a CoCa"):
        prepare(backbone("coca_ViT-B-32"), tmp_path, pretrained="random")
    other = tmp_path / "other.safetensors"
    save_file({"visual.proj": torch.zeros(2, 2)}, other)
    with pytest.raises(UserError, match=r"other.safetensors cannot be loaded \(.*expected weights of open_clip's"):
        prepare(backbone(), tmp_path, source=other)
    hostile = tmp_path / "hostile.pt"
    torch.save({"x": Path("no tensor")}, hostile)
    with pytest.raises(UserError, match=r"hostile.pt cannot be read: it holds pathlib"):
        prepare(backbone(), tmp_path, source=hostile)
    option = OmegaConf.create(
        {"name": "x", "model": MODEL, "folder": str(tmp_path / "none"), "description": {"steps": None}}
    )
    with pytest.raises(UserError, match=rf"run 'uv run prepare_checkpoints.py open_clip --model {MODEL}'"):
        prepare_folder(option, tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    with web_server() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def test_a_tag_is_downloaded_without_the_files_of_transformers(
    random: Path, tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: (random / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    server.serve_model("some/repo", {**files, "config.json": b"{}", "model.safetensors": b"", "vocab.json": b"{}"})
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda *_: {"hf_hub": "some/repo/"})
    monkeypatch.setattr("open_clip.list_pretrained_tags_by_model", lambda _: ["some_tag"])
    made = prepare(backbone(), tmp_path, pretrained="some_tag")
    assert sorted(path.name for path in made.iterdir()) == ["hub.json", CONFIG, WEIGHTS, "vocab.json"]
    assert (made / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_a_tokenizer_of_the_hub_comes_without_the_config_of_its_repository(tmp_path: Path, server: WebServer) -> None:
    server.serve_model("timm/ViT-B-16-SigLIP2-256", {"tokenizer.json": b"{}", CONFIG: b"of another model"})
    (tmp_path / "staging").mkdir()
    add_tokenizer("ViT-B-16-SigLIP2-256", tmp_path, tmp_path / "staging")
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_text("{}")
    server.requests.clear()
    add_tokenizer("ViT-B-16-SigLIP2-256", tmp_path, tmp_path)
    add_tokenizer("ViT-B-16", tmp_path / "staging", tmp_path)
    assert server.requests == []


def test_without_network_the_sentence_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"--from FOLDER', or set HF_ENDPOINT to a mirror"):
        prepare(backbone("ViT-B-16"), tmp_path, pretrained="openai")
