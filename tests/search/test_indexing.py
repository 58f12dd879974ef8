"""Indexing reads what changed, encodes what is new, loses nothing when it is killed, and never stops at a bad file."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search import indexing
from search.files import Problem
from search.index import Index
from search.indexing import Added
from search.tables import Tables
from tests.search.color_encoder import ColorEncoder, colored, draw, names
from tests.search.dying_indexer import BATCH, PLACES, index_and_die
from utils.errors import UserError


class Watched:
    """An index of `photos` that counts the files it reads."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.photos, self.place = tmp_path / "photos", tmp_path / "index"
        self.encoder = ColorEncoder()
        self.read: list[str] = []
        read = indexing.read_bytes
        monkeypatch.setattr(indexing, "read_bytes", lambda path: (self.read.append(path.name), read(path))[1])

    def update(self) -> Added:
        self.read.clear()
        return Index.open(self.place).add_folder(self.photos, self.encoder)

    def names(self, color: str) -> list[str]:
        index = Index.open(self.place)
        index._encoder = self.encoder
        return names(index, color)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def counts(added: Added) -> dict[str, int]:
    """Returns the counts that are not 0."""
    return {name: value for name, value in added._asdict().items() if isinstance(value, int) and value}


def content(place: Path) -> dict[str, tuple[Any, ...]]:
    """Returns all that an index has of each image."""
    rows = Tables(place)._images.search().to_arrow().to_pylist()
    assert len({row["path"] for row in rows}) == len(rows), "no image is there twice"
    return {row["path"]: (*(row[key] for key in sorted(row) if key != "vector"), *row["vector"]) for row in rows}


def test_only_what_is_new_or_changed_is_read(watched: Watched) -> None:
    draw(watched.photos / "a.png", "red")
    draw(watched.photos / "b.png", "green")
    assert counts(watched.update()) == {"new": 2, "encoded": 2}
    assert counts(watched.update()) == {"unchanged": 2}
    assert watched.read == []
    draw(watched.photos / "a.png", "blue", (20, 20))
    draw(watched.photos / "sub" / "c.JPG", "yellow")
    assert counts(watched.update()) == {"new": 1, "changed": 1, "unchanged": 1, "encoded": 2}
    assert sorted(watched.read) == ["a.png", "c.JPG"]
    assert watched.names("blue")[0] == "a.png"
    assert watched.names("yellow")[0] == "c.JPG"


def test_known_content_is_not_encoded_again(watched: Watched) -> None:
    first = draw(watched.photos / "a.png", "red")
    shutil.copyfile(first, watched.photos / "copy.png")
    assert counts(watched.update()) == {"new": 2, "encoded": 1}
    os.utime(first, ns=(1, 1))
    first.with_name("copy.png").rename(watched.photos / "moved.png")
    assert counts(watched.update()) == {"new": 1, "changed": 1, "gone": 1}
    assert watched.encoder.encoded == 1
    assert sorted(watched.names("red")) == ["a.png", "moved.png"]
    assert counts(watched.update()) == {"unchanged": 2}


def test_files_that_swap_their_content_swap_their_rows(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "BATCH", 1)  # the first file has lost its content when the second one is indexed
    paths = [draw(watched.photos / f"{color}.png", color) for color in ("red", "green")]
    watched.update()
    old = [path.read_bytes() for path in paths]
    for path, new in zip(paths, reversed(old), strict=True):
        path.write_bytes(new + b" ")  # Pillow ignores what follows the image
        path.write_bytes(new)
        os.utime(path, ns=(7, 7))
    watched.update()
    assert watched.names("red")[0] == "green.png"
    assert watched.names("green")[0] == "red.png"


def test_vanished_files_are_removed(watched: Watched) -> None:
    gone = draw(watched.photos / "a.png", "red")
    draw(watched.photos / "b.png", "green")
    watched.update()
    gone.unlink()
    assert counts(watched.update()) == {"unchanged": 1, "gone": 1}
    assert watched.names("red") == ["b.png"]


def test_a_folder_without_any_image_is_refused_and_changes_nothing(watched: Watched) -> None:
    watched.photos.mkdir()
    (watched.photos / "notes.txt").touch()
    with pytest.raises(UserError, match="photos has no image, such as a JPEG"):
        watched.update()
    assert Tables(watched.place).model is None, "no model is bound yet"
    image = draw(watched.photos / "a.png", "red")
    watched.update()
    image.unlink()
    with pytest.raises(UserError, match=r"has no image any more, and the index .* has 1 of it; is its disk mounted\?"):
        watched.update()
    assert watched.names("red") == ["a.png"]


def test_unreadable_files_are_listed_until_they_can_be_read(watched: Watched) -> None:
    good, bad = draw(watched.photos / "good.png", "red"), watched.photos / "bad.png"
    bad.write_bytes(good.read_bytes()[:40])
    (watched.photos / "empty.jpg").touch()
    added = watched.update()
    assert counts(added) == {"new": 1, "encoded": 1}
    assert [Path(path).name for path, _ in added.unreadable] == ["bad.png", "empty.jpg"]
    assert added.unreadable[1].why == "the file is empty"
    assert watched.update().unreadable == added.unreadable
    assert watched.read == [], "they have not changed"
    draw(bad, "green")
    good.write_bytes(b"no image")
    repaired = watched.update()
    assert counts(repaired) == {"new": 1, "encoded": 1}
    assert [Path(path).name for path, _ in repaired.unreadable] == ["empty.jpg", "good.png"]
    assert watched.names("green") == ["bad.png"]
    (watched.photos / "empty.jpg").unlink()
    assert len(watched.update().unreadable) == 1


def test_images_are_turned_as_exif_says(watched: Watched) -> None:
    watched.photos.mkdir()
    upright = Image.new("RGB", (16, 32), (0, 0, 200))
    upright.paste((200, 0, 0), (0, 0, 16, 16))  # red above blue
    upright.save(watched.photos / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    upright.rotate(90, expand=True).save(watched.photos / "turned.png", exif=exif)
    watched.update()
    rows = content(watched.place)
    turned, straight = (np.array(rows[str(watched.photos / name)][-6:]) for name in ("turned.png", "upright.png"))
    assert straight == pytest.approx([0.7071, 0, 0, 0, 0, 0.7071], abs=0.03)  # resizing mixes the middle
    assert turned == pytest.approx(straight, abs=1e-6)


def test_links_hidden_files_and_odd_names_are_left_out(watched: Watched, tmp_path: Path) -> None:
    secret = draw(tmp_path / "elsewhere" / "secret.png", "red")
    draw(watched.photos / "a.png", "green")
    draw(watched.photos / ".trash" / "b.png", "red")
    (watched.photos / "link.png").symlink_to(secret)
    (watched.photos / "folder").symlink_to(secret.parent)
    Path(os.fsdecode(os.fsencode(watched.photos) + b"/\xff.png")).write_bytes(secret.read_bytes())
    added = watched.update()
    assert counts(added) == {"new": 1, "encoded": 1, "links": 2}
    assert added.unreadable == [Problem(f"{watched.photos}/\\xff.png", "its name is not UTF-8")]
    assert watched.names("red") == ["a.png"]


def test_a_folder_that_cannot_be_listed_keeps_its_rows(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(watched.photos / "a.png", "red")
    draw(watched.photos / "closed" / "b.png", "green")
    watched.update()
    scandir = os.scandir

    def refusing(place: str) -> Any:
        if Path(place).name == "closed":
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    added = watched.update()
    assert counts(added) == {"unchanged": 1}
    assert added.unreadable == [Problem(str(watched.photos / "closed"), "Permission denied")]
    assert sorted(watched.names("red")) == ["a.png", "b.png"]


def test_a_folder_in_an_indexed_folder_gives_no_second_rows(watched: Watched) -> None:
    draw(watched.photos / "sub" / "a.png", "red")
    draw(watched.photos / "b.png", "green")
    watched.update()
    assert counts(Index.open(watched.place).add_folder(watched.photos / "sub", watched.encoder)) == {"unchanged": 1}
    assert len(Index.open(watched.place)) == 2


def test_a_second_indexer_is_refused(watched: Watched) -> None:
    draw(watched.photos / "a.png", "red")
    with Tables(watched.place).locked(), pytest.raises(UserError, match=r"another process changes the index .*; wait"):
        watched.update()
    assert counts(watched.update()) == {"new": 1, "encoded": 1}


def test_a_killed_indexing_goes_on_to_the_index_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "BATCH", BATCH)
    photos = tmp_path / "photos"
    paths = colored(photos, 200)
    paths[70].write_bytes(b"no image")
    shutil.copyfile(paths[3], paths[150])
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    there = []
    for when, call in zip(PLACES, (3, 4, 2, 1), strict=True):
        assert index_and_die(photos, killed, when, call) == -9
        there.append(len(content(killed)))
    assert there == [32, 95, 111, 199]
    encoder = ColorEncoder()
    assert counts(Index.open(killed).add_folder(photos, encoder)) == {"unchanged": 199}
    Index.open(whole).add_folder(photos, encoder)
    assert content(killed) == content(whole)
    assert Tables(killed).unreadable() == Tables(whole).unreadable()
