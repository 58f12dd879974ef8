"""Annotation files in several formats: CSV, TSV, JSON, JSON Lines and Parquet give the same stream of records."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from data.annotations.values import kind_of, short
from utils.errors import UserError, library_errors

PARQUET_ROWS: Final = 10_000  # read at a time


class AnnotationFile(NamedTuple):
    """The records of an annotation file.

    format: the format in words. columns: names of all columns, or of all keys that records have.
    is_table: whether every record has every column; an empty cell then means that the record lacks a value.
    is_text: whether all values are texts, also those of numbers and lists.
    entries: starts reading the records anew. A record is a mapping, a `Malformed`, or another JSON value.
    """

    format: str
    columns: tuple[str, ...]
    is_table: bool
    is_text: bool
    entries: Callable[[], Iterable[Any]]


class Malformed(NamedTuple):
    """A record that cannot be read, at a key or as a whole: what was found and what was expected."""

    found: str
    expected: str
    key: str | None = None


def open_annotations(file: Path) -> AnnotationFile:
    """Returns the records of an annotation file, in the format that its name ends in.

    Raises:
        UserError: if the format is unknown, or the file cannot be read, has no records or is damaged as a whole; also
            later, while the records are read.
    """
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file} has an unknown format; expected a name that ends in {', '.join(READERS)}")
    opened = reader(file)
    if next(iter(opened.entries()), None) is None:
        raise UserError(f"{file} holds no record; expected one per image or caption")
    return opened


def _open_json(file: Path) -> AnnotationFile:
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise _unreadable(file, error) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"{file} is not valid JSON ({where}); fetch or export the file again.") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a list of records ({error}); fetch the file again.") from error
    if not isinstance(content, list):
        raise UserError(f"{file} holds {kind_of(content)}; expected a JSON list of records, one per image.")
    if not content:
        raise UserError(f"{file} holds an empty list; expected a JSON list of records, one per image.")
    return AnnotationFile("JSON", _keys(content), False, False, lambda: content)


def _open_json_lines(file: Path) -> AnnotationFile:
    def entries() -> Iterator[Any]:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                yield Malformed(f"line {number} is not valid JSON ({reason})", "one JSON object in a line")

    return AnnotationFile("JSON Lines", _keys(entries()), False, False, entries)


def _open_csv(file: Path) -> AnnotationFile:
    header = next(iter(_lines(file)), "")
    semicolons = "," not in header and ";" in header
    return _open_separated(file, ";" if semicolons else ",", f"CSV with {'semicolons' if semicolons else 'commas'}")


def _open_tsv(file: Path) -> AnnotationFile:
    return _open_separated(file, "\t", "TSV")


def _open_separated(file: Path, delimiter: str, told: str) -> AnnotationFile:
    def rows() -> Iterator[tuple[int, list[str]]]:
        """Yields the number of the first line of each row that is not blank, and its cells."""
        reader = csv.reader(_lines(file), delimiter=delimiter, strict=True, skipinitialspace=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                advice = 'put text with quotes or delimiters in quotes, and write each quote within it twice ("")'
                raise UserError(f"{file}, line {line}: {error}; {advice}") from error
            if row:
                yield line, [cell.strip() for cell in row]

    def entries() -> Iterator[Any]:
        numbered = rows()
        next(numbered)
        for line, row in numbered:
            if len(row) != len(header):
                found = f"{len(row)} cells in line {line}"
                yield Malformed(
                    found, f"{len(header)} as in the header; put text that contains {delimiter!r} in quotes"
                )
            elif not any(row):
                yield Malformed(f"only empty cells in line {line}", "values, or no such line")
            else:
                yield dict(zip(header, row, strict=True))

    _, header = next(rows(), (0, []))
    if not any(header):
        raise UserError(
            f"{file} is empty; expected a line with the names of its columns, and a line per image or caption"
        )
    columns = tuple(name for name in header if name)  # an index that pandas writes has no name
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(
            f"{file} has the column {short(repeated[0])} more than once; rename one of them in its first line"
        )
    if delimiter != "\t" and len(columns) == 1 and "\t" in header[0]:
        raise UserError(f"{file} separates its columns by tabs; rename it to {file.stem}.tsv")
    return AnnotationFile(told, columns, True, True, entries)


def _open_parquet(file: Path) -> AnnotationFile:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{file}: Parquet needs the extra 'parquet': run it as uv run --extra parquet ...") from error

    def readable(kind: Any) -> bool:
        """Returns whether cells are texts, numbers, or lists of them; others may be large, such as images."""
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
            return readable(kind.value_type)
        own = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_boolean)
        return any(test(kind) for test in (*own, pa.types.is_integer, pa.types.is_floating, pa.types.is_null))

    def entries() -> Iterator[Any]:
        with library_errors(damaged, "write it again"), pq.ParquetFile(file) as table:
            for batch in table.iter_batches(PARQUET_ROWS, columns=list(columns)):
                yield from batch.to_pylist()

    damaged = f"{file} is not a Parquet file that can be read"
    with library_errors(damaged, "write it again"):
        schema = pq.read_schema(file)
    columns = tuple(column.name for column in schema if readable(column.type))
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"{file} has the column {short(repeated[0])} more than once; rename one of them")
    return AnnotationFile("Parquet", columns, True, False, entries)


READERS: Final[Mapping[str, Callable[[Path], AnnotationFile]]] = {
    ".csv": _open_csv,
    ".tsv": _open_tsv,
    ".json": _open_json,
    ".jsonl": _open_json_lines,
    ".parquet": _open_parquet,
}


def _lines(file: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 text file, with their ends."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from text
    except OSError as error:
        raise _unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} cannot be read: {error.strerror}.")


def _not_utf8(file: Path) -> UserError:
    """Returns the error on a file that is not UTF-8, with the place of the first wrong byte."""
    start, place = 0, "its end"
    with file.open("rb") as content:
        for number, line in enumerate(content, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                place = f"line {number}, byte {start + error.start}"
                break
            start += len(line)
    return UserError(f"{file} is not UTF-8 ({place}); save it as UTF-8 (in Excel: CSV UTF-8).")


def _keys(entries: Iterable[Any]) -> tuple[str, ...]:
    """Returns all keys of the records, in the order in which they first appear."""
    objects = (entry for entry in entries if isinstance(entry, dict))
    return tuple(dict.fromkeys(chain.from_iterable(objects)))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Malformed:
    """Returns a JSON object from its pairs, or a `Malformed` if a key is repeated."""
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return Malformed("a key that the record has more than once", "one value", repeated)
