"""Files of a folder of shards: in a local folder, or in object storage with copies on the local disk."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from data.shards.layout import INDEX, Shard, ShardIndex, parse_index
from utils.errors import UserError, library_errors

_ADVICE: Final = "check the address and the credentials; see docs/shards.md"


class ShardFolder:
    """A folder of shards.

    Args:
        address: a local folder, or an address of object storage that pyarrow reads: ``s3://``, ``gs://``, ``abfs://``.
        cache_dir: folder of the copies of shards in object storage.
        cache_gb: the most GB that copies from this address take; the ones not used for longest are deleted.
    """

    def __init__(self, address: str, cache_dir: Path, cache_gb: float) -> None:
        self.address = address.rstrip("/")
        self._is_remote = "://" in address
        name = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self._copies = cache_dir / "shards" / name
        self._most_bytes = cache_gb * 1e9
        self._system: tuple[int, Any, str] | None = None

    def index(self) -> ShardIndex:
        """Returns the index.

        Raises:
            UserError: there is none, or it is damaged.
        """
        where = f"{self.address}/{INDEX}"
        if self._is_remote:
            with library_errors(f"{where} cannot be read", _ADVICE):
                system, root = self._remote()
                with system.open_input_stream(f"{root}/{INDEX}") as stream:
                    content = stream.read()
            return parse_index(content, where)
        try:
            folder = Path(self.address).expanduser()
            if not folder.is_dir():
                raise UserError(
                    f"dataset.shards: the folder {folder} does not exist; `python -m data.shards` writes one"
                )
            index = parse_index((folder / INDEX).read_bytes(), where)
        except RuntimeError as error:
            raise UserError(f"dataset.shards: {self.address} names no folder ({error})") from error
        except FileNotFoundError as error:
            what = "is not finished" if any(folder.glob("*.arrow")) else "holds no shards"
            raise UserError(
                f"dataset.shards: {folder} {what}: it has no {INDEX}; run `python -m data.shards`"
            ) from error
        except OSError as error:
            raise UserError(f"{where} cannot be read ({error.strerror or error})") from error
        for shard in index.shards:
            found = _size(folder / shard.file)
            if found != shard.bytes:
                told = "is missing" if found is None else f"has {found:,} bytes, expected {shard.bytes:,}"
                raise UserError(f"{folder / shard.file} {told}; copy the whole folder again, or write the shards again")
        return index

    @contextmanager
    def held(self, shard: Shard) -> Iterator[Path]:
        """Gives the file of a shard on this machine, which no process deletes meanwhile.

        A shard in object storage is copied if it is not here. A file that is mapped may be deleted: it stays readable.

        Raises:
            UserError: it cannot be copied.
        """
        if not self._is_remote:
            yield Path(self.address).expanduser() / shard.file
            return
        file = self._copies / f"{shard.crc:08x}-{shard.file}"  # another name if the shard at the address changes
        with ExitStack() as stack:
            with library_errors(f"{self.address}/{shard.file} cannot be copied to {self._copies}", _ADVICE):
                self._copies.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(file))
                if _size(file) != shard.bytes:  # another process may have copied it
                    self._make_room(shard.bytes)
                    self._copy(shard, file)
                os.utime(file)
            yield file

    def _copy(self, shard: Shard, file: Path) -> None:
        from pyarrow import fs

        partial = file.with_suffix(".partial")
        system, root = self._remote()
        here = fs.LocalFileSystem()
        fs.copy_files(f"{root}/{shard.file}", str(partial), source_filesystem=system, destination_filesystem=here)
        partial.replace(file)

    def _make_room(self, new: int) -> None:
        """Deletes the copies that were not used for longest, but those that a process holds."""
        found = [(file, _status(file)) for file in self._copies.glob("*.arrow")]
        copies = [(status.st_mtime_ns, status.st_size, file) for file, status in found if status is not None]
        taken = sum(size for _, size, _ in copies) + new
        for _, size, file in sorted(copies):
            if taken <= self._most_bytes:
                break
            with suppress(Timeout), _lock(file, timeout=0):
                file.unlink(missing_ok=True)
                taken -= size

    def _remote(self) -> tuple[Any, str]:
        """Returns pyarrow's file system of the address, made in this process, and the path in it."""
        from pyarrow import fs

        if self._system is None or self._system[0] != os.getpid():
            self._system = (os.getpid(), *fs.FileSystem.from_uri(self.address))
        return self._system[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_system": None}


def _lock(file: Path, timeout: float = -1) -> FileLock:
    return FileLock(f"{file}.lock", timeout=timeout)


def _status(file: Path) -> os.stat_result | None:
    """Returns the status of a file, or None if there is none, also because a process has just deleted it."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def _size(file: Path) -> int | None:
    status = _status(file)
    return None if status is None else status.st_size
