"""Random access to the pairs of a folder of shards."""

import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from data.loading.samplers import Indices
from data.shards.layout import Shard, ShardIndex, schema
from data.shards.storage import ShardFolder
from utils.errors import library_errors

AT_ONCE: Final = 2**20  # bytes whose checksum is computed together


class ShardPair(NamedTuple):
    """A pair: the bytes of its image file, its caption, the number of its image in the folder, and its identity.

    pid: the identity, numbered from 0 without gaps; the number of the image if the shards have no identities.
    """

    content: bytes
    caption: str
    image: int
    pid: int


class OpenShard(NamedTuple):
    """A shard in memory: its columns, mapped from the file, and the captions before each image. Shape: ``(I + 1,)``."""

    images: Any
    captions: Any
    pids: Any
    offsets: Indices


class ShardReader:
    """A reader of pairs by their number in the folder: image by image, each with its captions in order.

    A file is mapped into memory when one of its pairs is read, after its checksum was checked. Only the last files
    that were read stay mapped, so memory does not depend on the number of pairs.

    Args:
        folder, index: the folder and its index.
        most_open: the most files that stay mapped.
    """

    def __init__(self, folder: ShardFolder, index: ShardIndex, most_open: int) -> None:
        self._folder, self._index, self._most_open = folder, index, most_open
        self._first_pair = _starts([shard.pairs for shard in index.shards])
        self._first_image = _starts([shard.images for shard in index.shards])
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def __getitem__(self, pair: int) -> ShardPair:
        """Returns a pair.

        Raises:
            UserError: the file of its shard is missing or damaged.
        """
        number = int(np.searchsorted(self._first_pair, pair, side="right")) - 1
        shard = self._opened(number)
        place = pair - int(self._first_pair[number])
        row = int(np.searchsorted(shard.offsets, place, side="right")) - 1
        image = int(self._first_image[number]) + row
        pid = image if self._index.identities is None else shard.pids[row].as_py()
        return ShardPair(shard.images[row].as_py(), shard.captions[place].as_py(), image, pid)

    def _opened(self, number: int) -> OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self._index.shards[number]
        with self._folder.held(shard) as file:
            self._open[number] = _checked(file, shard, self._index.identities)
        if len(self._open) > self._most_open:
            self._open.popitem(last=False)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a mapped file cannot be sent to another process


def _checked(file: Path, shard: Shard, identities: int | None) -> OpenShard:
    """Returns the content of a shard whose size, checksum, schema and counts are as in the index.

    Raises:
        UserError: they are not.
    """
    import pyarrow as pa

    with library_errors(f"the shard {file} is damaged", "restore the file, or write the shards again"):
        _check_bytes(file, shard)
        opened = pa.ipc.open_file(pa.memory_map(str(file)))
        if opened.num_record_batches != 1:
            raise ValueError(f"it has {opened.num_record_batches} record batches, expected 1")
        batch = opened.get_batch(0)
        batch.validate(full=True)  # offsets of a hostile file could lie outside of it
        if not batch.schema.equals(schema()) or batch.num_rows != shard.images:
            raise ValueError("it has other columns or counts than its index")
        images, captions, pids = batch.columns
        offsets = captions.offsets.to_numpy()
        if offsets[0] != 0 or offsets[-1] != shard.pairs:
            raise ValueError("it has other captions than its index counts")
        if images.null_count or captions.null_count or captions.values.null_count:
            raise ValueError("it has an image or a caption that is null")
        if identities is not None:
            numbers = pids.to_numpy(zero_copy_only=False)
            if pids.null_count or not 0 <= numbers.min() <= numbers.max() < identities:
                raise ValueError("it has other identities than its index counts")
    return OpenShard(images, captions.values, pids, offsets)


def _check_bytes(file: Path, shard: Shard) -> None:
    if file.exists() and not file.is_file():  # a device could be read for ever
        raise ValueError("it is not a file")
    found = file.stat().st_size
    if found != shard.bytes:
        raise ValueError(f"it has {found:,} bytes, expected {shard.bytes:,}")
    crc = 0
    with file.open("rb") as stream:  # read, not mapped: pages of a checksum do not count as this process's memory
        while part := stream.read(AT_ONCE):
            crc = zlib.crc32(part, crc)
    if crc != shard.crc:
        raise ValueError("its checksum is not the one in its index")


def _starts(counts: list[int]) -> Indices:
    return np.cumsum([0, *counts[:-1]], dtype=np.int64)
