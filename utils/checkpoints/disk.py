"""Atomic writing of files and folders, and removal of unfinished files that dead processes left.

An unfinished file is called ``.NAME.TOKEN.unfinished`` and locked by its writer. The lock ends with the writer's
process. So an unfinished file that can be locked has no writer any more, and the next write beside it removes it.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

UNFINISHED: Final = ".unfinished"
FOLDER: Final = ".d"  # suffix of an unfinished folder; its lock is the file beside it, without this suffix


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Yields a file to write. If the block ends without an error, the file is synced to disk and replaces `target`."""
    path, file = _locked_file(target)
    with file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            path.replace(target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    sync_folder(target.parent)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` to prepare files in; removes it when the block ends."""
    lock, file = _locked_file(target)
    folder = _folder_of(lock)
    with file:
        try:
            folder.mkdir()
            yield folder
        finally:
            _remove(lock)


def write_whole(target: Path, text: str) -> None:
    """Writes `text` to `target` atomically: if the write fails, the file keeps its old content."""
    with whole_file(target) as file:
        file.write(text.encode("utf-8"))


def sweep(folder: Path) -> None:
    """Removes unfinished files and folders of dead processes in `folder`."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), path.open("r+b") as file:  # error: its writer is alive, or we lack permission
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)


def sync_folder(folder: Path) -> None:
    """Syncs the directory entries of `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def why_not_written(error: BaseException, folder: Path) -> str:
    """Returns the operating system's reason for a failed write in `folder`, and the free space there.

    Libraries raise their own errors when a write fails; the system's error is among the causes.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    if not isinstance(found, OSError):
        return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    mount = next(path for path in (place, *place.parents) if path.is_mount())
    free, total = shutil.disk_usage(place).free / 1e9, shutil.disk_usage(place).total / 1e9
    return f"{found.strerror or found}: {mount} has {free:.1f} of {total:.1f} GB free"


def _locked_file(target: Path) -> tuple[Path, BinaryIO]:
    """Returns the path of a new file beside `target`, and the file, open and locked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}{UNFINISHED}")
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "r+b")
        with suppress(OSError):  # on a file system without locks, `sweep` removes nothing
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # another process removed it before the lock


def _folder_of(lock: Path) -> Path:
    return lock.with_name(lock.name + FOLDER)


def _remove(lock: Path) -> None:
    """Removes an unfinished file, or an unfinished folder and then its lock."""
    shutil.rmtree(_folder_of(lock), ignore_errors=True)
    if not _folder_of(lock).exists():  # a worker of a killed process may still write into it
        lock.unlink(missing_ok=True)
