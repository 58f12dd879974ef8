"""Captions from a text file, a table or JSON Lines."""

from pathlib import Path

import pytest

from data.text.caption_files import read_captions
from utils.errors import UserError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\ufeffa man\r\n\n  a  woman \r\n"),
        ("a.csv", 'caption,id\n"a\nman",1\n,2\na woman,3\n'),
        ("a.tsv", "id\tcaption\n1\ta man\n2\ta woman\n"),
        ("a.jsonl", '{"caption": "a man"}\n\n{"caption": "a woman"}\n'),
    ],
)
def test_captions_are_read_without_empty_ones(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_captions(tmp_path / name, "caption") == ["a man", "a woman"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "id,captions\n1,a man\n", r"has id, captions; Did you mean 'captions'\? give the column"),
        ("a.jsonl", '{"text": "a man"}\n', r"line 1, has text; expected a text with the key 'caption'"),
        ("a.jsonl", '{"caption": "a"}\n{"caption"\n', r"line 2, is not JSON"),
        ("a.jsonl", "[1]\n", r"line 1, has list; expected"),
        ("a.txt", "\n \n", r"has no caption"),
        ("a.xlsx", "", r"expected a file that ends in .txt, .csv, .tsv, .jsonl"),
    ],
)
def test_a_file_without_captions_is_refused_by_name(name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        read_captions(tmp_path / name, "caption")
