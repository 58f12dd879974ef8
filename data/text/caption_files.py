"""Reading of captions from a text file, a table or JSON Lines."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from utils.errors import UserError, first_line, nearest

SEPARATORS: Final = {".csv": ",", ".tsv": "\t"}
SUFFIXES: Final = (".txt", *SEPARATORS, ".jsonl")


def read_captions(path: Path, column: str) -> list[str]:
    """Returns the captions in a file, without those that are empty; spaces and line breaks become one space.

    Args:
        path: .txt with one caption a line, or .csv, .tsv or .jsonl in UTF-8.
        column: column of a .csv or .tsv, or key of each line of a .jsonl.

    Raises:
        UserError: the file cannot be read, has another suffix, has no such column, or no caption.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"embed.captions: {path} is of no known kind; expected a file that ends in {', '.join(SUFFIXES)}"
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix == ".txt":
                found = list(file)
            elif suffix == ".jsonl":
                found = list(_of_lines(file, path, column))
            else:
                found = list(_of_table(csv.DictReader(file, delimiter=SEPARATORS[suffix]), path, column))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UserError(f"embed.captions: {path} cannot be read ({reason}); expected text in UTF-8") from error
    captions = [" ".join(caption.split()) for caption in found]
    captions = [caption for caption in captions if caption]
    if not captions:
        raise UserError(f"embed.captions: {path} has no caption")
    return captions


def _of_table(reader: "csv.DictReader[str]", path: Path, column: str) -> Iterator[str]:
    names = list(reader.fieldnames or ())
    if column not in names:
        known = ", ".join(names) or "no column"
        hint = nearest(column, names)
        raise UserError(f"embed.column={column}: {path} has {known};{hint} give the column of the captions")
    yield from (row[column] or "" for row in reader)


def _of_lines(lines: Iterator[str], path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"embed.captions: {path}, line {number}, is not JSON ({first_line(error)})") from error
        if not isinstance(record, dict) or not isinstance(record.get(column), str):
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise UserError(
                f"embed.column={column}: {path}, line {number}, has {keys}; expected a text with the key {column!r}"
            )
        yield record[column]
