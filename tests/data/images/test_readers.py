"""All images are looked at before training; those that cannot be read are named at once, or left out and counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.annotations import DatasetSplits, Record
from data.annotations.layouts import SPLITS
from data.images.read import Resize, read_image
from data.images.readers import OpenedImages, open_images
from utils.errors import UserError

RESIZE = Resize((16, 8), "bicubic")
Open = Callable[..., OpenedImages]


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetSplits:
    """Persons with two images of noise each: 14 in train, 2 in val, 2 in test; two captions an image."""
    root = tmp_path / "PEDES"
    (root / "imgs" / "cam").mkdir(parents=True)
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for pid in range(18):
        split = "train" if pid < 14 else "val" if pid < 16 else "test"
        for k in range(2):
            path = root / "imgs" / "cam" / f"{pid:05d}_{k}.png"
            Image.fromarray(np.random.default_rng(2 * pid + k).integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(path)
            splits[split].append(Record(pid, 2 * pid + k, path, ("a", f"caption {pid}")))
    return DatasetSplits("toy", "en", root, **splits, validation="own")


@pytest.fixture(params=["files", "cache"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens images from their files, or from a cache."""
    cache_dir = tmp_path / "caches" if request.param == "cache" else None

    def run(dataset: DatasetSplits, splits: Any = SPLITS, on_broken: str = "error") -> OpenedImages:
        return open_images(
            dataset, splits, RESIZE, cache_dir=cache_dir, on_broken=on_broken, list_in=tmp_path / "outputs" / "run"
        )

    return run


def broken_list(tmp_path: Path) -> list[list[str]]:
    text = (tmp_path / "outputs" / "run" / "broken_images.txt").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]


def test_sound_images_are_read_and_nothing_is_said(dataset: DatasetSplits, opened: Open, tmp_path: Path) -> None:
    left, read = opened(dataset)
    assert (left.train, left.val, left.test) == (dataset.train, dataset.val, dataset.test)
    assert left.skipped == dict.fromkeys(SPLITS, (0, 0, 0))
    assert left.oddities == {}
    record = dataset.val[1]
    assert torch.equal(read(record), read_image(record, RESIZE))
    assert not (tmp_path / "outputs").exists()


def test_all_broken_images_are_named_at_once(dataset: DatasetSplits, opened: Open, tmp_path: Path) -> None:
    bad = dataset.train[3::2] + dataset.test[1:2]
    bad[0].image_path.unlink()
    for record in bad[1:-1]:
        record.image_path.write_bytes(b"")
    bad[-1].image_path.write_bytes(b"<html>quota exceeded</html>")
    with pytest.raises(UserError) as error:
        opened(dataset)
    message, file = str(error.value), tmp_path / "outputs" / "run" / "broken_images.txt"
    assert message.startswith(
        f"14 images in {dataset.folder} cannot be read, see {file} "
        "(imgs/cam/00001_1.png (there is no such file), imgs/cam/00002_1.png (the file is empty), "
    )
    assert message.endswith("...): restore them, or go on without them with dataset.on_broken=skip")
    assert len(message) <= 500
    assert "\n" not in message
    assert broken_list(tmp_path) == [
        [str(record.image_path), f"identity {record.pid}", why]
        for record, why in zip(
            sorted(bad), ["there is no such file", *["the file is empty"] * 12, "not an image"], strict=True
        )
    ]


def test_a_single_one_is_named_with_what_is_there_instead(dataset: DatasetSplits, opened: Open) -> None:
    path = dataset.train[5].image_path
    path.rename(path.with_suffix(".jpeg"))
    with pytest.raises(UserError) as error:
        opened(dataset)
    assert str(error.value) == (
        f"{path} (identity 2) cannot be read (there is no such file; there is '00002_1.jpeg'): "
        "restore it, or go on without it with dataset.on_broken=skip"
    )


def test_skipped_images_leave_with_their_captions_and_identities(
    dataset: DatasetSplits, opened: Open, tmp_path: Path
) -> None:
    bad = [*dataset.train[:3], dataset.test[3]]
    for record in bad:
        record.image_path.write_bytes(b"\xff\xd8\xff\xe0 broken")
    for _ in range(2):  # the second time from what the first left
        left, read = opened(dataset, on_broken="skip")
        assert left.train == dataset.train[3:]
        assert left.val == dataset.val
        assert left.test == dataset.test[:3]
        assert left.skipped == {"train": (3, 6, 1), "val": (0, 0, 0), "test": (1, 2, 0)}
        for record in (*left.train, *left.val, *left.test):
            assert torch.equal(read(record), read_image(record, RESIZE))
        assert [line[0] for line in broken_list(tmp_path)] == [str(record.image_path) for record in bad]


def test_splits_that_are_not_read_are_not_looked_at(dataset: DatasetSplits, opened: Open) -> None:
    for record in dataset.train:
        record.image_path.unlink()
    left, _ = opened(dataset, ["test"], on_broken="skip")
    assert left.train == dataset.train
    assert left.skipped == {"test": (0, 0, 0)}


def test_an_image_of_two_splits_is_looked_at_once(dataset: DatasetSplits, opened: Open, tmp_path: Path) -> None:
    paper = DatasetSplits("toy", "en", dataset.folder, dataset.train, dataset.test, dataset.test, validation="test")
    dataset.test[0].image_path.unlink()
    left, _ = opened(paper, on_broken="skip")
    assert left.val == left.test == dataset.test[1:]
    assert len(broken_list(tmp_path)) == 1


def test_a_split_of_which_nothing_is_left_is_an_error(dataset: DatasetSplits, opened: Open) -> None:
    for record in dataset.val:
        record.image_path.unlink()
    with pytest.raises(UserError, match=r"leaves nothing of split 'val': none of its 4 images in .* can be read"):
        opened(dataset, on_broken="skip")
    for record in (*dataset.train, *dataset.test):
        record.image_path.unlink()
    with pytest.raises(UserError, match="leaves nothing of split 'train'"):
        opened(dataset, on_broken="skip")


def test_a_misspelt_choice_is_refused_before_anything_is_decoded(dataset: DatasetSplits, opened: Open) -> None:
    dataset.train[0].image_path.unlink()
    with pytest.raises(UserError, match=r"dataset\.on_broken=skp is unknown.*Did you mean 'skip'"):
        opened(dataset, on_broken="skp")


def test_images_that_look_odd_are_counted_every_time(dataset: DatasetSplits, opened: Open) -> None:
    for record in dataset.train[:3]:
        Image.new("RGB", (20, 40), "white").save(record.image_path)
    Image.effect_noise((7, 40), 50).save(dataset.test[0].image_path)
    for _ in range(2):
        assert opened(dataset).dataset.oddities == {"constant": 3, "small": 1}
