"""What an offline W&B run has written."""

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def records(file: Path) -> list[Any]:
    """Returns what a .wandb file holds: LevelDB's log format, in blocks of 32 KiB, behind a header of 7 bytes."""
    found: list[Any] = []
    data, position, pending = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        pending += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(pending)
            found.append(record)
            pending = b""
    return found


def of_kind(kind: str, among: list[Any]) -> list[Any]:
    """Returns the records of one kind: "run", "history", "summary", "exit", ..."""
    return [getattr(record, kind) for record in among if record.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    """Returns key -> value of the items of a history row, a config or a summary; a picture is several of them."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
