"""Files and folders that appear whole or not at all, and what a dead process leaves of them.

What is unfinished is called ``.NAME.TOKEN.unfinished`` and locked by its writer. A lock vanishes with its process,
however that ends: what can be locked was left behind, and whoever writes beside it next removes it.
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
FOLDER: Final = ".d"  # ends the name of an unfinished folder, which lies beside the file that is its lock


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Yields a file to write. It takes the place of `target`, safely on disk, where the block ends without an error."""
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
    """Yields an empty folder beside `target`, to build in and to rename from; it is gone when the block ends."""
    lock, file = _locked_file(target)
    folder = _folder_of(lock)
    with file:
        try:
            folder.mkdir()
            yield folder
        finally:
            _remove(lock)


def write_whole(target: Path, text: str) -> None:
    """Writes `text` to `target`, which then has all of it or what it had before."""
    with whole_file(target) as file:
        file.write(text.encode("utf-8"))


def sweep(folder: Path) -> None:
    """Removes what dead processes left unfinished in `folder`."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), path.open("r+b") as file:  # refused: its writer lives, or it is not ours to remove
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)


def sync_folder(folder: Path) -> None:
    """Brings the names of the files in `folder` safely to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def why_not_written(error: BaseException, folder: Path) -> str:
    """Returns what the operating system says of a failed write in `folder`, and how much room is left there.

    Libraries raise errors of their own when a write fails; the system's is what they were raised from or after.
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
        with suppress(OSError):  # a file system without locks: nothing is ever swept there
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # a sweeping process was faster than the lock


def _folder_of(lock: Path) -> Path:
    return lock.with_name(lock.name + FOLDER)


def _remove(lock: Path) -> None:
    """Removes an unfinished file, or an unfinished folder and then its lock."""
    shutil.rmtree(_folder_of(lock), ignore_errors=True)
    if not _folder_of(lock).exists():  # a worker of a killed process may still write into it
        lock.unlink(missing_ok=True)
