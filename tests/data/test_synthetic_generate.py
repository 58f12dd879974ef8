import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.synthetic import FOLDER, SyntheticSpec, generate
from data.synthetic.generate import ANNOTATIONS, IMAGES, OLD_FOLDER, PRETRAIN, STAMP, drawing_seconds
from tests.forked import run_python
from utils.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SPEC = SyntheticSpec(train=6, val=2, test=4, pretrain=2, images_per_identity=2, height=64, width=32)


def records_of(folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    return records


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_folder_is_in_the_format_of_vn3k(tmp_path: Path) -> None:
    folder = generate(tmp_path / "data" / "root", SPEC, workers=1)
    assert folder == tmp_path / "data" / "root" / FOLDER
    records = records_of(folder)
    assert [record["id"] for record in records] == [pid for pid in range(1, 13) for _ in range(2)]
    assert [record["split"] for record in records] == ["train"] * 12 + ["validate"] * 4 + ["test"] * 8
    assert sorted(record["file_path"] for record in records) == sorted(os.listdir(folder / IMAGES))
    for record in records:
        assert set(record) == {"id", "file_path", "captions", "en_captions", "split"}
        for key in ("captions", "en_captions"):
            assert len(record[key]) == 2
            assert all(text.strip() and text == unicodedata.normalize("NFC", text) for text in record[key])
        with Image.open(folder / IMAGES / record["file_path"]) as image:
            assert image.size == (32, 64)
            assert image.format == "JPEG"
    assert "ư" in (folder / ANNOTATIONS).read_text(encoding="utf-8")


def test_splits_share_no_identity(tmp_path: Path) -> None:
    splits: dict[str, set[int]] = {}
    for record in records_of(generate(tmp_path, SPEC, workers=1)):
        splits.setdefault(record["split"], set()).add(record["id"])
    assert splits == {"train": set(range(1, 7)), "validate": {7, 8}, "test": set(range(9, 13))}


def test_strangers_lie_apart_and_are_no_record_of_the_dataset(tmp_path: Path) -> None:
    folder = generate(tmp_path, SPEC, workers=1)
    strangers = records_of(folder / PRETRAIN)
    assert [(record["id"], record["split"]) for record in strangers] == [(pid, "train") for pid in (1, 1, 2, 2)]
    assert sorted(record["file_path"] for record in strangers) == sorted(os.listdir(folder / PRETRAIN / IMAGES))
    assert {record["id"] for record in records_of(folder)} == set(range(1, 13))


def test_neither_runs_nor_workers_change_a_byte(tmp_path: Path) -> None:
    one, again, three = (generate(tmp_path / name, SPEC, count) for name, count in (("a", 1), ("b", 1), ("c", 3)))
    assert contents(one) == contents(again) == contents(three)
    other = generate(tmp_path / "d", SyntheticSpec(**{**vars(SPEC), "seed": 1}), workers=1)
    assert records_of(other) != records_of(one)


def test_a_folder_under_the_old_name_is_renamed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = generate(tmp_path, SPEC, workers=1).rename(tmp_path / OLD_FOLDER)
    (old / IMAGES / "mark").touch()
    folder = generate(tmp_path, SPEC, workers=1)
    assert (folder / IMAGES / "mark").exists()
    assert not old.exists()
    assert f"{old} is renamed to {folder}" in capsys.readouterr().out


def test_another_dataset_of_the_old_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / OLD_FOLDER / "imgs").mkdir(parents=True)
    assert generate(tmp_path, SPEC, workers=1).name == FOLDER
    assert os.listdir(tmp_path / OLD_FOLDER) == ["imgs"]


def test_the_same_specification_is_built_once(tmp_path: Path) -> None:
    folder = generate(tmp_path, SPEC, workers=1)
    marked = folder / IMAGES / "mark"
    marked.touch()
    assert generate(tmp_path, SPEC, workers=1) == folder
    assert marked.exists()


@pytest.mark.parametrize("change", ["spec", "version"])
def test_another_specification_or_version_is_built_anew(tmp_path: Path, change: str) -> None:
    folder = generate(tmp_path, SPEC, workers=1)
    stamp = json.loads((folder / STAMP).read_text())
    (folder / IMAGES / "mark").touch()
    if change == "version":
        (folder / STAMP).write_text(json.dumps({**stamp, "version": 0}))
    spec = SPEC if change == "version" else SyntheticSpec(**{**vars(SPEC), "test": 5})
    generate(tmp_path, spec, workers=1)
    assert not (folder / IMAGES / "mark").exists()
    assert {record["id"] for record in records_of(folder)} == set(range(1, 13 if change == "version" else 14))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FOLDER}.lock", FOLDER]


@pytest.mark.parametrize("stamp", [None, "not json", "[]", '{"generator": "another"}'])
def test_a_folder_of_somebody_else_is_kept(tmp_path: Path, stamp: str | None) -> None:
    treasure = tmp_path / FOLDER / "treasure"
    treasure.parent.mkdir()
    treasure.write_text("gold")
    if stamp is not None:
        (tmp_path / FOLDER / STAMP).write_text(stamp)
    with pytest.raises(UserError, match="will not overwrite it"):
        generate(tmp_path, SPEC, workers=1)
    assert treasure.read_text() == "gold"


def test_a_failed_build_leaves_the_earlier_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = generate(tmp_path, SPEC, workers=1)
    before = contents(folder)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        generate(tmp_path, SyntheticSpec(**{**vars(SPEC), "seed": 9}), workers=1)
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FOLDER}.lock", FOLDER]


def test_a_killed_build_is_no_dataset_and_blocks_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.synthetic", "--root", str(tmp_path), "--train", "5000", "--workers", "2"]
    build = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    drawn = f".{FOLDER}.*/{FOLDER}/{IMAGES}/*"
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(drawn)):
        assert build.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    build.send_signal(signal.SIGKILL)
    build.wait()
    assert not (tmp_path / FOLDER).exists()
    folder = generate(tmp_path, SPEC, workers=1)
    assert len(records_of(folder)) == len(os.listdir(folder / IMAGES)) == 24


@pytest.mark.parametrize("change", [{"train": 0}, {"images_per_identity": 0}, {"twin_share": 1.5}, {"height": 8}])
def test_impossible_specifications_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        SyntheticSpec(**change)


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers=0"):
        generate(tmp_path, SPEC, workers=0)


def test_the_command_line_builds_what_it_says(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return run_python("-m", "data.synthetic", "--root", tmp_path, *options)

    sizes = ("--train", "3", "--val", "1", "--test", "2", "--pretrain", "1", "--images-per-identity", "1")
    done = run(*sizes, "--workers", "1")
    assert done.returncode == 0
    assert done.stdout.strip() == str(tmp_path / FOLDER)
    assert len(records_of(tmp_path / FOLDER)) == 6
    refused = run("--train", "-1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: train=-1")


def test_the_time_that_drawing_takes_grows_with_the_number_of_persons() -> None:
    assert 0 < drawing_seconds(SPEC) < drawing_seconds(replace(SPEC, pretrain=10_000))
