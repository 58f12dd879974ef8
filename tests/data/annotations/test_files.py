"""Annotation files in each format: the records that they give, and how damaged files are named."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data.annotations.files import Malformed, open_annotations
from utils.errors import UserError

ROWS = [
    {"path": "a.jpg", "caption": "Áo đỏ, quần đen", "person": "7"},
    {"path": "b/c.jpg", "caption": 'says "hi"', "person": "anna"},
]


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def error(tmp_path: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        list(open_annotations(write(tmp_path, name, content)).entries())
    return str(caught.value)


QUOTED = 'path{0}caption{0}person\r\na.jpg{0}"Áo đỏ, quần đen"{0}7\r\n\r\n b/c.jpg {0} "says ""hi"""{0} anna \r\n'


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", QUOTED.format(","), "CSV with commas"),
        ("A.CSV", "\ufeff" + QUOTED.format(",").replace("\r", ""), "CSV with commas"),
        ("a.csv", QUOTED.format(";"), "CSV with semicolons"),
        ("a.tsv", QUOTED.format("\t"), "TSV"),
        ("a.json", "\ufeff" + json.dumps(ROWS), "JSON"),
        ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", "JSON Lines"),
    ],
)
def test_formats_give_the_same_records_each_time(tmp_path: Path, name: str, content: str, told: str) -> None:
    opened = open_annotations(write(tmp_path, name, content))
    assert (opened.format, opened.columns) == (told, ("path", "caption", "person"))
    assert list(opened.entries()) == list(opened.entries()) == ROWS
    assert opened.is_table == opened.is_text == (told[0] != "J")


def test_parquet_gives_them_too_without_large_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.Table.from_pylist([{**row, "captions": ["x y", "z"], "number": 3, "pixels": b"\0"} for row in ROWS])
    file = tmp_path / "a.parquet"
    pq.write_table(table, file)
    opened = open_annotations(file)
    assert opened.columns == ("path", "caption", "person", "captions", "number")
    assert (opened.is_table, opened.is_text) == (True, False)
    assert list(opened.entries()) == [{**row, "captions": ["x y", "z"], "number": 3} for row in ROWS]
    pq.write_table(table.slice(0, 0), file)
    with pytest.raises(UserError, match=r"a\.parquet holds no record"):
        open_annotations(file)
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet is not a Parquet file that can be read"):
        open_annotations(file)


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "Parquet needs the extra 'parquet': run it as uv run --extra parquet" in error(tmp_path, "a.parquet", b"")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", "a.csv is empty; expected a line with the names of its columns"),
        ("a.csv", "\n\n", "a.csv is empty"),
        ("a.csv", "path,caption\n\n", "a.csv holds no record"),
        ("a.csv", "path,caption,path\n", "a.csv has the column 'path' more than once"),
        ("a.csv", "path\tcaption\na\tb", "a.csv separates its columns by tabs; rename it to a.tsv"),
        ("a.csv", 'path,caption\na,b\na,"b\nc\n', "a.csv, line 3: unexpected end of data; put text with quotes"),
        ("a.csv", 'path,caption\na,"b" c\n', "a.csv, line 2: ',' expected after '\"'"),
        ("a.csv", b"path,caption\r\na,b\r\na,caf\xe9\r\n", "a.csv is not UTF-8 (line 3, byte 24); save it as UTF-8"),
        ("a.csv", "path,caption\n".encode("utf-16"), "a.csv is not UTF-8 (line 1, byte 0)"),
        ("a.jsonl", "", "a.jsonl holds no record"),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', "a.jsonl is not UTF-8 (line 2, byte 19)"),
        (
            "a.xlsx",
            "",
            "a.xlsx has an unknown format; expected a name that ends in .csv, .tsv, .json, .jsonl, .parquet",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    assert told in error(tmp_path, name, content)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "p,c\na,b,c\nd,e\n,\n", [Malformed("3 cells in line 2", ""), {"p": "d", "c": "e"}, "line 4"]),
        ("a.csv", 'p,c\n"a\nb",c\nd\n', [{"p": "a\nb", "c": "c"}, Malformed("1 cells in line 4", "")]),
        ("a.jsonl", '{"a": 1}\n{"a": 1,\n[]', [{"a": 1}, "line 2 is not valid JSON (Expecting property name", []]),
    ],
)
def test_a_record_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path, name: str, content: str, expected: list[Any]
) -> None:
    found = list(open_annotations(write(tmp_path, name, content)).entries())
    for entry, wanted in zip(found, expected, strict=True):
        if isinstance(entry, Malformed):
            assert (wanted.found if isinstance(wanted, Malformed) else wanted) in entry.found
        else:
            assert entry == wanted
