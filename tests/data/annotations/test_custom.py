"""dataset=custom: annotations of one's own, with or without identities, splits and languages."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data.annotations import DatasetSplits, read_dataset
from data.annotations.identities import NO_IDENTITIES
from utils.errors import UserError

Rows = list[dict[str, Any]]
SPLITS = ["train"] * 6 + ["val", "test"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users name their files from the folder in which they are."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows() -> Rows:
    """Two images of each of eight persons: six in train, one in val, one in test."""
    return [
        {"path": f"cam/{person}_{k}.jpg", "caption": f"man {person}, {k}", "identity": f"p{person}", "split": split}
        for person, split in enumerate(SPLITS)
        for k in (0, 1)
    ]


def write(root: Path, rows: Rows, name: str = "people.csv") -> None:
    (root / "photos").mkdir(exist_ok=True)
    with (root / name).open("w", encoding="utf-8", newline="") as file:
        if name.endswith(".json"):
            json.dump(rows, file)
        elif name.endswith(".jsonl"):
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)


def read(root: Path, name: str = "people.csv", columns: Any = None, dataset: str = "custom", **options: Any) -> Any:
    given = {"annotations": name, "images": "photos/", "columns": columns or {}}
    return read_dataset(dataset, root, given=given, **options)


def error(root: Path, name: str = "people.csv", columns: Any = None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(root, name, columns, **options)
    return str(caught.value)


def contents(dataset: DatasetSplits) -> list[Any]:
    return [dataset.train, dataset.val, dataset.test, dict(dataset.names)]


@pytest.mark.parametrize("name", ["people.tsv", "people.json", "people.jsonl", "people.parquet"])
def test_every_format_gives_the_same_dataset(tmp_path: Path, rows: Rows, name: str) -> None:
    write(tmp_path, rows)
    if name == "people.parquet":
        table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / name)
    else:
        write(tmp_path, rows, name)
    dataset = read(tmp_path)
    assert contents(read(tmp_path, name)) == contents(dataset)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [12, 2, 2]
    assert dataset.train[2] == (1, 2, tmp_path / "photos" / "cam" / "1_0.jpg", ("man 1, 0",))
    assert dataset.names == {number: f"p{number}" for number in range(8)}
    assert (dataset.validation, dataset.language, dataset.pairs_only) == ("own", "unknown", False)


def test_the_first_screen_says_how_the_file_was_read(tmp_path: Path, rows: Rows) -> None:
    write(tmp_path, [{"ID": row["identity"], "Image": row["path"], "text": row["caption"]} for row in rows])
    assert read(tmp_path).notes == (
        "people.csv is read as CSV with commas: path 'Image', captions 'text', identity 'ID'",
        "identities are 8 names, numbered in sorted order",
        "no splits: the test split is cut by identity (split_seed=0)",
    )


def test_columns_can_be_named_and_several_hold_captions(tmp_path: Path, rows: Rows) -> None:
    own = [
        {
            "where": row["path"],
            "a": row["caption"],
            "b": ["", '["one  more", "a third"]'][n % 2],
            "who": 10 + n // 2,
            "fold": "x",
        }
        for n, row in enumerate(rows)
    ]
    write(tmp_path, own)
    columns = {"path": "where", "captions": ["a", "b"], "identity": "who", "split": "none"}
    dataset = read(tmp_path, columns=columns)
    everyone = dataset.train + dataset.val + dataset.test
    captions = {record.image_path.name: record.captions for record in everyone}
    assert captions["0_0.jpg"] == ("man 0, 0",), "an empty cell is no caption"
    assert captions["0_1.jpg"] == ("man 0, 1", "one more", "a third")
    assert {record.pid for record in everyone} == set(range(10, 18)), "whole numbers stay as they are"
    assert (dataset.names, dataset.languages, dataset.language) == ({}, {}, "unknown")


def test_captions_of_several_languages(tmp_path: Path, rows: Rows) -> None:
    write(tmp_path, [row | {"vi": "người đàn ông", "lang": ["en", "vi"][n % 2]} for n, row in enumerate(rows)])
    both = {"en": "caption", "vi": "vi", "mixed": ["caption", "vi"]}
    mixed = read(tmp_path, columns={"captions": both, "language": "none"}, language="mixed")
    assert (mixed.train[0].captions, mixed.languages[0]) == (("man 0, 0", "người đàn ông"), ("en", "vi"))
    vi = read(tmp_path, columns={"captions": both, "language": "none"}, language="vi")
    assert (vi.train[0].captions, vi.languages, vi.language) == (("người đàn ông",), {}, "vi")
    by_row = read(tmp_path)
    assert (by_row.language, by_row.languages[0], by_row.languages[1]) == ("mixed", ("en",), ("vi",))
    asked = read(tmp_path, language="vi")
    assert (asked.language, asked.languages, len(asked.train)) == ("vi", {}, 6)
    assert asked.notes[-1] == "records in other languages are left out: 8"
    assert "dataset.language=fr: no valid record in" in error(tmp_path, language="fr")
    assert "exclude each other" in error(tmp_path, columns={"captions": both})


def test_without_identities_each_image_is_a_person(tmp_path: Path, rows: Rows) -> None:
    kept = [{"path": row["path"], "caption": row["caption"]} for row in rows]
    write(tmp_path, [*kept, {"path": kept[0]["path"], "caption": "another"}])
    dataset = read(tmp_path)
    everyone = dataset.train + dataset.val + dataset.test
    assert sorted(record.pid for record in everyone) == list(range(16))
    assert next(record for record in everyone if record.pid == 0).captions == ("man 0, 0", "another")
    assert dataset.pairs_only
    assert NO_IDENTITIES in dataset.notes
    write(tmp_path, rows)
    assert read(tmp_path, columns={"identity": "none"}).pairs_only


def test_the_test_split_is_cut_by_identity_and_seed(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.jpg", "caption": "a man", "person": f"p{n // 3}"} for n in range(300)]
    write(tmp_path, rows)
    first, again, other = (read(tmp_path, seed=seed) for seed in (0, 0, 1))
    people = [{record.pid for record in split} for split in (first.train, first.val, first.test)]
    assert [len(part) for part in people] == [81, 9, 10]
    assert len(set.union(*people)) == 100
    assert [len(split) for split in (first.train, first.val, first.test)] == [243, 27, 30]
    assert first.test == again.test != other.test
    assert len(read(tmp_path, val_identities=20).val) == 60
    write(tmp_path, rows[:3])
    assert "people.csv has too few identities to cut them into train, val and test" in error(tmp_path)


def test_numbers_beside_names_are_names_in_a_text_file(tmp_path: Path, rows: Rows) -> None:
    for row, name in zip(rows, ["7", "07"] + ["10"] * 10 + ["val"] * 2 + ["test"] * 2, strict=True):
        row["identity"] = name
    write(tmp_path, rows)
    assert read(tmp_path).names == {0: "07", 1: "10", 2: "7", 3: "test", 4: "val"}


def test_numbers_beside_names_are_refused_by_record_where_types_are_known(tmp_path: Path, rows: Rows) -> None:
    rows[3]["identity"] = 7
    write(tmp_path, rows, "people.json")
    assert (
        "record 4 of 16, key 'identity': a number 7; expected a name as in record 1: identities are numbers or names"
    ) in error(tmp_path, "people.json")


@pytest.mark.parametrize(
    ("record", "change", "told"),
    [
        (5, {"caption": " "}, "record 5 of 16, key 'caption': an empty cell; expected a sentence or a JSON list"),
        (5, {"caption": "['a', 'b']"}, "record 5 of 16, key 'caption': \"['a', 'b']\", which is in brackets, but not"),
        (2, {"identity": ""}, "record 2 of 16, key 'identity': an empty cell; expected a whole number, 0 or more, or"),
        (2, {"split": "dev"}, "record 2 of 16, key 'split': 'dev'; expected one of train, val"),
        (2, {"path": "/etc/passwd"}, "key 'path': '/etc/passwd' is absolute or climbs out"),
        (2, {"path": "../people.csv"}, "key 'path': '../people.csv' is absolute or climbs out"),
        (16, {"identity": "p0"}, "record 16 of 16, key 'identity': identity 'p0' is in split 'test'; expected 'train'"),
        (16, {"path": "cam/0_0.jpg"}, "key 'identity': 'p7' for the image 'cam/0_0.jpg'; expected 'p0' as in record 1"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, rows: Rows, record: int, change: Any, told: str) -> None:
    rows[record - 1] |= change
    write(tmp_path, rows)
    message = error(tmp_path)
    assert told in message
    assert (
        "`uv run python -m data.doctor custom dataset.annotations=people.csv dataset.images=photos/` names each"
        in message
    )


@pytest.mark.parametrize(
    ("rename", "columns", "told"),
    [
        ({}, {"path": "paht"}, "has no column 'paht' for dataset.columns.path; it has 'path', 'caption', 'identity'"),
        ({}, {"captions": ["caption", "captoin"]}, "has no column 'captoin' for dataset.columns.captions"),
        ({"path": "where"}, {}, "has no column 'path' but 'where', 'caption', 'identity', 'split'; name the one that"),
        ({"identity": "identiy"}, {}, "but 'identiy': give dataset.columns.identity=identiy, or dataset.columns.ident"),
        ({"split": "id"}, {}, "has the columns 'identity' and 'id', and identity may be in either"),
        ({}, {"path": ["a", "b"]}, "dataset.columns.path: ['a', 'b'] given, expected the name of a column"),
        ({}, {"captions": []}, "dataset.columns.captions: [] given, expected the name of a column, or a list of names"),
    ],
)
def test_a_wrong_column_is_named_with_the_nearest(
    tmp_path: Path, rows: Rows, rename: dict[str, str], columns: Any, told: str
) -> None:
    write(tmp_path, [{rename.get(key, key): value for key, value in row.items()} for row in rows])
    message = error(tmp_path, columns=columns)
    assert told in message
    if columns.get("path") == "paht":
        assert message.endswith("Did you mean 'path'?")


def test_absent_files_and_folders_are_named(tmp_path: Path, rows: Rows) -> None:
    write(tmp_path, rows)
    assert "dataset.annotations: poeple.csv does not exist; there is 'people.csv'" in error(tmp_path, "poeple.csv")
    assert "is a folder, not a file" in error(tmp_path, "photos")
    with pytest.raises(UserError, match=r"dataset=custom needs dataset.annotations=FILE and"):
        read_dataset("custom", tmp_path)
    (tmp_path / "photos").rename(tmp_path / "photo")
    assert f"dataset.images: {tmp_path}/photos does not exist; there is 'photo'" in error(tmp_path)


def test_paths_are_spelled_as_on_disk_and_may_start_at_the_root_if_they_stay_inside(tmp_path: Path, rows: Rows) -> None:
    rows[0]["path"], rows[1]["path"] = f"{tmp_path}/photos/cam/0_0.jpg", "cam\\0_1.JPG"
    write(tmp_path, rows)
    (tmp_path / "photos" / "cam").mkdir()
    (tmp_path / "photos" / "cam" / "0_1.jpg").touch()
    assert [record.image_path.name for record in read(tmp_path).train[:2]] == ["0_0.jpg", "0_1.jpg"]


def test_files_and_columns_of_a_published_dataset_can_be_replaced(tmp_path: Path, rows: Rows) -> None:
    numbers = [row | {"identity": n // 2} for n, row in enumerate(rows)]
    write(
        tmp_path,
        [{"file_path": r["path"], "text": r["caption"], "id": r["identity"], "split": r["split"]} for r in numbers],
    )
    dataset = read(tmp_path, columns={"captions": "text"}, dataset="cuhk_pedes")
    assert (dataset.language, len(dataset.train), dataset.train[2].pid) == ("en", 12, 1)


PUBLISHED = [
    ("ufine6926", "UFine6926/UFine6926_Annotations.json", "UFine6926/images/1.jpg", "images/1.jpg", True, "en"),
    ("prw_tps_cn", "PRW-TPS-CN/prw_cn_caption_crops.json", "PRW-TPS-CN/imgs/s1/1.jpg", "s1/1.jpg", True, "zh"),
    ("synth_pedes", "SYNTH-PEDES/synthpedes-dataset.json", "SYNTH-PEDES/Part1/7/1.jpg", "Part1/7/1.jpg", False, "en"),
]


@pytest.mark.parametrize(("name", "file", "image", "path", "has_splits", "language"), PUBLISHED)
def test_published_datasets_are_read_in_the_format_that_is_known(
    tmp_path: Path, name: str, file: str, image: str, path: str, has_splits: bool, language: str
) -> None:
    entries = [
        {"id": n, "file_path": path.replace("1.jpg", f"{n}.jpg"), "captions": ["a man", "he"]}
        | ({"split": SPLITS[n - 1]} if has_splits else {"attributes": ["man"], "prompt_caption": ["A man."]})
        for n in range(1, 9)
    ]
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(json.dumps(entries), encoding="utf-8")
    dataset = read_dataset(name, tmp_path)
    everyone = sorted(dataset.train + dataset.val + dataset.test, key=lambda record: record.pid)
    assert (everyone[0].pid, everyone[0].image_path, everyone[0].captions) == (1, tmp_path / image, ("a man", "he"))
    assert (dataset.language, len(everyone), len(dataset.test)) == (language, 8, 1)
    assert dataset.validation == ("own" if has_splits else "held_out")
