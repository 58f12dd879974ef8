import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from omegaconf import DictConfig
from PIL import Image
from safetensors.numpy import save

import prepare_checkpoints
from model.backbones import load_backbone
from prepare_checkpoints import prepare, prepare_folder
from tests.http_server import COMMIT, WebServer, web_server
from tests.model.openai_clip import PATCH, TEXT_WIDTH, VOCABULARY, WIDTH, Irra
from tests.small_backbone import SMALL, small
from tests.small_models import save_model, small_towers
from utils.checkpoints.folder import Architecture, check_folder
from utils.continuing.composed import described
from utils.errors import UserError

REPOSITORY = Path(prepare_checkpoints.__file__).parent
REPO = "google/siglip-base-patch16-256-multilingual"
CLIP_REPO = "openai/clip-vit-base-patch16"
MODEL = {
    "config.json": b'{"model_type": "siglip"}',
    "preprocessor_config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": save(
        {
            "text_model.embeddings.token_embedding.weight": np.ones((200_000, 6), dtype=np.float32),
            "vision_model.embeddings.patch_embedding.weight": np.ones((4, 3, 2, 2), dtype=np.float32),
        }
    ),
}
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1}, "unk_token": "[UNK]"},
    }
)
WEIGHTS = "/cdn/model.safetensors"
# The command line with an m_siglip that is small enough to serve.
SMALL_COMMAND = """
import prepare_checkpoints as command
from tests.small_backbone import SMALL, small
from utils.errors import run_command
real = command.described
command.described = lambda group, name: small(name, SMALL) if name == "m_siglip" else real(group, name)
run_command(command.main)
"""


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as running:
        running.serve_model(REPO, MODEL, large=("model.safetensors",))
        yield running


def environment(endpoint: str) -> dict[str, str]:
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in offline}
    return kept | {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(REPOSITORY)}


def run(endpoint: str, *arguments: str, small: bool = True) -> subprocess.CompletedProcess[str]:
    program = ["-c", SMALL_COMMAND] if small else [str(REPOSITORY / "prepare_checkpoints.py")]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env=environment(endpoint),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_synthetic(root: Path) -> None:
    """An embedded dataset of four records, and two of pre-training."""
    folder = root / "DRAWN-PEDES"
    write_records(folder, [("train", 1), ("train", 2), ("validate", 3), ("test", 4)])
    write_records(folder / "pretrain", [("stranger", 1), ("stranger", 2)])


def write_records(folder: Path, rows: list[tuple[str, int]]) -> None:
    (folder / "imgs").mkdir(parents=True)
    records = [
        {
            "id": identity,
            "split": split.replace("stranger", "train"),
            "file_path": f"{identity}.jpg",
            "captions": [f"Người phụ nữ {split} mặc áo đỏ số {identity}."],
            "en_captions": [f"A {split} woman wears red shirt number {identity}."],
        }
        for split, identity in rows
    ]
    for _, identity in rows:
        Image.new("RGB", (64, 128), (40 * identity, 90, 90)).save(folder / "imgs" / f"{identity}.jpg")
    (folder / "data_captions.json").write_text(json.dumps(records), encoding="utf-8")


def refused_endpoint() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_m_siglip_is_downloaded_by_default_and_then_kept(server: WebServer, tmp_path: Path) -> None:
    first = run(server.url, "--root", str(tmp_path))
    assert first.returncode == 0, first.stderr
    assert f"downloading {REPO}" in first.stdout
    folder = tmp_path / "m_siglip_checkpoints"
    check_folder(folder, SMALL)
    assert {path.name for path in folder.iterdir()} == {*MODEL, "hub.json"}

    server.requests.clear()
    second = run(server.url, "--root", str(tmp_path))
    assert second.returncode == 0
    assert "is complete and kept" in second.stdout
    assert server.requests == []


def test_a_killed_download_is_continued(server: WebServer, tmp_path: Path) -> None:
    size = len(MODEL["model.safetensors"])
    server.stalls[WEIGHTS] = size // 2
    process = subprocess.Popen(
        [sys.executable, "-c", SMALL_COMMAND, "--root", str(tmp_path)], env=environment(server.url)
    )
    part = tmp_path / "m_siglip_checkpoints" / "model.safetensors.part"
    assert server.stalled.wait(30)
    while not part.is_file() or part.stat().st_size < size // 4:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.stalls.clear()

    done = run(server.url, "--root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    check_folder(tmp_path / "m_siglip_checkpoints", SMALL)
    (_, first), (start, rest) = server.sent(WEIGHTS)
    assert first == size // 2
    assert size // 4 <= start
    assert start + rest == size
    small = f"/{REPO}/resolve/{COMMIT}/config.json"
    assert len(server.sent(small)) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_folder_is_completed(
    server: WebServer, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    prepare(small("m_siglip", SMALL), tmp_path)
    weights = tmp_path / "m_siglip_checkpoints" / "model.safetensors"
    if damage == "remove":
        weights.unlink()
    else:
        data = weights.read_bytes()
        weights.write_bytes(data[:-1] + (b"!" if damage == "flip" else b""))
    prepare(small("m_siglip", SMALL), tmp_path)
    assert weights.read_bytes() == MODEL["model.safetensors"]
    assert len(server.sent(WEIGHTS)) == 2
    assert len(server.sent(f"/{REPO}/resolve/{COMMIT}/tokenizer.json")) == 1


def test_a_file_with_a_wrong_sum_is_refused(server: WebServer, tmp_path: Path) -> None:
    server.files[WEIGHTS] = MODEL["model.safetensors"][:-1] + b"!"
    done = run(server.url, "--root", str(tmp_path))
    assert_one_sentence(done, "arrived with SHA-256")
    assert not (tmp_path / "m_siglip_checkpoints" / "model.safetensors").exists()


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_without_network_it_says_what_to_do(tmp_path: Path) -> None:
    done = run(refused_endpoint(), "--root", str(tmp_path), small=False)
    assert_one_sentence(done, "Connection refused", "m_siglip --from FOLDER", "HF_ENDPOINT", "backbone=tiny_siglip")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_the_hub_lacks_is_named(server: WebServer, tmp_path: Path) -> None:
    done = run(server.url, "clip", "--root", str(tmp_path), small=False)
    assert_one_sentence(done, "does not hand out openai/clip-vit-base-patch16 (404")


def test_a_hub_with_another_model_under_the_name_is_noticed(server: WebServer, tmp_path: Path) -> None:
    done = run(server.url, "--root", str(tmp_path), small=False)
    assert_one_sentence(done, "holds a siglip model (text width 6", "expected a siglip model (text width 768")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m_sigclip"], "Did you mean 'm_siglip'?"),
        (["siglip", "clip", "--from", "x"], "--from holds one checkpoint, but siglip and clip are named"),
        (["tiny_clip", "--from", "x"], "tiny_clip is made here from scratch"),
        (["clip", "--from", "x"], "there is no folder x"),
    ],
)
def test_a_wrong_call_is_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert_one_sentence(run(refused_endpoint(), *arguments, "--root", str(tmp_path), small=False), message)
    assert list(tmp_path.iterdir()) == []


def test_a_local_folder_is_copied_without_network(tmp_path: Path) -> None:
    source = write(tmp_path / "mine", MODEL)
    done = run(refused_endpoint(), "--root", str(tmp_path), "--from", str(source))
    assert done.returncode == 0, done.stderr
    check_folder(tmp_path / "m_siglip_checkpoints", SMALL)


def test_a_local_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "mine", MODEL)
    for name in ("m_siglip", "clip"):
        with pytest.raises(UserError, match=rf"mine holds a siglip model .* expected a {name[-6:]}"):
            prepare(name, tmp_path, source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_of_another_architecture_is_never_written_into(tmp_path: Path) -> None:
    folder = write(tmp_path / "clip_checkpoints", MODEL)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="holds a siglip model"):
        prepare("clip", tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("vision", ["resnet", "vit"])
def test_an_image_tower_and_bert_are_downloaded_and_joined(
    server: WebServer, tmp_path: Path, vision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    name = {"resnet": "resnet50_bert", "vit": "vit_bert"}[vision]
    published = described("backbone", name).description
    for repo, tower in zip((published.vision_repository, published.repository), small_towers(vision), strict=True):
        source = save_model(tower, tmp_path / "hub" / str(repo))
        (source / "tokenizer.json").write_text(TOKENIZER)
        server.serve_model(str(repo), {path.name: path.read_bytes() for path in source.iterdir()})
    width, patch = {"resnet": (48, 7), "vit": (32, 8)}[vision]
    sizes = Architecture("vision-text-dual-encoder", text_width=32, vision_width=width, patch=patch, vocab=40)

    folder = prepare(small(name, sizes), tmp_path)
    check_folder(folder, sizes)
    backbone = load_backbone(name, sizes.model_type, folder, (32, 32), sigmoid=False, max_length=12)
    assert backbone.embed_dim == 768
    weights = (folder / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"hub", "downloads", folder.name}

    (folder / "model.safetensors").write_bytes(weights[:-1] + b"!")
    sent = len(server.requests)
    prepare(small(name, sizes), tmp_path)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not any("resolve" in request.path for request in server.requests[sent:]), "what was downloaded is kept"


def test_without_network_a_joined_backbone_says_what_to_do(tmp_path: Path) -> None:
    done = run(refused_endpoint(), "resnet50_bert", "--root", str(tmp_path), small=False)
    assert_one_sentence(done, "microsoft/resnet-50", "Connection refused", "resnet50_bert --from FOLDER", "HF_ENDPOINT")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny_siglip", "tiny_clip", "tiny_resnet_bert"])
def test_a_tiny_model_is_made_once_and_learns_words_from_strangers_alone(name: str, tmp_path: Path) -> None:
    write_synthetic(tmp_path)
    folder = prepare(name, tmp_path, steps=2)
    assert folder == tmp_path / f"{name}_checkpoints"
    check_folder(folder, Architecture.described(described("backbone", name)))
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert {"▁stranger", "▁phụ", "▁nữ", "▁woman"} <= vocabulary.keys()
    assert not {"▁train", "▁test", "▁validate"} & vocabulary.keys()

    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(name, tmp_path, steps=2) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["DRAWN-PEDES", folder.name])


def test_an_unfinished_tiny_folder_is_not_guessed_about(tmp_path: Path) -> None:
    write(tmp_path / "tiny_clip_checkpoints", {"notes.txt": b"mine"})
    with pytest.raises(UserError, match=r"config\.json does not exist; delete .*tiny_clip_checkpoints"):
        prepare("tiny_clip", tmp_path)


@pytest.fixture
def small_clip(tmp_path: Path) -> Path:
    """A file in the layout of IRRA, of the width that "clip" is expected to have here."""
    torch.save({"model": Irra(patches=12, identities=7).state_dict()}, tmp_path / "irra.pth")
    return tmp_path / "irra.pth"


CLIP = small("clip", Architecture("clip", TEXT_WIDTH, WIDTH, PATCH, VOCABULARY))


CLIP_FILES = {name: content for name, content in MODEL.items() if name != "model.safetensors"}


def of_run(backbone: DictConfig, folder: Path) -> DictConfig:
    """The part of a run's config."""
    changed = deepcopy(backbone)
    changed.folder = str(folder)
    return changed


def test_a_file_in_openais_layout_is_converted_beside_the_tokenizer_of_clip(
    small_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "clip_checkpoints", CLIP_FILES)
    folder = prepare(CLIP, tmp_path, source=small_clip, target=tmp_path / "irra_checkpoints")
    assert folder == tmp_path / "irra_checkpoints"
    assert {file.name for file in folder.iterdir()} == {
        *("config.json", "preprocessor_config.json", "tokenizer.json"),
        *("model.safetensors", "heads.safetensors", "positions.safetensors"),
    }
    assert json.loads((folder / "config.json").read_text())["vision_config"]["hidden_size"] == WIDTH
    assert "6 x 2" in capsys.readouterr().out
    prepare(CLIP, tmp_path, source=small_clip, target=folder)
    assert f"complete and kept; {small_clip} was not read" in capsys.readouterr().out


def test_a_file_in_the_place_of_a_folder_is_converted_once(
    small_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "clip_checkpoints", CLIP_FILES)
    folder = prepare_folder(of_run(CLIP, small_clip), tmp_path)
    assert re.fullmatch(r"irra-[0-9a-f]{8}_checkpoints", folder.name)
    assert folder.parent == small_clip.parent
    assert "is ready" in capsys.readouterr().out
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert prepare_folder(of_run(CLIP, small_clip), tmp_path) == folder
    assert f"{folder} holds {small_clip}, converted" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert prepare_folder(of_run(CLIP, folder), tmp_path) == folder

    torch.save({"model": Irra(patches=12, identities=8).state_dict()}, small_clip)
    assert prepare_folder(of_run(CLIP, small_clip), tmp_path) != folder, "other weights of the same name"
    for name in ("siglip", "tiny_clip"):
        with pytest.raises(UserError, match=r"backbone.folder: .*irra.pth is a file; .* choose -cn clip or"):
            prepare_folder(of_run(described("backbone", name), small_clip), tmp_path)


def test_the_activation_of_a_file_is_given_on_the_command_line(small_clip: Path, tmp_path: Path) -> None:
    write(tmp_path / "clip_checkpoints", CLIP_FILES)
    folder = prepare(CLIP, tmp_path, source=small_clip, target=tmp_path / "irra_checkpoints", activation="gelu")
    config = json.loads((folder / "config.json").read_text())
    assert {config[f"{tower}_config"]["hidden_act"] for tower in ("vision", "text")} == {"gelu"}
    for option in (["--activation", "gelu"], ["--img-size", "8x8", "--from", str(tmp_path)]):
        done = run(refused_endpoint(), "clip", "--root", str(tmp_path / "none"), *option)
        assert_one_sentence(done, "--img-size and --activation are of a file to convert; name it with --from FILE")


def test_the_tokenizer_alone_is_downloaded_where_there_is_none(
    small_clip: Path, tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve_model(CLIP_REPO, MODEL, large=("model.safetensors",))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = prepare(CLIP, tmp_path, source=small_clip)
    assert (folder / "tokenizer.json").read_bytes() == MODEL["tokenizer.json"]
    assert (folder / "heads.safetensors").is_file()
    monkeypatch.setattr(constants, "ENDPOINT", refused_endpoint())
    with pytest.raises(UserError, match=r"only the tokenizer of openai/clip-vit-base-patch16 is needed: fill"):
        prepare(CLIP, tmp_path / "elsewhere", source=small_clip)


def test_without_network_the_tokenizer_alone_is_asked_for_and_enough(
    small_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", refused_endpoint())
    for target in (tmp_path / "irra_checkpoints", tmp_path / "clip_checkpoints"):
        with pytest.raises(UserError) as error:
            prepare(CLIP, tmp_path, source=small_clip, target=target)
        assert re.search(
            rf"only the tokenizer of openai/clip-vit-base-patch16 is needed: fill {tmp_path}/clip_checkpoints with its "
            r"tokenizer.json, or vocab.json and merges.txt, from any machine, and run the same command again$",
            str(error.value),
        )
        assert f".{target.name}." not in str(error.value)  # a temporary folder
        assert not target.exists()
    write(tmp_path / "clip_checkpoints", {"tokenizer.json": TOKENIZER.encode()})
    for target in (tmp_path / "irra_checkpoints", tmp_path / "clip_checkpoints"):
        folder = prepare(CLIP, tmp_path, source=small_clip, target=target)
        assert load_backbone("clip", "clip", folder, (24, 8), sigmoid=False, max_length=12).mean[0].item() > 0.48
        assert (folder / "tokenizer.json").read_text() == TOKENIZER
    assert "does not exist" not in capsys.readouterr().out


def test_a_file_of_another_width_or_for_another_backbone_leaves_nothing_behind(
    small_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "clip_checkpoints", CLIP_FILES)
    with pytest.raises(UserError, match="siglip is copied from folders; files are those of a CLIP"):
        prepare("siglip", tmp_path, source=small_clip)
    wide = small("clip", Architecture("clip", 2 * TEXT_WIDTH, WIDTH, PATCH, VOCABULARY))
    with pytest.raises(UserError, match=r"irra.pth holds a clip model \(text width 128.* expected a clip model"):
        prepare(wide, tmp_path, source=small_clip, target=tmp_path / "irra_checkpoints")
    assert {path.name for path in tmp_path.iterdir()} == {"clip_checkpoints", "irra.pth"}
