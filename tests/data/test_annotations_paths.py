"""Names of images that systems write in different ways."""

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import data.annotations.paths
from data.annotations import read_dataset
from data.annotations.paths import ImagePaths, nearest_name

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Đường phố/ảnh_ấ.jpg") for form in ("NFC", "NFD"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "CUHK-PEDES" / "imgs"
    folder.mkdir(parents=True)
    return folder


def touch(images: Path, *names: str) -> None:
    for name in names:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()


@pytest.mark.parametrize(
    ("named", "on_disk"),
    [
        ("cam_a\\00001_0.jpg", "cam_a/00001_0.jpg"),
        (".\\cam_a\\.\\1.jpg", "cam_a/1.jpg"),
        ("cam_a\\1.jpg", "cam_a\\1.jpg"),
        ("cam_a/1.JPG", "cam_a/1.jpg"),
        ("Cam_A/1.jpg", "cam_a/1.JPG"),
        ("CAM_A\\1.jpg", "cam_a/1.JPG"),
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        (COMPOSED.upper(), DECOMPOSED),
        ("straße.jpg", "STRASSE.JPG"),
        ("./cam_a//1.jpg", "cam_a/1.jpg"),
    ],
)
def test_the_only_file_that_fits_is_read(images: Path, named: str, on_disk: str) -> None:
    touch(images, on_disk, "other/1.jpg")
    paths = ImagePaths(images)
    assert paths.find(named) == on_disk
    assert (images / on_disk).is_file()


@pytest.mark.parametrize(
    ("named", "on_disk"),
    [
        ("a/1.Jpg", ["a/1.jpg", "a/1.JPG"]),
        ("a/ấ.jpg", [unicodedata.normalize("NFD", "a/Ấ.JPG"), "a/Ấ.JPG"]),
        ("a/1.jpg", []),
        ("a/1.jpg", ["a/2.jpg"]),
        ("a/1.jpg", ["b/1.jpg"]),
    ],
)
def test_where_none_or_several_fit_the_name_stays(images: Path, named: str, on_disk: list[str]) -> None:
    touch(images, *on_disk)
    paths = ImagePaths(images)
    assert paths.find(named) == named
    assert paths.respelled == {}


def test_the_unicode_form_alone_is_no_other_case(images: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "ấ.jpg")
    touch(images, decomposed, "Ấ.jpg")
    assert ImagePaths(images).find("ấ.jpg") == decomposed


def test_folders_are_listed_once_however_many_names_differ(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(images, *(f"{folder}/{number}.JPG" for folder in "ab" for number in range(50)))
    listed: Counter[str] = Counter()
    real = os.listdir

    def counting(folder: Path) -> list[str]:
        listed[str(folder)] += 1
        return real(folder)

    monkeypatch.setattr(data.annotations.paths.os, "listdir", counting)
    paths = ImagePaths(images)
    found = [paths.find(f"{folder}\\{number}.jpg") for folder in "ab" for number in range(50)]
    assert found[-1] == "b/49.JPG"
    assert len(paths.respelled) == 100
    assert len(listed) <= 4  # imgs, a, b, and imgs for names without a slash
    assert set(listed.values()) == {1}


def test_spellings_of_one_file_are_one_image(images: Path, tmp_path: Path) -> None:
    touch(images, "a/1.jpg", "a/2.jpg")
    entries: list[dict[str, Any]] = [
        {"id": 1, "split": "train", "file_path": "a\\1.jpg", "captions": ["one"]},
        {"id": 1, "split": "train", "file_path": "A/1.JPG", "captions": ["two"]},
        {"id": 2, "split": "train", "file_path": "a/2.jpg", "captions": ["three"]},
        {"id": 3, "split": "test", "file_path": "a/3.jpg", "captions": ["four"]},
    ]
    (images.parent / "reid_raw.json").write_text(json.dumps(entries), encoding="utf-8")
    dataset = read_dataset("cuhk_pedes", tmp_path, val_protocol="paper")
    assert [(r.image_path.relative_to(images).as_posix(), r.captions) for r in dataset.train] == [
        ("a/1.jpg", ("one", "two")),
        ("a/2.jpg", ("three",)),
    ]
    assert dataset.respelled == {"a\\1.jpg": "a/1.jpg", "A/1.JPG": "a/1.jpg"}


def test_a_missing_image_says_what_is_there(images: Path) -> None:
    touch(images, "cam_a/00001_0.png", "cam_a/00002_0.jpg")
    assert nearest_name(images / "cam_a" / "00001_0.jpg") == "; there is '00001_0.png'"
    assert nearest_name(images / "cama" / "00001_0.jpg") == "; there is 'cam_a'"
    assert nearest_name(images / "cam_a" / "00003_0.jpg") == ""  # another number is another image
    assert nearest_name(images / "cam_a" / "00001_0.png") == ""
    assert nearest_name(Path("/nowhere/at/all.jpg")) == ""
    assert nearest_name(images / ("x" * 300)) == ""
