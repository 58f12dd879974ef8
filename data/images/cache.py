"""A cache of decoded images on disk: each image is decoded and resized once, then mapped into memory.

A cache is a folder with two files, which only grow:

- ``pixels-...``: rows of uint8 ``(3, H, W)``, one for every different content of an image file.
- ``index``: a first line that names the decoder and the pixel file, then a line for every decoded image file: its path
  below the dataset's folder, its stamp, the hash of its bytes, and its row number, with the CRC-32 of the pixels and
  the image's oddities. Each of these lines ends in its own CRC-32.

Rows are synced to disk before the lines that name them, and a row that a line names is never written again. So after a
kill at any time, all lines are correct except perhaps the last one, which may be incomplete. One process writes at a
time; readers need no lock. A new cache uses a new name for its pixel file. A process checks a row's CRC-32 when it
first reads the row; if the row is damaged, it decodes the image file instead.
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

VERSION: Final = 3  # of the reading of images and of the format
AT_ONCE: Final = 256  # index lines written together


class Stamp(NamedTuple):
    """Values that change with a file: size, time of the last write, and ctime, which no program can set."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """A line of the index: an image file with its stamp and hash, and its row."""

    path: str
    stamp: Stamp
    digest: str
    row: Row


class ReadFile(NamedTuple):
    """An image file that was read; `image` is None if a row already has its content."""

    path: str
    stamp: Stamp
    digest: str
    image: DecodedImage | None


class Index(NamedTuple):
    """The valid part of an index: the pixel file, path -> last entry, and the length of this part in bytes."""

    pixels: Path
    entries: dict[str, Entry]
    length: int


class ImageCache:
    """A cache of a dataset's images, with one size and interpolation, in a folder on disk.

    Args:
        folder: the folder of all caches. This cache has a subfolder, named by dataset, size and interpolation; bicubic
            is left out of the name, because older caches were all bicubic.
        root: folder of the dataset.
        resize: resizes the images.
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
        """Decodes the images of these records that are new or have changed, and returns a reader of all of them.

        Raises:
            UserError: if the folder cannot be read or written, or the disk is full.
        """
        try:
            broken: list[BrokenImage] = []
            index = self._read_index()
            if index is None or self._outdated(records, index, broken):
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / "lock"):
                    broken.clear()
                    index = self._sound_index()  # another process may have changed it
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
        """Returns the records whose image is new or has changed; adds records without an image file to `broken`."""
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
        """Returns the index up to the first line that is damaged or has no row.

        Returns None if there is no index, another decoder wrote it, or it has no valid line.
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
        """Cuts the index to its valid part, or creates a new index, and returns it; needs the lock."""
        index = self._read_index()
        if index is not None:
            os.truncate(self._index, index.length)
            return index
        old = list(self.folder.glob("pixels-*"))
        new = self.folder / f"pixels-{uuid4().hex}"
        header = self._decoder + f" {new.name}\n".encode()
        self._index.write_bytes(header)
        for file in old:
            file.unlink()  # processes that have it mapped can still read it
        return Index(new, {}, len(header))

    def _add(self, records: Sequence[Record], index: Index, broken: list[BrokenImage]) -> None:
        """Decodes the images of `records` and adds them to the index, on disk and in memory; needs the lock."""
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
        """Yields the images of `records` in order, and adds unreadable images to `broken`."""
        read = partial(self._read, rows=rows)
        title = f"decoding {self._root.name}"
        results = in_threads(read, records, total=len(records), title=title, unit="img")  # Pillow releases the GIL
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
    """Syncs the rows to disk, then writes the lines of the index that name them."""
    for file, content in ((pixels, b""), (lines, b"".join(map(_line, entries)))):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _line(entry: Entry) -> bytes:
    content = json.dumps(entry).encode()
    return b"%b %08x\n" % (content, zlib.crc32(content))


def _parsed(line: bytes) -> Entry | None:
    """Returns the entry in a line that `_line` wrote, or None for any other line."""
    try:
        path, stamp, digest, row = json.loads(line.rpartition(b" ")[0])
        entry = Entry(path, Stamp(*stamp), digest, Row(*row))
    except (ValueError, TypeError):
        return None
    return entry if _line(entry) == line else None
