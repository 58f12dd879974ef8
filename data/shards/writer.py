"""Writing of shards, image by image; a killed writing goes on at its last whole shard."""

import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from data.annotations import Record
from data.shards.layout import INDEX, SHARD_BYTES, VERSION, Shard, ShardIndex, schema
from utils.errors import UserError
from utils.images import BadImageError, read_bytes, read_rgb
from utils.training.threads import in_threads

JOURNAL: Final = "writing.jsonl"  # what a writing that is not finished has written
QUALITY: Final = 95  # of images that are encoded again


class Written(NamedTuple):
    """A line of the journal: a whole shard, and the numbers of records and of skipped images up to its end."""

    shard: Shard
    records: int
    skipped: int


@dataclass
class Part:
    """The images of a shard that is not written yet."""

    images: list[bytes] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    pids: list[int | None] = field(default_factory=list)
    size: int = 0

    def add(self, image: bytes, captions: tuple[str, ...], pid: int | None) -> None:
        self.images.append(image)
        self.captions.append(captions)
        self.pids.append(pid)
        self.size += len(image)


class ShardWriter:
    """A writer of the images of records, with all their captions, into a folder of shards.

    Args:
        out: the folder. It may hold a writing of the same records that was killed, which goes on.
        made_of: facts on the records, for the index.
        chosen: options that chose them; a writing goes on only if `made_of` and these are the same.
        size: (height, width) to which images are resized before they are encoded as JPEG; None: files stay as they are.
        skip: whether images that cannot be read are left out; if not, they are an error.
        with_pids: whether the identities of the records are written.
        shard_bytes: bytes of images after which a shard is full.

    Attributes:
        resumed: number of records that a killed writing had written. skipped: number of images that were left out.
    """

    def __init__(
        self,
        out: Path,
        made_of: Mapping[str, Any],
        chosen: Mapping[str, Any] | None = None,
        *,
        size: Sequence[int] | None = None,
        skip: bool = False,
        with_pids: bool = True,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._out, self._size, self._skip, self._with_pids = out, size, skip, with_pids
        self._shard_bytes = shard_bytes
        self._made_of = {**made_of, "size": None if size is None else list(size)}
        self._journal = out / JOURNAL
        settings = {"version": VERSION, "shard_bytes": shard_bytes, "made_of": self._made_of, "chosen": chosen}
        self._settings = json.dumps(settings, sort_keys=True)
        self.resumed = self.skipped = 0

    def write(self, records: Sequence[Record]) -> ShardIndex:
        """Writes all records, and the index last, so that a folder with an index is whole.

        Raises:
            UserError: an image cannot be read, the folder holds something else, no image is left, or the disk is full.
        """
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            with FileLock(self._out / ".lock", timeout=0):
                return self._write(records)
        except Timeout as error:
            raise UserError(f"{self._out} is being written by another process; wait for it") from error
        except OSError as error:
            raise UserError(
                f"shards cannot be written to {self._out} ({error.strerror or error}); name another folder, or "
                "make room"
            ) from error

    def _write(self, records: Sequence[Record]) -> ShardIndex:
        if (self._out / INDEX).exists():
            raise UserError(f"{self._out} holds shards already; name another folder, or delete it first")
        done = self._started()
        shards = [written.shard for written in done]
        self.resumed, self.skipped = (done[-1].records, done[-1].skipped) if done else (0, 0)
        numbers = _renumbered(records) if self._with_pids else {}
        with self._journal.open("ab") as journal:
            for part, count in self._parts(records, numbers):
                shards.append(self._write_shard(part, len(shards)))
                line = json.dumps(Written(shards[-1], count, self.skipped)).encode()
                journal.write(b"%b %08x\n" % (line, zlib.crc32(line)))
                journal.flush()
                os.fsync(journal.fileno())
        if not shards:
            raise UserError(f"none of the {len(records):,} images can be read; nothing was written to {self._out}")
        index = ShardIndex(tuple(shards), len(set(numbers.values())) or None, self._made_of)
        _write_whole(self._out / INDEX, index.encoded())
        self._journal.unlink()
        return index

    def _started(self) -> list[Written]:
        """Returns the whole shards of a killed writing of the same records, and begins anew if there is none."""
        lines = self._journal.read_bytes().splitlines(keepends=True) if self._journal.exists() else []
        done: list[Written] = []
        if lines and lines[0].decode(errors="replace") == f"{self._settings}\n":
            for line in lines[1:]:
                written = _parsed(line)
                if written is None or not self._is_whole(written.shard):
                    break
                done.append(written)
        elif not lines and any(self._out.glob("*.arrow")):
            raise UserError(f"{self._out} has Arrow files of something else; name an empty folder")
        kept = {written.shard.file for written in done}
        if lines and not done:
            print(f"begins anew: {self._out} has no whole shard of these records and options", flush=True)
        if lines:
            for file in [*self._out.glob("[0-9]*.arrow"), *self._out.glob("*.partial")]:
                if file.name not in kept:
                    file.unlink()
        content = f"{self._settings}\n".encode() + b"".join(lines[1 : 1 + len(done)])
        _write_whole(self._journal, content)
        return done

    def _is_whole(self, shard: Shard) -> bool:
        file = self._out / shard.file
        return file.is_file() and file.stat().st_size == shard.bytes  # it was renamed after it was synced

    def _parts(self, records: Sequence[Record], numbers: Mapping[int, int]) -> Iterator[tuple[Part, int]]:
        """Yields each full part, and the number of records up to its end. Every image is decoded once, to check it."""
        part, count = Part(), self.resumed
        rest = records[self.resumed :]
        work: Callable[[Record], bytes | BadImageError] = self._encoded
        encoded: Iterable[bytes | BadImageError] = in_threads(
            work, rest, total=len(rest), title="writing shards", unit="img"
        )
        for record, image in zip(rest, encoded, strict=True):
            count += 1
            if isinstance(image, bytes):
                part.add(image, record.captions, numbers.get(record.pid))
            elif self._skip:
                self.skipped += 1
            else:
                raise UserError(
                    f"{record.image_path} cannot be read ({image}): restore it, or go on without it with "
                    "dataset.on_broken=skip"
                )
            if part.size >= self._shard_bytes:
                yield part, count
                part = Part()
        if part.images:
            yield part, count

    def _encoded(self, record: Record) -> bytes | BadImageError:
        try:
            content = read_bytes(record.image_path)
            image = read_rgb(content)
        except BadImageError as error:
            return error
        if self._size is None:
            return content
        height, width = self._size
        stream = io.BytesIO()
        image.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=QUALITY, subsampling=0)
        return stream.getvalue()

    def _write_shard(self, part: Part, number: int) -> Shard:
        import pyarrow as pa

        columns = [pa.array(part.images, pa.binary()), pa.array(part.captions, schema().field(1).type)]
        batch = pa.record_batch([*columns, pa.array(part.pids, pa.int64())], schema=schema())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema()) as file:
            file.write_batch(batch)
        content = sink.getvalue()
        name = f"{number:05d}.arrow"
        _write_whole(self._out / name, content)
        return Shard(name, len(part.images), sum(map(len, part.captions)), content.size, zlib.crc32(content))


def _renumbered(records: Sequence[Record]) -> dict[int, int]:
    """Returns identity -> its number from 0 without gaps, in the order of the identities."""
    return {pid: number for number, pid in enumerate(np.unique([record.pid for record in records]).tolist())}


def _write_whole(path: Path, content: Any) -> None:
    """Writes a file completely or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _parsed(line: bytes) -> Written | None:
    """Returns a line of the journal, or None if it is damaged or cut off."""
    content, _, crc = line.rpartition(b" ")
    if crc != b"%08x\n" % zlib.crc32(content):
        return None
    shard, records, skipped = json.loads(content)
    return Written(Shard(*shard), records, skipped)
