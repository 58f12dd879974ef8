"""Layouts, languages, validation, folds: what `read_dataset` returns for files without dirt."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.annotations import DatasetSplits, Record, read_dataset
from utils.errors import UserError

PLACES = {
    "cuhk_pedes": ("CUHK-PEDES", "reid_raw.json", "file_path"),
    "icfg_pedes": ("ICFG-PEDES", "ICFG-PEDES.json", "file_path"),
    "rstpreid": ("RSTPReid", "data_captions.json", "img_path"),
    "vn3k_vi": ("VN3K", "data_captions.json", "file_path"),
    "vn3k_en": ("VN3K", "data_captions.json", "file_path"),
    "vn3k_mixed": ("VN3K", "data_captions.json", "file_path"),
    "drawn": ("DRAWN-PEDES", "data_captions.json", "file_path"),
}


def entry(pid: int, split: str, number: int, path_key: str = "file_path") -> dict[str, Any]:
    return {
        "id": pid,
        "split": split,
        path_key: f"cam_a/{pid:04d}_{number}.jpg",
        "captions": [f"người {pid} ảnh {number}", f"một người {pid}"],
        "en_captions": [f"person {pid} image {number}"],
        "processed_tokens": [["ignored"]],
    }


def write(root: Path, name: str, ids: dict[str, range], *, file: str | None = None) -> Path:
    """Writes two images for each identity of each split and returns the dataset folder."""
    folder, usual, path_key = PLACES[name]
    entries = [entry(pid, split, k, path_key) for split in ids for pid in ids[split] for k in (0, 1)]
    (root / folder).mkdir(parents=True)
    (root / folder / (file or usual)).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return root / folder


def pids(records: list[Record]) -> set[int]:
    return {record.pid for record in records}


def everything(splits: DatasetSplits) -> list[Record]:
    return splits.train + splits.val + splits.test


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("val_name", ["val", "validate"])
def test_every_layout_is_read_with_raw_ids_and_paths_below_imgs(tmp_path: Path, name: str, val_name: str) -> None:
    folder = write(tmp_path, name, {"train": range(7, 12), val_name: range(20, 22), "test": range(40, 43)})
    splits = read_dataset(name, tmp_path)
    assert (splits.name, splits.folder) == (name, folder)
    assert pids(splits.train) == {7, 8, 9, 10, 11}
    assert pids(splits.val) == {20, 21}
    assert pids(splits.test) == {40, 41, 42}
    assert splits.validation == "own"
    assert not splits.val_is_test
    assert splits.train[1].image_path == folder / "imgs" / "cam_a" / "0007_1.jpg"
    assert [record.image_id for record in everything(splits)] == list(range(20))


@pytest.mark.parametrize("file", ["ICFG-PEDES.json", "ICFG_PEDES.json"])
def test_both_spellings_of_the_icfg_file_are_accepted(tmp_path: Path, file: str) -> None:
    write(tmp_path, "icfg_pedes", {"train": range(4), "test": range(4, 6)}, file=file)
    assert pids(read_dataset("icfg_pedes", str(tmp_path)).test) == {4, 5}


def test_icfg_may_number_each_split_from_zero(tmp_path: Path) -> None:
    write(tmp_path, "icfg_pedes", {"train": range(4), "test": range(2)})
    file = tmp_path / "ICFG-PEDES" / "ICFG-PEDES.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    for number, item in enumerate(entries):
        item["file_path"] = f"{item['split']}/{number}.jpg"
    file.write_text(json.dumps(entries), encoding="utf-8")
    assert pids(read_dataset("icfg_pedes", tmp_path).test) == {0, 1}


VI, EN = ("người 1 ảnh 0", "một người 1"), ("person 1 image 0",)


@pytest.mark.parametrize(
    ("name", "language", "captions"),
    [
        ("vn3k_vi", None, VI),
        ("vn3k_en", None, EN),
        ("vn3k_mixed", None, EN + VI),
        ("drawn", None, EN),
        ("drawn", "vi", VI),
        ("drawn", "mixed", EN + VI),
        ("vn3k_vi", "en", EN),
        ("cuhk_pedes", "en", VI),
    ],
)
def test_language_chooses_the_captions(
    tmp_path: Path, name: str, language: str | None, captions: tuple[str, ...]
) -> None:
    write(tmp_path, name, {"train": range(1, 4), "val": range(4, 5), "test": range(5, 6)})
    assert read_dataset(name, tmp_path, language=language).train[0].captions == captions


def test_a_dataset_has_only_the_languages_it_holds(tmp_path: Path) -> None:
    write(tmp_path, "cuhk_pedes", {"train": range(3), "test": range(3, 4)})
    with pytest.raises(UserError, match=r"language=vi is not in dataset cuhk_pedes; expected 'en'"):
        read_dataset("cuhk_pedes", tmp_path, language="vi")
    with pytest.raises(UserError, match=r"'vi' or 'en' or 'mixed'.*Did you mean 'mixed'"):
        read_dataset("vn3k_vi", tmp_path, language="mix")


def test_without_a_validation_split_identities_are_held_out_of_train_by_seed(tmp_path: Path) -> None:
    write(tmp_path, "icfg_pedes", {"train": range(50), "test": range(50, 60)})
    splits = read_dataset("icfg_pedes", tmp_path)
    assert splits.validation == "held_out"
    assert len(pids(splits.val)) == 5
    assert not pids(splits.val) & pids(splits.train)
    assert pids(splits.val) | pids(splits.train) == set(range(50))
    assert len(splits.val) == 10  # both images of each identity follow it
    assert pids(splits.test) == set(range(50, 60))
    assert read_dataset("icfg_pedes", tmp_path) == splits
    assert pids(read_dataset("icfg_pedes", tmp_path, seed=1).val) != pids(splits.val)
    assert len(pids(read_dataset("icfg_pedes", tmp_path, val_identities=17).val)) == 17


def test_no_more_than_400_identities_are_held_out_by_default(tmp_path: Path) -> None:
    write(tmp_path, "vn3k_vi", {"train": range(1, 5001), "test": range(5001, 5003)})
    assert len(pids(read_dataset("vn3k_vi", tmp_path).val)) == 400


def test_the_paper_protocol_validates_on_test_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, "vn3k_vi", {"train": range(1, 11), "test": range(11, 14)})
    splits = read_dataset("vn3k_vi", tmp_path, val_protocol="paper")
    assert splits.val_is_test
    assert splits.val == splits.test
    assert pids(splits.train) == set(range(1, 11))


def test_the_paper_protocol_keeps_a_validation_split_that_the_file_has(tmp_path: Path) -> None:
    write(tmp_path, "cuhk_pedes", {"train": range(1, 11), "val": range(11, 13), "test": range(13, 14)})
    splits = read_dataset("cuhk_pedes", tmp_path, val_protocol="paper")
    assert not splits.val_is_test
    assert pids(splits.val) == {11, 12}


def test_folds_are_disjoint_shares_of_the_identities_and_cover_them(tmp_path: Path) -> None:
    write(tmp_path, "cuhk_pedes", {"train": range(1, 104), "val": range(200, 203), "test": range(300, 304)})
    whole = read_dataset("cuhk_pedes", tmp_path)
    folds = [read_dataset("cuhk_pedes", tmp_path, proportion=0.1, fold_id=k) for k in range(10)]
    assert {len(pids(fold.train)) for fold in folds} == {10, 11}
    assert sum(len(pids(fold.train)) for fold in folds) == 103
    assert set.union(*(pids(fold.train) for fold in folds)) == set(range(1, 104))
    for fold in folds:
        assert fold.train == [record for record in whole.train if record.pid in pids(fold.train)]
        assert (fold.val, fold.test) == (whole.val, whole.test)
    other = read_dataset("cuhk_pedes", tmp_path, proportion=0.1, seed=1)
    assert pids(other.train) != pids(folds[0].train)


def test_folds_leave_held_out_identities_alone(tmp_path: Path) -> None:
    write(tmp_path, "icfg_pedes", {"train": range(40), "test": range(40, 50)})
    whole = read_dataset("icfg_pedes", tmp_path)
    halves = [read_dataset("icfg_pedes", tmp_path, proportion=0.5, fold_id=k) for k in (0, 1)]
    assert [half.val for half in halves] == [whole.val, whole.val]
    assert pids(halves[0].train) | pids(halves[1].train) == pids(whole.train)
    assert not pids(halves[0].train) & pids(halves[1].train)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proportion": 0.0}, r"dataset\.proportion=0\.0 is not a share"),
        ({"proportion": 1.5}, r"dataset\.proportion=1\.5 is not a share"),
        ({"proportion": 0.01}, r"of 9 train identities leaves none in fold 0"),
        ({"proportion": 0.1, "fold_id": 10}, r"dataset\.fold_id=10 does not exist.*expected 0 to 9"),
        ({"fold_id": 1}, r"dataset\.fold_id=1 does not exist.*expected 0\."),
        ({"fold_id": -1}, r"dataset\.fold_id=-1 does not exist"),
        ({"val_identities": 10}, r"dataset\.val_identities=10 cannot be held out of the 10 train identities"),
        ({"val_identities": 0}, r"expected 1 to 9"),
        ({"val_identities": 2, "val_protocol": "paper"}, r"val_identities=2 has no effect"),
        ({"val_protocol": "papers"}, r"val_protocol=papers is unknown.*Did you mean 'paper'"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    write(tmp_path, "vn3k_vi", {"train": range(1, 11), "test": range(11, 14)})
    with pytest.raises(UserError, match=message):
        read_dataset("vn3k_vi", tmp_path, **arguments)


def test_holding_out_has_nothing_to_do_where_the_file_has_a_validation_split(tmp_path: Path) -> None:
    write(tmp_path, "rstpreid", {"train": range(5), "val": range(5, 7), "test": range(7, 9)})
    with pytest.raises(UserError, match=r"val_identities=2 has no effect because rstpreid .* its own"):
        read_dataset("rstpreid", tmp_path, val_identities=2)


@pytest.mark.parametrize("present", ["train", "test"])
def test_train_and_test_must_both_be_there(tmp_path: Path, present: str) -> None:
    write(tmp_path, "rstpreid", {present: range(5)})
    absent = {"train": "test", "test": "train"}[present]
    with pytest.raises(UserError, match=rf"data_captions\.json has no record of split '{absent}'"):
        read_dataset("rstpreid", tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"), [("cuhk_pede", "cuhk_pedes"), ("CUHK-PEDES", "cuhk_pedes"), ("vn3k_mix", "vn3k_mixed")]
)
def test_an_unknown_name_names_the_nearest(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"no dataset '{name}'.*Did you mean '{meant}'"):
        read_dataset(name, tmp_path)
