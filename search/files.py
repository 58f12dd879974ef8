"""Image files of a folder: their list, and their opening without leaving the folder."""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from utils.errors import UserError

SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".avif"),
)


class FileState(NamedTuple):
    """Size in bytes and time of the last change in nanoseconds. A file with the same state counts as unchanged."""

    size: int
    mtime: int


class Problem(NamedTuple):
    """A file or folder that is not in the index, and the reason."""

    path: str
    why: str


class Listing(NamedTuple):
    """The image files below a folder by absolute path, in order, and what was left out.

    closed: folders that cannot be listed; nothing is known of the files in them.
    links: number of links, which are not followed.
    """

    files: dict[str, FileState]
    closed: list[Problem]
    unnamed: list[Problem]
    links: int


def real_folder(folder: str | Path) -> Path:
    """Returns the absolute path of a folder, without links.

    Raises:
        UserError: if there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder}: there is no such folder; name the folder of your images")
    return path.resolve()


def within(folder: str) -> str:
    """Returns the beginning of all paths in `folder`."""
    return folder.rstrip("/") + "/"


def list_images(folder: Path) -> Listing:
    """Returns the image files below `folder`, which has no links in its path. Hidden files and folders are left out."""
    found = Listing({}, [], [], 0)
    links, pending = 0, [str(folder)]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(place) as entries:
                inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            found.closed.append(Problem(place, error.strerror or "cannot be listed"))
            continue
        pending += [entry.path for entry in reversed(inside) if entry.is_dir(follow_symlinks=False)]
        for entry in inside:
            if entry.is_symlink():
                links += 1
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                _add(found, entry)
    return found._replace(links=links)


def open_image(path: str) -> BinaryIO:
    """Returns the open file of an indexed image.

    An indexed path has no links. If it has one now, it may lead out of the indexed folder and is refused.

    Raises:
        OSError: if the file is gone, cannot be read, is no regular file, or is reached by a link.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise PermissionError(f"{path} is no file")
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    is_same = os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    if os.path.realpath(path) != path or not is_same:  # looked at after opening: what is open is what is looked at
        file.close()
        raise PermissionError(f"{path} is reached by a link")
    return file


def _add(found: Listing, entry: "os.DirEntry[str]") -> None:
    try:
        entry.path.encode()
        status = entry.stat(follow_symlinks=False)
    except UnicodeEncodeError:
        found.unnamed.append(
            Problem(os.fsencode(entry.path).decode(errors="backslashreplace"), "its name is not UTF-8")
        )
    except OSError:
        return  # it vanished
    else:
        found.files[entry.path] = FileState(status.st_size, status.st_mtime_ns)
