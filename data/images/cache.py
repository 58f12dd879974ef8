"""Decoded images on disk: each image of a dataset is decoded and resized once, then mapped into memory.

A cache is a folder of two files, which only ever grow:

- ``pixels-...``: rows of uint8 ``(3, H, W)``, one for every different content of an image file.
- ``index``: a line that says what decoded them and into which file, then a line for every image file that was decoded:
  its path below the dataset's folder, its stamp, the digest of its bytes, and its row, with the CRC-32 of the pixels
  and what looks wrong about them. The line ends in a CRC-32 of its own.

Rows come safely to disk before the lines that name them, and nothing that a line names is written again. So whatever
is killed at whatever time, every line tells the truth but the last one, which may be torn. One process writes at a
time; readers need no lock. A cache that begins anew does so under another name. A process proves a row when it reads
it for the first time, and decodes the image of a row that is damaged.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from uuid import uuid4

import PIL
from filelock import FileLock
from PIL import features

from data.annotations import Record
from data.images.cached import CachedImages, Row
from data.images.read import BrokenImage, DecodedImage, Resize, decode_image
from utils.errors import UserError
from utils.images import BadImageError, check_file, image_faults
from utils.training.threads import in_threads

VERSION: Final = 3  # of how images are read, and of the format
AT_ONCE: Final = 256  # lines of the index written together


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
    row: Row


class ReadFile(NamedTuple):
    """An image file that was read: what was decoded of it, or None where a row has it."""

    path: str
    stamp: Stamp
    digest: str
    image: DecodedImage | None


class Index(NamedTuple):
    """What can be believed of an index: the file of the rows, path -> last entry, and up to which byte."""

    pixels: Path
    entries: dict[str, Entry]
    length: int


class ImageCache:
    """The images of a dataset, resized in one way, in a folder on disk.

    Args:
        folder: of all caches; this one has its own in it, by the names of dataset, size and, unless it is bicubic as
            all were once, interpolation.
        root: folder of the dataset.
        resize: to what.
    """

    def __init__(self, folder: Path, root: Path, resize: Resize) -> None:
        size, interpolation = resize
        suffix = "" if interpolation == "bicubic" else f"-{interpolation}"
        self.folder = folder / root.name / f"{size[0]}x{size[1]}{suffix}"
        self._root = root
        self._resize = resize
        self._index = self.folder / "index"
        self._row_bytes = 3 * size[0] * size[1]
        codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib")}
        self._decoder = json.dumps({"version": VERSION, "pillow": PIL.__version__, **codecs}).encode()

    def reader(self, records: Sequence[Record]) -> CachedImages:
        """Returns what reads the images of these records, after decoding those that are new or have changed.

        Raises:
            UserError: the folder cannot be read or written, or the disk is full.
        """
        try:
            broken: list[BrokenImage] = []
            index = self._read_index()
            if index is None or self._outdated(records, index, broken):
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / "lock"):
                    broken.clear()
                    index = self._sound_index()  # of another process, perhaps, that had the lock
                    if outdated := self._outdated(records, index, broken):
                        self._add(outdated, index, broken)
            unreadable = {bad.record.image_path for bad in broken}
            readable = [record for record in records if record.image_path not in unreadable]
            rows = {record.image_path: index.entries[self._key(record)].row for record in readable}
            return CachedImages(index.pixels, rows, self._resize, broken)
        except OSError as error:
            gigabytes = len(records) * self._row_bytes / 1e9
            raise UserError(
                f"the image cache {self.folder} cannot be used ({error.strerror or error}; {len(records)} images take "
                f"{gigabytes:.1f} GB): name another folder with dataset.cache_dir, or set dataset.cache=false to "
                "decode images whenever they are read"
            ) from error

    def _key(self, record: Record) -> str:
        return record.image_path.relative_to(self._root).as_posix()

    def _outdated(self, records: Iterable[Record], index: Index, broken: list[BrokenImage]) -> list[Record]:
        """Returns the records whose image is not in the index as it is now; adds to `broken` what is no image file."""
        outdated = []
        for record in records:
            try:
                with image_faults():
                    stamp = _stamp(check_file(record.image_path.stat()))
            except BadImageError as error:
                broken.append(BrokenImage(record, str(error)))
                continue
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
            if entry is None or not 0 <= entry.row.number < rows:
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

    def _add(self, records: Sequence[Record], index: Index, broken: list[BrokenImage]) -> None:
        """Decodes the images of `records` and adds them to the index, on disk and here; only under the lock."""
        rows = {entry.digest: entry.row for entry in index.entries.values()}
        added: list[Entry] = []
        with index.pixels.open("ab") as pixels, self._index.open("ab") as lines:
            free = os.fstat(pixels.fileno()).st_size // self._row_bytes
            pixels.truncate(free * self._row_bytes)
            try:
                for found in self._read_all(records, rows, broken):
                    if found.image is not None and found.digest not in rows:
                        content = found.image.pixels.numpy().data
                        pixels.write(content)
                        rows[found.digest] = Row(free, zlib.crc32(content), found.image.oddities)
                        free += 1
                    added.append(Entry(found.path, found.stamp, found.digest, rows[found.digest]))
                    if len(added) % AT_ONCE == 0:
                        _commit(pixels, lines, added[-AT_ONCE:])
            finally:
                _commit(pixels, lines, added[len(added) // AT_ONCE * AT_ONCE :])
        index.entries.update((entry.path, entry) for entry in added)

    def _read_all(
        self, records: Sequence[Record], rows: Container[str], broken: list[BrokenImage]
    ) -> Iterator[ReadFile]:
        """Yields the images of `records` in order, and adds to `broken` those that cannot be read."""
        read = partial(self._read, rows=rows)
        title = f"decoding {self._root.name}"
        results = in_threads(read, records, total=len(records), title=title, unit="img")  # Pillow lets others decode
        for record, found in zip(records, results, strict=True):
            if isinstance(found, BadImageError):
                broken.append(BrokenImage(record, str(found)))
            else:
                yield found

    def _read(self, record: Record, rows: Container[str]) -> ReadFile | BadImageError:
        try:
            with image_faults(), record.image_path.open("rb") as file:
                stamp = _stamp(check_file(os.fstat(file.fileno())))
                content = file.read()
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            image = None if digest in rows else decode_image(content, self._resize)
            return ReadFile(self._key(record), stamp, digest, image)
        except BadImageError as error:
            return error


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _commit(pixels: BinaryIO, lines: BinaryIO, entries: Sequence[Entry]) -> None:
    """Writes lines of the index, after the rows they name have come safely to disk."""
    for file, content in ((pixels, b""), (lines, b"".join(map(_line, entries)))):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _line(entry: Entry) -> bytes:
    content = json.dumps(entry).encode()
    return b"%b %08x\n" % (content, zlib.crc32(content))


def _parsed(line: bytes) -> Entry | None:
    """Returns what `_line` wrote; None for anything else."""
    try:
        path, stamp, digest, row = json.loads(line.rpartition(b" ")[0])
        entry = Entry(path, Stamp(*stamp), digest, Row(*row))
    except (ValueError, TypeError):
        return None
    return entry if _line(entry) == line else None
