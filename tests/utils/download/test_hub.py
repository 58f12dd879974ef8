import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import load_file, save

from tests.http_server import COMMIT, WebServer, web_server
from utils.checkpoints.folder import read_record
from utils.download import download as download_module
from utils.download.download import UnreachableError, sha256_of
from utils.download.hub import download_folder, list_files
from utils.errors import UserError

REPO = "some/model"
TABLE = np.arange(300_000, dtype=np.float32)
FILES = {
    "config.json": b'{"model_type": "siglip"}',
    "preprocessor_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}' * 1000,
    "model.safetensors": save({"table": TABLE}),
    "README.md": b"not needed",
    "flax_model.msgpack": b"not needed either",
    "onnx/config.json": b"of another folder",
}
NEEDED = {name: FILES[name] for name in list(FILES)[:4]}
WEIGHTS = "/cdn/model.safetensors"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(download_module, "PAUSE", 0.0)
    with web_server() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        running.serve_model(REPO, FILES, large=("model.safetensors", "tokenizer.json"))
        yield running


def content(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint folder but for the record of the download."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "hub.json"}


def fetched(server: WebServer) -> list[str]:
    """Names of the files that were asked for, in order."""
    paths = [request.path for request in server.requests if not request.path.startswith("/api/")]
    return [path.rpartition("/")[2] for path in paths]


def test_a_download_takes_what_is_needed_weights_last_and_notes_it(server: WebServer, tmp_path: Path) -> None:
    download_folder(REPO, tmp_path / "model")
    assert content(tmp_path / "model") == NEEDED
    assert sorted(fetched(server)) == sorted(NEEDED)
    assert fetched(server)[-1] == "model.safetensors"
    record = read_record(tmp_path / "model")
    assert (record["repo"], record["revision"]) == (REPO, COMMIT)
    assert record["sha256"] == {name: sha256_of(tmp_path / "model" / name) for name in NEEDED}


def test_the_listing_has_sizes_and_sums(server: WebServer) -> None:
    revision, files = list_files(REPO)
    assert revision == COMMIT
    assert files.keys() == FILES.keys()
    assert all(files[name].size == len(FILES[name]) for name in FILES)
    assert {name for name in files if files[name].sha256} == {"model.safetensors", "tokenizer.json"}


def test_a_cut_connection_is_continued(server: WebServer, tmp_path: Path) -> None:
    cut = 5 * download_module.CHUNK
    server.cuts[WEIGHTS] = [cut]
    download_folder(REPO, tmp_path / "model")
    assert content(tmp_path / "model") == NEEDED
    size = len(NEEDED["model.safetensors"])
    assert server.sent(WEIGHTS) == [(0, cut), (cut, size - cut)]


def test_an_interrupted_download_is_completed_by_the_next(server: WebServer, tmp_path: Path) -> None:
    cut = 5 * download_module.CHUNK
    server.cuts[WEIGHTS] = [cut] + [0] * download_module.ATTEMPTS
    with pytest.raises(UnreachableError, match=f"{cut} bytes of it are kept"):
        download_folder(REPO, tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()
    server.cuts.clear()
    server.requests.clear()

    download_folder(REPO, tmp_path / "model")
    assert content(tmp_path / "model") == NEEDED
    assert fetched(server) == ["model.safetensors"]
    assert server.sent(WEIGHTS) == [(cut, len(NEEDED["model.safetensors"]) - cut)]


def test_only_what_is_damaged_is_fetched_again(server: WebServer, tmp_path: Path) -> None:
    download_folder(REPO, tmp_path / "model")
    server.requests.clear()
    (tmp_path / "model" / "config.json").write_bytes(FILES["config.json"][:-1] + b" ")
    (tmp_path / "model" / "tokenizer.json").write_bytes(b"short")
    download_folder(REPO, tmp_path / "model")
    assert content(tmp_path / "model") == NEEDED
    assert sorted(fetched(server)) == ["config.json", "tokenizer.json"]


def test_weights_of_ones_own_are_kept_beside_the_hubs(server: WebServer, tmp_path: Path) -> None:
    own = save({"table": TABLE + 1})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(own)
    download_folder(REPO, tmp_path / "model")
    found = content(tmp_path / "model")
    assert found.pop("model.safetensors") == NEEDED["model.safetensors"]
    assert own in found.values()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_sum_than_the_listing_is_refused(server: WebServer, tmp_path: Path, name: str) -> None:
    path = next(path for path in server.files if path.endswith(f"/{name}"))
    server.files[path] = server.files[path][:-1] + b"!"
    with pytest.raises(UserError, match=rf"{name} (arrived with SHA-256|does not match the hub's own checksum)"):
        download_folder(REPO, tmp_path / "model")
    assert not (tmp_path / "model" / name).exists()
    assert not (tmp_path / "model" / "hub.json").exists()


def serve_pickled(server: WebServer) -> None:
    """Publishes the model with pytorch_model.bin instead of safetensors, as OpenAI's CLIP is."""
    stream = io.BytesIO()
    torch.save({"table": torch.from_numpy(TABLE)}, stream)
    files = {name: data for name, data in FILES.items() if name != "model.safetensors"}
    server.serve_model(REPO, files | {"pytorch_model.bin": stream.getvalue()}, large=("pytorch_model.bin",))


def test_pickled_weights_are_converted_once(server: WebServer, tmp_path: Path) -> None:
    serve_pickled(server)
    download_folder(REPO, tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == sorted([*NEEDED, "hub.json"])
    np.testing.assert_array_equal(load_file(tmp_path / "model" / "model.safetensors")["table"], TABLE)

    (tmp_path / "model" / "tokenizer.json").unlink()
    server.requests.clear()
    download_folder(REPO, tmp_path / "model")
    assert fetched(server) == ["tokenizer.json"]


def test_converted_weights_that_are_damaged_are_fetched_again(server: WebServer, tmp_path: Path) -> None:
    serve_pickled(server)
    download_folder(REPO, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    download_folder(REPO, tmp_path / "model")
    np.testing.assert_array_equal(load_file(weights)["table"], TABLE)


def test_a_repository_without_weights_is_refused(server: WebServer, tmp_path: Path) -> None:
    server.serve_model(REPO, {"config.json": b"{}", "tf_model.h5": b""})
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        download_folder(REPO, tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("answer", [b"<html>log in</html>", b"[]", b"{}", b'{"sha": "a", "siblings": ["x"]}'])
def test_an_endpoint_that_is_no_hub_is_recognised(server: WebServer, answer: bytes) -> None:
    server.files[f"/api/models/{REPO}"] = answer
    with pytest.raises(UserError, match="does not answer as the Hugging Face hub does; look at HF_ENDPOINT"):
        list_files(REPO)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, UserError, "does not hand out some/model"),
        (404, UserError, "does not hand out some/model"),
        (503, UnreachableError, "answered 503"),
    ],
)
def test_an_endpoint_that_refuses_is_quoted(
    server: WebServer, status: int, kind: type[UserError], message: str
) -> None:
    server.statuses[f"/api/models/{REPO}"] = [status]
    with pytest.raises(kind, match=message):
        list_files(REPO)


def test_offline_mode_asks_nobody(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set"):
        list_files(REPO)
    assert server.requests == []


def test_a_token_does_not_follow_the_redirect_to_another_host(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server() as elsewhere:
        elsewhere.files[WEIGHTS] = FILES["model.safetensors"]
        path = f"/{REPO}/resolve/{COMMIT}/model.safetensors"
        server.redirects[path] = elsewhere.url.replace("127.0.0.1", "localhost") + WEIGHTS
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        download_folder(REPO, tmp_path / "model")
        assert {request.authorization for request in server.requests} == {"Bearer hf_secret"}
        assert [request.authorization for request in elsewhere.requests] == [None]
