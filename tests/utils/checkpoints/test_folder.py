import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from utils.checkpoints.folder import (
    Architecture,
    IncompleteError,
    check_folder,
    copy_folder,
    make_way,
    read_interpolation,
    read_record,
    to_safetensors,
    write_record,
)
from utils.errors import UserError

SMALL = Architecture("siglip", text_width=6, vision_width=4, patch=2, vocab=10)
TABLES = {
    "text_model.embeddings.token_embedding.weight": np.arange(60, dtype=np.float32).reshape(10, 6),
    "vision_model.embeddings.patch_embedding.weight": np.ones((4, 3, 2, 2), dtype=np.float32),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of the architecture `SMALL`."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "siglip"}')
    (made / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    (made / "tokenizer.json").write_text("{}")
    save_file(TABLES, made / "model.safetensors")
    return made


def pickled(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(table) for name, table in TABLES.items()}


def test_a_whole_folder_passes(folder: Path) -> None:
    check_folder(folder, SMALL)
    check_folder(folder, replace(SMALL, vocab=None))


@pytest.mark.parametrize(("resample", "expected"), [(2, "bilinear"), (3, "bicubic"), (None, "bicubic")])
def test_how_images_are_resized_is_read_from_the_folder(folder: Path, resample: int | None, expected: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({} if resample is None else {"resample": resample}))
    assert read_interpolation(folder) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"resample": 1}',
            r"resample is 1, expected 2 \(bilinear\) or 3 \(bicubic\); fill the folder again .* or set",
        ),
        ('{"resample": true}', r"resample is True, expected 2"),
        ('{"resample": [3]}', r"resample is \[3\], expected 2"),
        ("{", r"is not JSON \(.*\), so the interpolation of images is unknown; fill the folder again"),
        (None, r"preprocessor_config\.json does not exist, so the interpolation of images is unknown"),
    ],
)
def test_a_folder_that_does_not_say_how_images_are_resized_is_one_sentence(
    folder: Path, content: str | None, message: str
) -> None:
    path = folder / "preprocessor_config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_interpolation(folder)


@pytest.mark.parametrize("vocabulary", [["spiece.model"], ["vocab.json", "merges.txt"]])
def test_any_kind_of_vocabulary_will_do(folder: Path, vocabulary: list[str]) -> None:
    (folder / "tokenizer.json").unlink()
    for name in vocabulary:
        with pytest.raises(IncompleteError, match="has no tokenizer"):
            check_folder(folder, SMALL)
        (folder / name).write_text("{}")
    check_folder(folder, SMALL)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(IncompleteError, match=rf"{name} does not exist"):
        check_folder(folder, SMALL)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_cut_weights_are_noticed(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(IncompleteError, match=r"model\.safetensors is damaged"):
        check_folder(folder, SMALL)


@pytest.mark.parametrize(("text", "complaint"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
def test_a_broken_config_is_noticed(folder: Path, text: str, complaint: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(IncompleteError, match=complaint):
        check_folder(folder, SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_type", "clip"), ("vocab", 11), ("text_width", 7), ("vision_width", 5), ("patch", 3)],
)
def test_another_architecture_is_told_apart(folder: Path, field: str, value: object) -> None:
    with pytest.raises(UserError, match=r"holds a siglip model .* expected a") as caught:
        check_folder(folder, replace(SMALL, **{field: value}))  # type: ignore[arg-type]
    assert not isinstance(caught.value, IncompleteError)


def test_weights_of_something_else_are_told_apart(folder: Path) -> None:
    save_file({"classifier.weight": np.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="is not a dual encoder"):
        check_folder(folder, SMALL)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_one_flipped_bit_in_a_downloaded_file_is_noticed(folder: Path, name: str) -> None:
    write_record(folder, repo="some/model", revision="abc", files=["model.safetensors", "tokenizer.json"])
    check_folder(folder, SMALL)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(IncompleteError, match=f"{name} is not what was downloaded"):
        check_folder(folder, SMALL)


def test_copying_takes_what_belongs_to_a_checkpoint_and_no_more(folder: Path, tmp_path: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"large")
    copy_folder(folder, tmp_path / "copy", SMALL)
    check_folder(tmp_path / "copy", SMALL)
    assert sorted(os.listdir(tmp_path / "copy")) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    assert sorted(os.listdir(tmp_path)) == ["copy", "made"]


def test_copying_follows_the_links_of_a_hub_cache(folder: Path, tmp_path: Path) -> None:
    blob = (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(blob)
    copy_folder(folder, tmp_path / "copy", SMALL)
    assert not (tmp_path / "copy" / "model.safetensors").is_symlink()
    check_folder(tmp_path / "copy", SMALL)


def test_a_wrong_source_changes_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{folder} holds a siglip model"):
        copy_folder(folder, tmp_path / "copy", replace(SMALL, model_type="clip"))
    with pytest.raises(UserError, match=r"there is no folder .*absent"):
        copy_folder(tmp_path / "absent", tmp_path / "copy", SMALL)
    assert os.listdir(tmp_path) == ["made"]


def test_a_pickled_source_is_converted_on_the_way(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model.bin", tensors())
    copy_folder(folder, tmp_path / "copy", SMALL)
    check_folder(tmp_path / "copy", SMALL)
    assert not (tmp_path / "copy" / "pytorch_model.bin").exists()
    assert not (folder / "model.safetensors").exists()


def test_copying_over_an_unfinished_folder_forgets_its_record(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tokenizer.json").write_text("half")
    write_record(copy, repo="some/model", revision="abc", files=["tokenizer.json"])
    copy_folder(folder, copy, SMALL)
    check_folder(copy, SMALL)
    assert read_record(copy) == {}


def test_whole_weights_step_aside_and_broken_ones_do_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    make_way(weights)
    assert not weights.exists()
    (kept,) = folder.glob("model.*.safetensors")
    assert kept.read_bytes() == before
    assert kept.name in capsys.readouterr().out

    weights.write_bytes(before[:50])
    make_way(weights)
    assert weights.exists()
    make_way(folder / "tokenizer.json")
    assert (folder / "tokenizer.json").exists()


def test_conversion_keeps_every_tensor_even_shared_ones(tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    state = {"a": table, "tied": table, "turned": table.T, "half": table.half(), "scale": torch.tensor(2.5)}
    to_safetensors(pickled(tmp_path / "x.bin", state), tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(loaded[name], tensor.numpy())
    header = (tmp_path / "x.safetensors").read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert metadata == {"format": "pt"}


class _Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_is_refused_unexecuted(tmp_path: Path) -> None:
    pickled(tmp_path / "new.bin", {"weight": _Evil(tmp_path / "executed")})
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"weight": _Evil(tmp_path / "executed")}, protocol=2))
    for name in ("new.bin", "old.bin"):
        with pytest.raises(UserError, match=r"is refused \(it (holds _?io.open, which|is another kind of pickle)"):
            to_safetensors(tmp_path / name, tmp_path / "x.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["new.bin", "old.bin"]


@pytest.mark.parametrize("state", [[1, 2], {"epoch": 3}, {None: torch.zeros(2)}])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, state: object) -> None:
    with pytest.raises(UserError, match="is not a table of tensors"):
        to_safetensors(pickled(tmp_path / "x.bin", state), tmp_path / "x.safetensors")


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    whole = pickled(tmp_path / "x.bin", tensors()).read_bytes()
    for size in (0, 10, len(whole) // 2):
        (tmp_path / "x.bin").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"is refused \(it is (empty|damaged)"):
            to_safetensors(tmp_path / "x.bin", tmp_path / "x.safetensors")
