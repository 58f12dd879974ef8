"""Further captions of a record, and the languages of captions: how they are read, and what the doctor says of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.annotations import read_dataset
from data.doctor import examine
from data.doctor.tables import render
from utils.errors import UserError

KEY = "captions_para"


def write(root: Path, changes: dict[int, dict[str, Any]] | None = None, name: str = "VN3K") -> Path:
    """Eight records of four identities (train, train, val, test); only those of train have further captions."""
    entries: list[dict[str, Any]] = []
    for pid, split in enumerate(("train", "train", "val", "test")):
        for image in range(2):
            own = {"captions": [f"vi {pid} {image}", "chung"], "en_captions": [f"en {pid} {image}"]}
            more = {KEY: [f"para {pid} {image}", "shared para"]} if split == "train" else {}
            entries.append({"id": pid, "split": split, "file_path": f"{pid}_{image}.jpg"} | own | more)
    for number, change in (changes or {}).items():
        entries[number - 1] |= change
    folder = root / name
    (folder / "imgs").mkdir(parents=True)
    (folder / "data_captions.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_training_records_have_further_captions_beside_their_own(tmp_path: Path) -> None:
    write(tmp_path)
    plain, more = read_dataset("vn3k_vi", tmp_path), read_dataset("vn3k_vi", tmp_path, further=[KEY, "en_captions"])
    assert (more.train, more.val, more.test) == (plain.train, plain.val, plain.test)
    assert plain.further == {}
    assert more.further == {
        KEY: {n: (f"para {n // 2} {n % 2}", "shared para") for n in range(4)},
        "en_captions": {n: (f"en {n // 2} {n % 2}",) for n in range(4)},
    }


def test_records_of_one_image_share_their_further_captions(tmp_path: Path) -> None:
    write(tmp_path, {2: {"file_path": "0_0.jpg"}})
    more = read_dataset("vn3k_vi", tmp_path, further=[KEY])
    assert more.further[KEY][0] == ("para 0 0", "shared para", "para 0 1")
    assert more.train[0].captions == ("vi 0 0", "chung", "vi 0 1")


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({}, "paraphrases", r"record 1 of 8, key 'paraphrases': missing .*expected a sentence or a list of sentences"),
        ({3: {KEY: 7}}, KEY, r"record 3 of 8, key 'captions_para': a number; expected a sentence or a list"),
        ({4: {KEY: ["a man", ""]}}, KEY, r"record 4 of 8, key 'captions_para': caption 2 of 2 is empty; expected"),
        ({4: {KEY: []}}, KEY, r"record 4 of 8, key 'captions_para': an empty list; expected"),
        ({}, "captions", r"dataset.further_captions.captions: vn3k_vi reads captions already; name another key"),
        ({}, "file_path", r"dataset.further_captions.file_path: vn3k_vi reads file_path already"),
    ],
)
def test_absent_and_wrong_further_captions_are_named(
    tmp_path: Path, changes: dict[int, dict[str, Any]], key: str, told: str
) -> None:
    write(tmp_path, changes)
    with pytest.raises(UserError, match=told):
        read_dataset("vn3k_vi", tmp_path, further=[key])


def test_other_splits_need_none_and_may_have_anything(tmp_path: Path) -> None:
    write(tmp_path, {7: {KEY: 5}})
    assert set(read_dataset("vn3k_vi", tmp_path, further=[KEY]).further[KEY]) == {0, 1, 2, 3}


def test_the_languages_of_mixed_captions_are_known(tmp_path: Path) -> None:
    write(tmp_path, {2: {"file_path": "0_0.jpg"}})
    mixed = read_dataset("vn3k_mixed", tmp_path)
    assert mixed.train[0].captions == ("en 0 0", "vi 0 0", "chung", "en 0 1", "vi 0 1")
    assert mixed.caption_languages("train")[:5] == ["en", "vi", "vi", "en", "vi"]
    assert mixed.caption_languages("test") == ["en", "vi", "vi"] * 2
    assert read_dataset("vn3k_vi", tmp_path).caption_languages("test") == []


def test_the_doctor_lists_keys_that_further_captions_can_use(tmp_path: Path) -> None:
    write(tmp_path, {3: {KEY: None}, 5: {KEY: None}, 1: {"camera": "c1", "words": [["a"]]}})
    report = examine("vn3k_vi", tmp_path, decode=False)
    para = report["further_captions"][KEY]
    assert set(report["further_captions"]) == {KEY, "en_captions"}
    assert report["further_captions"]["en_captions"] == {
        "records": 4,
        "train_records": 4,
        "captions": 4,
        "problem": None,
    }
    assert (para["records"], para["captions"]) == (3, 6)
    assert "record 3 of 8, key 'captions_para': null; expected a sentence" in para["problem"]
    assert [warning for warning in report["warnings"] if warning.startswith("no further captions")] == [
        f"no further captions: {para['problem']}"
    ]
    assert "captions_para: 6 in 3 of 4 train records, en_captions: 4 in 4 of 4 train records" in render(report)
