"""Decoded images on disk: each image of a dataset is decoded and resized once, then mapped into memory.

A cache is a folder of two files, which only ever grow:

- ``pixels-...``: rows of uint8 ``(3, H, W)``, one for every different content of an image file.
- ``index``: a line that says what decoded them and into which file, then a line for every image file that was looked
  at: its path below the dataset's folder, its stamp, the digest of its bytes and its row.

Rows come safely to disk before the lines that name them, and nothing that a line names is written again. So whatever
is killed at whatever time, every line tells the truth but the last one, which may be torn. One process writes at a
time; readers need no lock. A cache that begins anew does so under another name.
"""

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from uuid import uuid4

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import features
from torch import Tensor

from data.annotations import Record
from data.images import decode_image, image_errors
from utils.errors import UserError
from utils.progress import Bar

VERSION: Final = 1
AT_ONCE: Final = 256  # images decoded ahead, and lines of the index written together


class Stamp(NamedTuple):
    """What changes with a file: its length, when it was written, when anything of it changed (which nobody can set)."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """A line of the index: an image file, as it was, and its row."""

    path: str
    stamp: Stamp
    digest: str
    row: int


class Found(NamedTuple):
    """An image file that was read: `pixels` ``(3, H, W)``, or None where a row has them."""

    path: str
    stamp: Stamp
    digest: str
    pixels: Tensor | None


class Index(NamedTuple):
    """What can be believed of an index: the file of the rows, path -> last entry, and up to which byte."""

    pixels: Path
    entries: dict[str, Entry]
    length: int


class CachedImages:
    """Reads images from a cache: record -> uint8 ``(3, H, W)``. Processes share the memory of the file.

    Args:
        file: of the rows.
        rows: the row of each image file.
        size: (height, width).
    """

    def __init__(self, file: Path, rows: dict[Path, int], size: tuple[int, int]) -> None:
        self._parts = (file, rows, size)
        self._rows = rows
        shape = (max(rows.values()) + 1, 3, *size)
        self._pixels = np.memmap(file, np.uint8, "r", shape=shape)

    def __call__(self, record: Record) -> Tensor:
        return torch.from_numpy(np.array(self._pixels[self._rows[record.image_path]]))

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedImages, self._parts  # a pickled map would be a copy of the whole file


class ImageCache:
    """The images of a dataset at one size, in a folder on disk.

    Args:
        folder: of all caches; this one has its own in it, by the names of dataset and size.
        root: folder of the dataset.
        size: (height, width).
    """

    def __init__(self, folder: Path, root: Path, size: tuple[int, int]) -> None:
        self.folder = folder / root.name / f"{size[0]}x{size[1]}"
        self._root = root
        self._size = size
        self._index = self.folder / "index"
        self._row_bytes = 3 * size[0] * size[1]
        codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib")}
        self._decoder = json.dumps({"version": VERSION, "pillow": PIL.__version__, **codecs}).encode()

    def reader(self, records: Sequence[Record]) -> CachedImages:
        """Returns what reads the images of these records, after decoding those that are new or have changed.

        Raises:
            ImageError: an image is missing, empty or broken.
            UserError: the folder cannot be read or written, or the disk is full.
        """
        try:
            index = self._read_index()
            if index is None or self._outdated(records, index):
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / "lock"):
                    index = self._sound_index()  # of another process, perhaps, that had the lock
                    if outdated := self._outdated(records, index):
                        self._add(outdated, index)
            rows = {record.image_path: index.entries[self._key(record)].row for record in records}
            return CachedImages(index.pixels, rows, self._size)
        except OSError as error:
            gigabytes = len(records) * self._row_bytes / 1e9
            raise UserError(
                f"the image cache {self.folder} cannot be used ({error.strerror or error}; {len(records)} images take "
                f"{gigabytes:.1f} GB): name another folder with dataset.cache_dir, or set dataset.cache=false to "
                "decode images whenever they are read"
            ) from error

    def _key(self, record: Record) -> str:
        return record.image_path.relative_to(self._root).as_posix()

    def _outdated(self, records: Iterable[Record], index: Index) -> list[Record]:
        """Returns the records whose image is not in the index as it is now."""
        outdated = []
        for record in records:
            with image_errors(record):
                stamp = _stamp(record.image_path.stat())
            entry = index.entries.get(self._key(record))
            if entry is None or entry.stamp != stamp:
                outdated.append(record)
        return outdated

    def _read_index(self) -> Index | None:
        """Returns what the index says, up to the first line that is damaged or whose row is not there.

        None where there is no index, or that of another decoder, or nothing in it can be believed.
        """
        try:
            header, *lines = self._index.read_bytes().splitlines(keepends=True) or [b""]
            decoder, _, name = header.rpartition(b" ")
            if decoder != self._decoder or not re.fullmatch(rb"pixels-[0-9a-f]{32}\n", name):
                return None
            pixels = self.folder / name.decode().strip()
            rows = pixels.stat().st_size // self._row_bytes
        except FileNotFoundError:
            return None
        entries: dict[str, Entry] = {}
        length = len(header)
        for line in lines:
            entry = _parsed(line)
            if entry is None or not 0 <= entry.row < rows:
                break
            entries[entry.path] = entry
            length += len(line)
        return Index(pixels, entries, length) if entries else None

    def _sound_index(self) -> Index:
        """Returns what the index says after dropping the rest of it, or a new one; only under the lock."""
        index = self._read_index()
        if index is not None:
            os.truncate(self._index, index.length)
            return index
        old = list(self.folder.glob("pixels-*"))
        new = self.folder / f"pixels-{uuid4().hex}"
        header = self._decoder + f" {new.name}\n".encode()
        self._index.write_bytes(header)
        for file in old:
            file.unlink()  # whoever reads it keeps it
        return Index(new, {}, len(header))

    def _add(self, records: Sequence[Record], index: Index) -> None:
        """Decodes the images of `records` and adds them to the index, on disk and here; only under the lock."""
        rows = {entry.digest: entry.row for entry in index.entries.values()}
        added: list[Entry] = []
        with index.pixels.open("ab") as pixels, self._index.open("ab") as lines:
            free = os.fstat(pixels.fileno()).st_size // self._row_bytes
            pixels.truncate(free * self._row_bytes)
            try:
                for found in self._read_all(records, rows):
                    if found.pixels is not None and found.digest not in rows:
                        pixels.write(found.pixels.numpy().data)
                        rows[found.digest] = free
                        free += 1
                    added.append(Entry(found.path, found.stamp, found.digest, rows[found.digest]))
                    if len(added) % AT_ONCE == 0:
                        _commit(pixels, lines, added[-AT_ONCE:])
            finally:
                _commit(pixels, lines, added[len(added) // AT_ONCE * AT_ONCE :])
        index.entries.update((entry.path, entry) for entry in added)

    def _read_all(self, records: Sequence[Record], rows: Mapping[str, int]) -> Iterator[Found]:
        """Yields the images of `records` in order, read by all cores; shows a progress bar on a terminal."""
        with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes without the lock of the interpreter
            tasks = (pool.submit(self._read, record, rows) for record in records)
            ahead = deque(islice(tasks, AT_ONCE))
            with Bar(total=len(records), desc=f"decoding {self._root.name}", unit="img") as bar:
                while ahead:
                    yield ahead.popleft().result()
                    ahead.extend(islice(tasks, 1))
                    bar.update()

    def _read(self, record: Record, rows: Mapping[str, int]) -> Found:
        with image_errors(record):
            with record.image_path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                content = file.read()
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            pixels = None if digest in rows else decode_image(content, self._size)
            return Found(self._key(record), stamp, digest, pixels)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _commit(pixels: BinaryIO, lines: BinaryIO, entries: Sequence[Entry]) -> None:
    """Writes lines of the index, after the rows they name have come safely to disk."""
    for file, content in ((pixels, b""), (lines, b"".join(map(_line, entries)))):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _line(entry: Entry) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parsed(line: bytes) -> Entry | None:
    """Returns what `_line` wrote; None for anything else."""
    try:
        path, stamp, digest, row = json.loads(line)
        entry = Entry(path, Stamp(*stamp), digest, int(row))
    except (ValueError, TypeError):
        return None
    return entry if _line(entry) == line else None
