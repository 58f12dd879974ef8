"""The layout of a folder of shards: Arrow files, and an index that lists them.

A shard is an Arrow IPC file with one record batch and one row per image: `image`, the bytes of an image file;
`captions`, a list of texts; `pid`, the identity, or null. ``index.json`` has the format's name and version, totals, and
for each shard its counts, its size and the CRC-32 of the whole file. Reading either of them executes nothing.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from utils.errors import UserError

FORMAT: Final = "tbps shards"
VERSION: Final = 1
INDEX: Final = "index.json"
SHARD_BYTES: Final = 32 * 2**20  # of images, after which a shard is full
_NAME: Final = re.compile(r"\d{5,9}\.arrow")  # never a path
MOST_BYTES: Final = 2**40  # of a shard, so that counts of an index stay numbers that fit in memory
_AGAIN: Final = "write the shards again with `uv run python -m data.shards`"


class Shard(NamedTuple):
    """A shard: the name of its file, its numbers of images and of pairs, its size in bytes, and its CRC-32."""

    file: str
    images: int
    pairs: int
    bytes: int
    crc: int


@dataclass(frozen=True)
class ShardIndex:
    """The content of an index.

    shards: the shards, in order. identities: number of identities; None: the shards have none.
    made_of: facts on the dataset that was written. digest: hash of the shards' entries.
    """

    shards: tuple[Shard, ...]
    identities: int | None
    made_of: Mapping[str, Any]

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def pairs(self) -> int:
        return sum(shard.pairs for shard in self.shards)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.shards).encode()).hexdigest()

    def encoded(self) -> bytes:
        """Returns the index as the bytes of its file."""
        head = {"format": FORMAT, "version": VERSION, "images": self.images, "pairs": self.pairs}
        content = {**head, "identities": self.identities, "made_of": self.made_of}
        shards = ",\n  ".join(json.dumps(shard._asdict()) for shard in self.shards)
        return f'{json.dumps(content)[:-1]}, "shards": [\n  {shards}]}}\n'.encode()


def check_extra() -> None:
    """Raises `UserError` if the package of the extra is not installed."""
    if find_spec("pyarrow") is None:
        raise UserError("shards need the package pyarrow, which is not installed; run `uv sync --extra shards`")


def schema() -> Any:
    """Returns the Arrow schema of a shard."""
    import pyarrow as pa

    captions = pa.list_(pa.field("item", pa.string(), nullable=False))
    fields = [
        pa.field("image", pa.binary(), nullable=False),
        pa.field("captions", captions, nullable=False),
        pa.field("pid", pa.int64()),
    ]
    return pa.schema(fields)


def parse_index(content: bytes, where: str) -> ShardIndex:
    """Returns the index in the bytes of its file.

    Args:
        where: the file or its address, for messages.

    Raises:
        UserError: it is damaged, of another format or version, or names a file outside its folder.
    """
    try:
        found = json.loads(content, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged or cut off ({error}); {_AGAIN}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{where} is not an index of shards; name a folder that `uv run python -m data.shards` wrote")
    if found.get("version") != VERSION:
        raise UserError(f"{where} has version {found.get('version')} of the format, expected {VERSION}; {_AGAIN}")
    entries, identities, made_of = found.get("shards"), found.get("identities"), found.get("made_of")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where} lists no shards; {_AGAIN}")
    if not (identities is None or _is_count(identities)) or not isinstance(made_of, dict):
        raise UserError(f"{where}: its totals are damaged; {_AGAIN}")
    index = ShardIndex(_shards(entries, where), identities, made_of)
    if [found.get("images"), found.get("pairs")] != [index.images, index.pairs] or (identities or 0) > index.images:
        raise UserError(f"{where}: its totals are not those of its shards; {_AGAIN}")
    if len({shard.file for shard in index.shards}) < len(index.shards):
        raise UserError(f"{where} lists a file twice; {_AGAIN}")
    return index


def _shards(entries: Sequence[Any], where: str) -> tuple[Shard, ...]:
    shards = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or set(entry) != set(Shard._fields):
            raise UserError(f"{where}, shard {number}: expected the keys {', '.join(Shard._fields)}; {_AGAIN}")
        shard = Shard(**entry)
        if not isinstance(shard.file, str) or not _NAME.fullmatch(shard.file):
            raise UserError(
                f"{where}, shard {number}: the file {shard.file!r} is refused, expected a name such as "
                f"00000.arrow; {_AGAIN}"
            )
        if (
            not all(_is_count(value) for value in shard[1:4])
            or not isinstance(shard.crc, int)
            or not max(shard.images, shard.pairs) <= shard.bytes <= MOST_BYTES
        ):
            raise UserError(f"{where}, shard {number} ({shard.file}): its counts are damaged; {_AGAIN}")
        shards.append(shard)
    return tuple(shards)


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")  # NaN is not equal to itself, so no run could continue


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
