"""One encoder is loaded from a backbone's folder, a checkpoint or a run, and encodes as training and ranking do."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from data.annotations import read_dataset
from data.images.read import Resize, read_image
from encoder_loading import find_model, load_encoder
from model.tbps import build_encoder
from utils.config.resolvers import register_resolvers
from utils.continuing.composed import compose_options
from utils.errors import UserError


def run_of(root: Path, folder: Path, *, scale: float = 1.0) -> Path:
    """Writes the best checkpoint of a run on the tiny SigLIP, with scaled weights, and returns the run."""
    register_resolvers()
    config = compose_options("demo", {}, [f"dataset_root_dir={root}", "img_size_str=64x32"], is_whole=False)
    model = build_encoder(config)
    weights = {f"encoder.{name}": tensor * scale for name, tensor in model.state_dict().items()}
    plain: Any = OmegaConf.to_container(config, resolve=True)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"config": plain, "state_dict": weights, "epoch": 3}, folder / "checkpoints" / "best-003.ckpt")
    return folder


def test_a_backbone_is_loaded_with_the_size_and_the_captions_of_its_pre_training(small_root: Path) -> None:
    loaded = load_encoder(small_root / "tiny_siglip_checkpoints")
    assert (loaded.resize, loaded.tokenize.max_length) == (Resize((128, 128), "bicubic"), 40)
    assert loaded.source == small_root / "tiny_siglip_checkpoints"
    record = read_dataset("drawn", small_root).test[0]
    image = loaded.images(read_image(record, loaded.resize)[None])
    text = loaded.texts([record.captions[0], "một người đàn ông mặc áo đỏ"])
    assert image.shape == (1, loaded.width) == (1, 128)
    assert torch.cat([image, text]).norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize(("name", "length"), [("tiny_clip", 40), ("tiny_siglip", 40)])
def test_a_renamed_folder_is_known_by_its_architecture(
    small_root: Path, tmp_path: Path, name: str, length: int
) -> None:
    shutil.copytree(small_root / f"{name}_checkpoints", tmp_path / "mine")
    renamed, named = load_encoder(tmp_path / "mine"), load_encoder(small_root / f"{name}_checkpoints")
    assert (renamed.config.backbone.name, renamed.tokenize.max_length) == (name, 40)
    assert renamed.fingerprint == named.fingerprint


def test_a_run_is_loaded_from_any_folder_with_its_own_options(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_of(small_root, tmp_path / "run")
    loaded = load_encoder(run)
    assert loaded.source == run / "checkpoints" / "best-003.ckpt"
    assert (loaded.resize.size, loaded.tokenize.max_length) == ((64, 32), 32)
    again = load_encoder(loaded.source)
    assert torch.equal(again.texts(["a red coat"]), loaded.texts(["a red coat"]))
    assert again.fingerprint == loaded.fingerprint


def test_the_fingerprint_is_of_all_that_decides_on_embeddings(small_root: Path, tmp_path: Path) -> None:
    found = {load_encoder(run_of(small_root, tmp_path / str(scale), scale=scale)).fingerprint for scale in (1, 1.01)}
    found |= {load_encoder(small_root / "tiny_siglip_checkpoints").fingerprint}  # the same weights, another size
    assert len(found) == 3


def test_a_copied_run_takes_the_backbone_beside_it(small_root: Path, tmp_path: Path) -> None:
    run_of(small_root, tmp_path / "a" / "outputs" / "run")
    checkpoint = tmp_path / "a" / "outputs" / "run" / "checkpoints" / "best-003.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["backbone"]["folder"] = "tiny_siglip_checkpoints"
    content["config"]["dataset_root_dir"] = "."
    torch.save(content, checkpoint)
    shutil.copytree(small_root / "tiny_siglip_checkpoints", tmp_path / "a" / "tiny_siglip_checkpoints")
    loaded = load_encoder(checkpoint)
    assert loaded.config.backbone.folder == str(tmp_path / "a" / "tiny_siglip_checkpoints")


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file or folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"the folder has neither config\.json nor a run"):
        find_model(tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    with pytest.raises(UserError, match=r"no best checkpoint yet; wait for it, or name .*last\.ckpt"):
        find_model(tmp_path / "run")
    for epoch in (1, 2):
        (folder / f"best-00{epoch}.ckpt").touch()
    with pytest.raises(UserError, match=r"it has 2 best checkpoints; name one of them, such as .*best-002\.ckpt"):
        find_model(tmp_path / "run")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is of a 'bert' model; expected one of siglip, clip"):
        load_encoder(tmp_path)
    (tmp_path / "noise.ckpt").write_bytes(b"noise")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        load_encoder(tmp_path / "noise.ckpt")
