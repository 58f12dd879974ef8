"""The dataset doctor: what it counts, names and returns as exit status."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.doctor import examine, main
from tests.forked import run_python
from utils.errors import UserError

Entries = list[dict[str, Any]]
SPLITS = {1: "train", 2: "train", 4: "train", 11: "val", 12: "test"}


@pytest.fixture
def entries() -> Entries:
    """Nine records: identities 1, 2, 4 (train), 11 (val) with two images each, 12 (test) with one."""
    pairs = [(pid, k) for pid in SPLITS for k in (0, 1) if (pid, k) != (12, 1)]
    return [
        {
            "id": pid,
            "split": SPLITS[pid],
            "file_path": f"{('cam_a', 'Market')[k]}/{pid}_{k}.png",
            "captions": [f"person {pid} seen by camera {k}", f"short {pid}"],
        }
        for pid, k in pairs
    ]


def write(root: Path, entries: Entries) -> Path:
    """Writes the annotation file and a distinct image for each record; returns the image folder."""
    images = root / "CUHK-PEDES" / "imgs"
    for number, entry in enumerate(entries):
        file = images / entry["file_path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((10 + number, 30 + number)).save(file)
    rewrite(root, entries)
    return images


def rewrite(root: Path, entries: Entries) -> None:
    (root / "CUHK-PEDES" / "reid_raw.json").write_text(json.dumps(entries), encoding="utf-8")


def run(root: Path, *arguments: str) -> int:
    return main(["cuhk_pedes", "--root", str(root), *arguments])


def test_a_sound_dataset_is_trainable_and_counted_beside_the_official_sizes(
    tmp_path: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, entries)
    report = examine("cuhk_pedes", tmp_path)
    assert report["trainable"]
    assert report["errors"] == []
    assert report["splits"]["train"] == {
        "records": 6,
        "images": 6,
        "captions": 12,
        "ids": 3,
        "official": {"images": 34_054, "captions": 68_126, "ids": 11_003},
    }
    assert report["splits"]["test"]["images"] == 1
    assert report["validation"] == {"from": "own", "ids": 1}
    assert report["ids"] == {
        "first": 1,
        "last": 12,
        "distinct": 5,
        "unused": 7,
        "with_one_image": 1,
        "restart_in_each_split": False,
        "names": False,
    }
    assert report["images"]["width"] == {"min": 10, "max": 18}
    assert report["images"]["height"] == {"min": 30, "max": 38}
    assert report["captions"]["per_image"] == {"2": 9}
    assert report["captions"]["longest"]["words"] == 6
    expected = "officially 34,054 images, 68,126 captions, 11,003 ids"
    assert report["warnings"][0] == f"train has 6 images, 12 captions, 3 ids; {expected}"

    assert run(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "68,126" in printed
    assert "10 to 18 px wide, 30 to 38 px high" in printed
    assert "1 to 12, 5 identities, 7 numbers unused, 1 with one image" in printed
    assert printed.endswith("This dataset can be trained on.\n")


def test_faulty_images_are_named_and_counted_per_folder(
    tmp_path: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path, entries)
    (images / "cam_a" / "1_0.png").unlink()
    (images / "cam_a" / "2_0.png").write_bytes(b"")
    truncated = images / "cam_a" / "4_0.png"
    Image.effect_noise((64, 128), 50).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    (images / "Market" / "1_1.png").write_text("<html>quota exceeded</html>")
    (images / "Market" / "2_1.png").unlink()
    (images / "Market" / "2_1.png").mkdir()
    report = examine("cuhk_pedes", tmp_path)
    assert not report["trainable"]
    counts = report["images"]["folders"]
    assert counts["imgs/cam_a"] == {"exists": True, "images": 5, "missing": 1, "empty": 1, "unreadable": 1}
    assert counts["imgs/Market"] == {"exists": True, "images": 4, "missing": 0, "empty": 0, "unreadable": 2}
    assert report["errors"] == [
        f"{images}/cam_a/1_0.png: the image is missing",
        f"{images}/Market/1_1.png: the image cannot be read (not an image)",
        f"{images}/cam_a/2_0.png: the image has 0 bytes",
        f"{images}/Market/2_1.png: the image cannot be read (not a file)",
        f"{images}/cam_a/4_0.png: the image cannot be read (image file is truncated)",
    ]
    assert run(tmp_path) == 1
    assert "This dataset cannot be trained on: 5 error(s) to correct." in capsys.readouterr().out


def test_a_missing_image_folder_is_one_error(tmp_path: Path, entries: Entries) -> None:
    images = write(tmp_path, entries)
    shutil.rmtree(images / "Market")
    report = examine("cuhk_pedes", tmp_path)
    assert report["errors"] == [f"{images}/Market: the folder is missing, and all images in it (4)"]
    assert len(report["images"]["faulty"]) == 4


def test_fast_asks_only_whether_images_are_there(
    tmp_path: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path, entries)
    (images / "cam_a" / "1_0.png").write_bytes(b"not an image")
    assert run(tmp_path, "--fast") == 0
    assert "not decoded" in capsys.readouterr().out
    (images / "cam_a" / "1_0.png").write_bytes(b"")
    (images / "cam_a" / "2_0.png").unlink()
    report = examine("cuhk_pedes", tmp_path, decode=False)
    assert [image["fault"] for image in report["images"]["faulty"]] == ["empty", "missing"]
    assert report["images"]["width"] is None


def test_every_bad_record_is_named_not_only_the_first(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, entries)
    entries[0]["captions"] = []
    entries[1].pop("split")
    entries[2]["file_path"] = "/etc/passwd"
    entries[3]["id"] = "2"
    entries[3]["captions"] = [""]
    entries[8]["id"] = 4
    rewrite(tmp_path, entries)
    report = examine("cuhk_pedes", tmp_path)
    places = [error.removeprefix(f"{tmp_path}/CUHK-PEDES/reid_raw.json, ") for error in report["errors"]]
    assert [place.split(": ")[0] for place in places] == [
        "record 1 of 9, key 'captions'",
        "record 2 of 9, key 'split'",
        "record 3 of 9, key 'file_path'",
        "record 4 of 9, key 'id'",
        "record 4 of 9, key 'captions'",
        "record 9 of 9, key 'id'",
    ]
    assert report["splits"]["train"]["records"] == 2
    assert not report["trainable"]


def test_a_split_that_is_missing_altogether_is_an_error(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, entries[:-1])
    report = examine("cuhk_pedes", tmp_path)
    assert len(report["errors"]) == 1
    assert "has no record of split 'test'" in report["errors"][0]
    assert report["validation"] is None


def test_a_file_without_a_sound_record_is_still_reported(
    tmp_path: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, entries)
    rewrite(tmp_path, [{"id": 1}])
    assert run(tmp_path) == 1
    assert "record 1 of 1, key 'split': missing" in capsys.readouterr().out


def test_duplicates_are_found_by_path_caption_and_bytes(tmp_path: Path, entries: Entries) -> None:
    entries[2]["captions"] = ["short 1", "short 2"]
    entries.append(dict(entries[0], captions=["a third caption"]))
    images = write(tmp_path, entries)
    shutil.copy(images / "cam_a" / "1_0.png", images / "cam_a" / "12_0.png")
    shutil.copy(images / "cam_a" / "4_0.png", images / "Market" / "4_1.png")  # one identity: no warning
    report = examine("cuhk_pedes", tmp_path)
    assert report["trainable"]
    assert report["duplicates"] == {
        "merged_records": 1,
        "captions_under_several_ids": [
            {"caption": "short 1", "images": ["cam_a/1_0.png", "Market/1_1.png", "cam_a/2_0.png"]}
        ],
        "image_files_under_several_ids": [["cam_a/1_0.png", "cam_a/12_0.png"]],
    }
    assert report["splits"]["train"]["records"] == 7
    assert report["splits"]["train"]["images"] == 6
    assert report["warnings"][-3:] == [
        "captions shared by several identities: 1",
        "image files shared by several identities: 1",
        "records merged because they name the same image: 1",
    ]


def test_images_that_training_can_read_but_not_learn_from_are_named(
    tmp_path: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path, entries)
    for name in ("cam_a/1_0.png", "cam_a/2_0.png", "cam_a/4_0.png", "cam_a/11_0.png"):
        Image.new("RGB", (10, 30), "white").save(images / name)
    Image.effect_noise((5, 30), 50).save(images / "Market" / "1_1.png")
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "JPEG")
    (images / "Market" / "2_1.png").write_bytes(noise.getvalue()[:-500] + b"\xff\xd9")
    report = examine("cuhk_pedes", tmp_path)
    assert report["trainable"]
    assert {"path": "imgs/cam_a/1_0.png", "oddities": ["constant"]} in report["images"]["odd"]
    assert report["warnings"][-3:] == [
        "images of one color: 4 ('imgs/cam_a/1_0.png', 'imgs/cam_a/2_0.png', 'imgs/cam_a/4_0.png', ...)",
        "images with damaged JPEG data: 1 ('imgs/Market/2_1.png')",
        "images under 8 pixels a side: 1 ('imgs/Market/1_1.png')",
    ]
    assert run(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "images of one color: 4" in printed
    assert "can be trained on" not in printed
    assert printed.endswith("Training would work, but look at the 6 odd images first (see the warnings).\n")


def test_sizes_are_those_of_upright_images(tmp_path: Path, entries: Entries) -> None:
    images = write(tmp_path, entries)
    lying = Image.Exif()
    lying[274] = 6
    for number, entry in enumerate(entries):
        Image.linear_gradient("L").resize((30 + number, 10 + number)).save(images / entry["file_path"], exif=lying)
    report = examine("cuhk_pedes", tmp_path)
    assert report["images"]["width"] == {"min": 10, "max": 18}
    assert report["images"]["height"] == {"min": 30, "max": 38}


def test_names_that_are_spelled_otherwise_are_told(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, entries)
    for entry in entries[:2]:
        entry["file_path"] = entry["file_path"].replace("/", "\\").upper()
    entries[2]["file_path"] = "cam_a/2_0.jpeg"
    entries[3]["file_path"] = "Markt/2_1.png"
    rewrite(tmp_path, entries)
    report = examine("cuhk_pedes", tmp_path)
    assert report["respelled"] == {"CAM_A\\1_0.PNG": "cam_a/1_0.png", "MARKET\\1_1.PNG": "Market/1_1.png"}
    assert report["warnings"][-1] == (
        "image paths spelled differently on disk: 2 "
        r"('cam_a/1_0.png for CAM_A\\1_0.PNG', 'Market/1_1.png for MARKET\\1_1.PNG')"
    )
    folder = tmp_path / "CUHK-PEDES" / "imgs"
    assert report["errors"] == [
        f"{folder}/Markt: the folder is missing, and all images in it (1); there is 'Market'",
        f"{folder}/cam_a/2_0.jpeg: the image is missing; there is '2_0.png'",
    ]


def test_max_length_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--max-length", "64")
    assert ended.value.code == 2


def test_more_errors_than_fit_are_all_in_the_json(
    tmp_path: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path, [dict(entries[0], file_path=f"cam_a/{k}.png") for k in range(25)] + entries)
    for k in range(25):
        (images / "cam_a" / f"{k}.png").unlink()
    assert run(tmp_path) == 1
    printed = capsys.readouterr().out
    assert printed.count("the image is missing") == 10
    assert "and 15 more (--json names all)" in printed
    assert run(tmp_path, "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["errors"]) == 25


def test_the_command_prints_one_json_object_and_ends_with_the_status(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, entries)
    command = ("-m", "data.doctor", "cuhk_pedes", "--json", "--root")
    sound = run_python(*command, tmp_path)
    assert sound.returncode == 0, sound.stderr
    assert json.loads(sound.stdout)["trainable"] is True
    absent = run_python(*command, tmp_path / "x")
    assert absent.returncode == 2
    report = json.loads(absent.stdout)
    assert report["trainable"] is False
    assert "was expected in the folder" in report["errors"][0]


def test_without_json_an_absent_dataset_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CUHK-PEDES, which does not exist"):
        run(tmp_path)


def test_where_no_validation_split_exists_the_doctor_says_what_is_held_out(
    tmp_path: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [entry for entry in entries if entry["split"] != "val"])
    assert run(tmp_path) == 0
    assert "1 identities held out of train (the file has no validation split)" in capsys.readouterr().out
