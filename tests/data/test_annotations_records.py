"""Dirt in annotation files: what is accepted, and how the rest is named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.annotations import read_dataset
from data.annotations.entries import Annotation
from data.annotations.identities import merge
from data.annotations.layouts import layout_of
from utils.errors import UserError

Entries = list[Any]


@pytest.fixture
def entries() -> Entries:
    """Eight sound records of four identities: two in train, one in val, one in test."""
    splits = {3: "train", 5: "train", 8: "val", 9: "test"}
    return [
        {"id": pid, "split": split, "file_path": f"cam_a/{pid}_{k}.jpg", "captions": [f"person {pid}", "b"]}
        for pid, split in splits.items()
        for k in (0, 1)
    ]


def write(root: Path, content: Any) -> Path:
    file = root / "CUHK-PEDES" / "reid_raw.json"
    file.parent.mkdir(parents=True)
    (file.parent / "imgs" / "cam_a").mkdir(parents=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def error(root: Path, name: str = "cuhk_pedes", **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_dataset(name, root, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_white_space_is_stripped_and_collapsed(tmp_path: Path, entries: Entries) -> None:
    entries[0]["captions"] = ["  A  man\nin\t BLACK. \u00a0", "Áo  đỏ"]
    write(tmp_path, entries)
    assert read_dataset("cuhk_pedes", tmp_path).train[0].captions == ("A man in BLACK.", "Áo đỏ")


def test_a_lone_string_is_one_caption(tmp_path: Path, entries: Entries) -> None:
    entries[0]["captions"] = "a man in black"
    write(tmp_path, entries)
    assert read_dataset("cuhk_pedes", tmp_path).train[0].captions == ("a man in black",)


def test_images_may_have_any_number_of_captions(tmp_path: Path, entries: Entries) -> None:
    entries[0]["captions"] = [f"caption {k}" for k in range(10)]
    entries[1]["captions"] = ["the only one"]
    write(tmp_path, entries)
    assert [len(record.captions) for record in read_dataset("cuhk_pedes", tmp_path).train[:2]] == [10, 1]


def test_one_record_per_caption_is_merged_into_one_per_image(tmp_path: Path, entries: Entries) -> None:
    split = [dict(entry, captions=[caption]) for entry in entries for caption in entry["captions"]]
    write(tmp_path, split)
    merged = read_dataset("cuhk_pedes", tmp_path)
    write(tmp_path / "whole", entries)
    whole = read_dataset("cuhk_pedes", tmp_path / "whole")
    assert [record[:2] for record in merged.train] == [record[:2] for record in whole.train]
    assert [record.captions for record in merged.train] == [record.captions for record in whole.train]
    assert len(merged.test) == len(whole.test) == 2


def test_a_repeated_record_adds_nothing(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, [entries[0], *entries, dict(entries[0], file_path="./cam_a//3_0.jpg")])
    train = read_dataset("cuhk_pedes", tmp_path).train
    assert len(train) == 4
    assert train[0].captions == ("person 3", "b")


def test_what_nobody_sees_is_stripped_from_captions(tmp_path: Path, entries: Entries) -> None:
    entries[0]["captions"] = ["\ufeffA\u200b man\u200d in\u00ad black\u2060", "\u202aÁo đỏ\u202c", "ชาย", "7"]
    write(tmp_path, entries)
    assert read_dataset("cuhk_pedes", tmp_path).train[0].captions == ("A man in black", "Áo đỏ", "ชาย", "7")


@pytest.mark.parametrize("key", ["id", "captions", "notes"])
def test_a_repeated_key_is_refused_by_name(tmp_path: Path, entries: Entries, key: str) -> None:
    content = json.dumps(entries)
    second = json.dumps(entries[1])
    file = write(tmp_path, content.replace(second, f'{second[:-1]}, "{key}": 7, "{key}": 7}}'))
    assert error(tmp_path).startswith(
        f"{file}, record 2 of 8, key {key!r}: a key that the record has more than once; expected one value: correct"
    )


class Counted(str):
    """Text that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize("records", [2, 2_000])
def test_merging_compares_no_caption_with_all_others(records: int) -> None:
    captions = [Counted(f"caption {number}") for number in range(2_000)]
    each = len(captions) // records
    Counted.compared = 0
    parts = (tuple(captions[n * each : (n + 1) * each]) for n in range(records))
    again = [Annotation(n, 1, "train", "a.jpg", part) for n, part in enumerate(parts, start=1)]
    (image,) = merge([*again, *again], [], layout_of("cuhk_pedes"), {})
    assert image.captions == tuple(captions)
    assert Counted.compared <= 5 * len(captions)


LONG = "\u1ea5" * 1_000_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", int("9" * 4_000)),
        ("split", LONG),
        ("file_path", LONG),
        ("file_path", "/" + LONG),
        ("file_path", f"{LONG[:2_000]}/../../x"),
        ("file_path", "a/" * 100_000 + "\n"),
        ("captions", ["!" * 1_000_000]),
        (LONG, {}),
    ],
    ids=["id", "split", "path", "absolute", "climbing", "line break", "caption", "key"],
)
def test_a_message_is_short_however_long_a_value_is(tmp_path: Path, entries: Entries, key: str, value: Any) -> None:
    del entries[3]["split"]
    entries[3] |= {"split": "train", key: value} if key != LONG else {LONG: value}
    write(tmp_path, entries)
    message = error(tmp_path)
    assert "record 4 of 8" in message
    assert len(message.replace(str(tmp_path), "")) <= 500


def test_records_with_thousands_of_keys_are_told_shortly(tmp_path: Path, entries: Entries) -> None:
    entries[0] = {f"key {n}": n for n in range(5_000)}
    write(tmp_path, entries)
    assert "'key 0', 'key 1', 'key 2', 'key 3', 'key 4', 'key 5', 'key 6', 'key 7', ...)" in error(tmp_path)


def test_a_byte_order_mark_is_accepted(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, "\ufeff" + json.dumps(entries))
    assert len(read_dataset("cuhk_pedes", tmp_path).train) == 4


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("captions", [], "an empty list"),
        ("captions", "  \n ", "caption 1 of 1 is empty"),
        ("captions", ["fine", ""], "caption 2 of 2 is empty"),
        ("captions", ["fine", None], "caption 2 of 2 is null"),
        ("captions", ["fine", ["nested"]], "caption 2 of 2 is a list"),
        ("captions", ["half a pair \ud83d"], "caption 1 of 1 is text with broken Unicode at character 13"),
        ("captions", None, "null"),
        ("captions", {"en": "x"}, "an object"),
        ("id", "3", "a string"),
        ("id", 3.0, "a number with a fraction"),
        ("id", True, "a boolean"),
        ("id", -1, "the number -1"),
        ("id", 2**63, f"the number {2**63}"),
        ("split", "Training", "'Training'"),
        ("split", 1, "a number"),
        ("file_path", "", "'' names no file"),
        ("file_path", ["a.jpg"], "a list"),
        (
            "file_path",
            "../../x.jpg",
            "'../../x.jpg' is absolute or climbs out of the dataset folder",
        ),
        ("file_path", "cam_a/../../x.jpg", "'cam_a/../../x.jpg' is absolute or climbs out"),
        ("file_path", "..\\..\\x.jpg", "is absolute or climbs out of the dataset folder"),
        ("file_path", "/etc/passwd", "'/etc/passwd' is absolute or climbs out"),
        ("file_path", "C:\\x.jpg", "is absolute or climbs out"),
        ("file_path", "a\0.jpg", "'a\\x00.jpg' has a line break or control character (U+0000)"),
        ("file_path", "cam_a/\n1.jpg", "has a line break or control character (U+000A)"),
        ("file_path", "cam_a/1.jpg\u2028", "has a line break or control character (U+2028)"),
        ("captions", ["fine", "\u200b\u200d \ufeff"], "caption 2 of 2 is empty"),
        ("captions", ["...."], "caption 1 of 1 is without a word: '....'"),
        ("captions", "\u200b?!", "caption 1 of 1 is without a word: '?!'"),
        ("captions", "\u3164", "caption 1 of 1 is empty"),
    ],
)
def test_a_wrong_value_is_named_by_file_record_and_key(
    tmp_path: Path, entries: Entries, key: str, value: Any, found: str
) -> None:
    entries[3][key] = value
    file = write(tmp_path, entries)
    expected = {"id": "a whole number", "split": "one of train", "captions": "a sentence or a list"}
    message = error(tmp_path)
    assert message.startswith(f"{file}, record 4 of 8, key {key!r}: ")
    assert found in message
    assert f"; expected {expected.get(key, 'an image path below imgs/')}" in message
    assert f"problems: 1; `uv run python -m data.doctor cuhk_pedes --root {tmp_path}`" in message


@pytest.mark.parametrize("key", ["id", "split", "file_path", "captions"])
def test_a_missing_key_is_named_with_what_the_record_has(tmp_path: Path, entries: Entries, key: str) -> None:
    del entries[6][key]
    file = write(tmp_path, entries)
    message = error(tmp_path)
    assert message.startswith(f"{file}, record 7 of 8, key {key!r}: missing (the record has '")


def test_a_file_without_splits_is_refused(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, [{key: entry[key] for key in entry if key != "split"} for entry in entries])
    assert "a file without splits cannot be used" in error(tmp_path)
    assert "problems: 8;" in error(tmp_path)


@pytest.mark.parametrize(("name", "key"), [("vn3k_en", "en_captions"), ("vn3k_mixed", "en_captions")])
def test_vn3k_needs_the_captions_of_its_language(tmp_path: Path, entries: Entries, name: str, key: str) -> None:
    write(tmp_path, entries).parent.rename(tmp_path / "VN3K")
    (tmp_path / "VN3K" / "reid_raw.json").rename(tmp_path / "VN3K" / "data_captions.json")
    assert f"data_captions.json, record 1 of 8, key {key!r}: missing" in error(tmp_path, name)
    assert len(read_dataset("vn3k_vi", tmp_path).test) == 2


def test_rstpreid_calls_its_path_otherwise(tmp_path: Path, entries: Entries) -> None:
    write(tmp_path, entries).parent.rename(tmp_path / "RSTPReid")
    (tmp_path / "RSTPReid" / "reid_raw.json").rename(tmp_path / "RSTPReid" / "data_captions.json")
    assert "record 1 of 8, key 'img_path': missing (the record has 'id', 'split', 'file_path'" in error(
        tmp_path, "rstpreid"
    )


def test_a_record_that_is_no_object_is_named(tmp_path: Path, entries: Entries) -> None:
    file = write(tmp_path, [*entries, "a man"])
    assert error(tmp_path).startswith(f"{file}, record 9 of 9: a string; expected an object with keys 'id'")


def test_one_image_under_two_identities_is_refused(tmp_path: Path, entries: Entries) -> None:
    entries[2]["file_path"] = entries[0]["file_path"]
    file = write(tmp_path, entries)
    message = error(tmp_path)
    assert message.startswith(f"{file}, record 3 of 8, key 'id': 5 for the image 'cam_a/3_0.jpg'; expected 3")
    assert "record 1, which names the same image" in message


def test_one_image_in_two_splits_is_refused(tmp_path: Path, entries: Entries) -> None:
    entries.append(dict(entries[0], split="test"))
    file = write(tmp_path, entries)
    assert error(tmp_path).startswith(f"{file}, record 9 of 9, key 'split': 'test' for the image")


def test_an_identity_in_two_splits_is_refused(tmp_path: Path, entries: Entries) -> None:
    entries[7]["id"] = 3
    file = write(tmp_path, entries)
    message = error(tmp_path)
    assert message.startswith(f"{file}, record 8 of 8, key 'id': identity 3 is in split 'test'; ")
    assert "expected 'train' as in record 1: an identity belongs to one split" in message


def test_icfg_does_not_excuse_a_single_shared_identity(tmp_path: Path, entries: Entries) -> None:
    entries[7]["id"] = 3
    write(tmp_path, entries).rename(tmp_path / "CUHK-PEDES" / "ICFG-PEDES.json")
    (tmp_path / "CUHK-PEDES").rename(tmp_path / "ICFG-PEDES")
    assert "identity 3 is in split 'test'" in error(tmp_path, "icfg_pedes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotations": []}', r"reid_raw\.json holds an object; expected a JSON list of records"),
        ("[]", r"reid_raw\.json holds an empty list"),
        ("", r"reid_raw\.json is not valid JSON \(line 1, column 1: Expecting value\)"),
        ('[\n {"id": 1,\n  "split" "train"}]', r"is not valid JSON \(line 3, column 11: Expecting ':'"),
        ("[" * 100_000, r"reid_raw\.json is not a list of records"),
    ],
    ids=["object", "empty list", "empty file", "syntax", "depth"],
)
def test_a_file_that_is_no_list_of_records_is_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, content)
    assert re.search(message, error(tmp_path))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path, entries: Entries) -> None:
    file = write(tmp_path, entries)
    file.write_bytes(b'[\n{"captions": ["caf\xe9"]}]')
    assert "reid_raw.json is not UTF-8 (line 2, byte 20)" in error(tmp_path)


def test_a_missing_folder_says_where_it_was_expected_and_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "CUHK_PEDES").mkdir()
    message = error(tmp_path)
    assert f"expected in the folder {tmp_path / 'CUHK-PEDES'}, which does not exist" in message
    assert "ask its authors" in message
    assert "Did you mean 'CUHK_PEDES'?" in message
    assert "which does not exist" in error(tmp_path / "nowhere")


def test_a_missing_annotation_file_says_which_and_what_lies_there(tmp_path: Path, entries: Entries) -> None:
    file = write(tmp_path, entries)
    file.rename(file.with_name("caption_all.json"))
    message = error(tmp_path)
    assert f"needs the annotation file {file}, which is missing" in message
    assert "the folder has caption_all.json instead" in message


def test_an_annotation_file_that_is_a_folder_is_named(tmp_path: Path, entries: Entries) -> None:
    file = write(tmp_path, entries)
    file.unlink()
    file.mkdir()
    assert f"{file} is not a file" in error(tmp_path)


@pytest.mark.parametrize("link", ["imgs", "imgs/cam_a", "imgs/cam_a/9_0.jpg"])
def test_links_to_shared_storage_are_the_users_own(tmp_path: Path, entries: Entries, link: str) -> None:
    file = write(tmp_path, entries)
    image = file.parent / "imgs" / "cam_a" / "9_0.jpg"
    image.write_bytes(b"x")
    path = file.parent / link
    path.rename(tmp_path / "shared")
    path.symlink_to(tmp_path / "shared")
    assert read_dataset("cuhk_pedes", tmp_path).test[0].image_path == image
    assert image.read_bytes() == b"x"


def test_links_within_the_dataset_folder_and_to_it_are_fine(tmp_path: Path, entries: Entries) -> None:
    file = write(tmp_path / "disk", entries)
    images = file.parent / "imgs"
    (images / "cam_a").rename(images / "real")
    (images / "cam_a").symlink_to("real", target_is_directory=True)
    (images / "real" / "x.jpg").write_bytes(b"x")
    (images / "real" / "3_0.jpg").symlink_to("x.jpg")
    (tmp_path / "CUHK-PEDES").symlink_to(file.parent, target_is_directory=True)
    train = read_dataset("cuhk_pedes", tmp_path).train
    assert train[0].image_path == tmp_path / "CUHK-PEDES" / "imgs" / "cam_a" / "3_0.jpg"
