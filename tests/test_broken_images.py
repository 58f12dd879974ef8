"""A run on a dataset with images that cannot be read: it names all of them, or goes on without them and says so."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import trainer
from data.annotations import read_dataset
from tests.small_run import SMALL
from tests.test_trainer import config
from utils.errors import UserError


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """The small dataset with a white image and three that cannot be read: all of a train person, and one of test."""
    root = tmp_path / "root"
    shutil.copytree(small_root / "DRAWN-PEDES", root / "DRAWN-PEDES")
    (root / "tiny_clip_checkpoints").symlink_to(small_root / "tiny_clip_checkpoints")
    dataset = read_dataset("drawn", root)
    (dataset.train[0].image_path).unlink()
    (dataset.train[1].image_path).write_bytes(b"")
    (dataset.test[0].image_path).write_bytes(b"<html>")
    Image.new("RGB", (32, 64), "white").save(dataset.train[2].image_path)
    return root


def test_all_are_named_before_anything_is_trained(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"^3 images in .* cannot be read, see .*broken_images\.txt") as error:
        trainer.train(config(root, out, "backbone=tiny_clip"))
    assert len(str(error.value)) <= 500
    assert len((out / "broken_images.txt").read_text(encoding="utf-8").splitlines()) == 3
    assert not (out / "checkpoints").exists()


def test_every_record_says_how_many_were_left_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("backbone=tiny_clip", "dataset.on_broken=skip", "trainer.max_epochs=1")
    trainer.train(config(root, out, *options, "loss=nc_itc", small=tuple(o for o in SMALL if "simclr" not in o)))
    printed = capsys.readouterr().out
    (screen,) = (line for line in printed.splitlines() if line.startswith("data "))
    assert (
        "train 22 images, 44 captions, 11 identities; val 8 images, 16 captions, 4 identities; test 7 images" in screen
    )
    assert "images of one color: 1 (`uv run python -m data.doctor drawn" in screen
    assert "left out of train because images cannot be read: images 2, captions 4, identities 1" in screen
    assert "left out of test because images cannot be read: images 1, captions 2, identities 0" in screen
    assert "images left out with their captions because they cannot be read: 1" in printed
    facts = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["run"]
    assert [facts[f"skipped_{split}"] for split in ("train", "val", "test")] == [2, 0, 1]
    assert "skipped_test" in (out / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]


def test_a_test_is_stopped_by_images_of_its_own_split_alone(root: Path, tmp_path: Path) -> None:
    common = ("task=test", "backbone=tiny_clip")
    with pytest.raises(UserError, match=r"\(identity \d+\) cannot be read \(not an image\): restore it, or go on"):
        trainer.test(config(root, tmp_path / "run", *common))
    metrics = trainer.test(config(root, tmp_path / "run", *common, "dataset.on_broken=skip"))
    assert metrics["test/t2i/mAP"] > 0
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["run"]
    assert facts["skipped_test"] == 1
    assert "skipped_train" not in facts
