"""Safe unpacking of dataset archives: no file leaves the folder, and no incomplete dataset is left in place."""

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Final

from utils.checkpoints.disk import scratch_folder
from utils.errors import UserError, first_line
from utils.training.progress import Bar

IMAGE_FOLDER: Final = "imgs"
DEEPEST: Final = 50  # nested folders


def install(archive: Path, target: Path) -> None:
    """Unpacks `archive` beside `target` and moves the folder in it that holds ``imgs/`` to `target`.

    ``imgs/`` may lie inside any number of folders with any names. Files that `target` already has, such as an
    annotation file, stay.

    Raises:
        UserError: if the file is damaged or not an archive, has links, devices or a member outside the folder, has no
            ``imgs/`` or several, has a name that `target` already has, or the disk is full. `target` is not changed.
    """
    name, target = target.name, target.resolve()
    with _one_sentence(archive), scratch_folder(target) as staging:
        unpack(archive, staging)
        _move_in(_dataset_in(staging, archive, name), target)


def unpack(archive: Path, folder: Path) -> None:
    r"""Unpacks a zip or (compressed) tar archive below `folder`; accepts only plain files and folders.

    A ``\`` in a name is read as ``/``, because some Windows programs write it.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
            return
        if tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
            return
    except (OSError, UserError):
        raise
    except Exception as error:  # formats and compressions raise a dozen types
        raise UserError(f"{archive} is damaged ({first_line(error)}); delete it and fetch it again") from error
    raise UserError(
        f"{archive} is neither a zip nor a tar archive; a download may be the error page of a server: "
        "look into it, delete it and fetch it again"
    )


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            member.filename = member.filename.replace("\\", "/")
            _check(archive, member.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if member.flag_bits & 1:
                raise UserError(f"{archive} is encrypted; unpack it by hand and pack it again without a password")
        _check_room(archive, sum(member.file_size for member in members), folder)
        for member in Bar(members, desc=f"unpacking {archive.name}"):
            opened.extract(member, folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        for member in Bar(opened, desc=f"unpacking {archive.name}"):
            member.name = member.name.replace("\\", "/")
            _check(archive, member.name, plain=member.isreg() or member.isdir())
            _check_room(archive, member.size, folder)
            opened.extract(member, folder, filter="data")


def _check_room(archive: Path, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{archive} unpacks to {needed} bytes, but {folder.parent} has {free} free; make room and run the same "
            "command again"
        )


def _check(archive: Path, name: str, *, plain: bool) -> None:
    path = PureWindowsPath(name)  # also takes / as a separator, and knows drives
    if path.anchor or ".." in path.parts:
        raise UserError(f"{archive} holds {name!r}, which would leave the folder; nothing of it was kept")
    if len(path.parts) > DEEPEST:
        raise UserError(f"{archive} holds {name!r}, {len(path.parts)} folders deep; nothing of it was kept")
    if not plain:
        raise UserError(f"{archive} holds {name!r}, a link or a device; pack plain files and folders only")


def _dataset_in(staging: Path, archive: Path, name: str) -> Path:
    """Returns the folder at or below `staging` that has ``imgs/`` in it; of several, the one called `name`."""
    found = []
    for folder, children, _ in os.walk(staging):
        if IMAGE_FOLDER in children:
            found.append(Path(folder))
        children[:] = [child for child in children if child not in (IMAGE_FOLDER, "__MACOSX")]
    named = [folder for folder in found if folder.name == name]
    choice = named if len(found) > 1 else found
    if len(choice) != 1:
        listed = sorted(str(folder.relative_to(staging)) for folder in found)
        what = f"several ({', '.join(listed)})" if found else f"none among {sorted(os.listdir(staging))[:5]}"
        raise UserError(f"{archive} should hold one folder with {IMAGE_FOLDER}/ in it, but there is {what}")
    return choice[0]


def _move_in(source: Path, target: Path) -> None:
    if not target.exists():
        source.replace(target)
        return
    children = sorted(source.iterdir(), key=lambda child: child.name == IMAGE_FOLDER)
    taken = [child.name for child in children if (target / child.name).exists()]
    if taken:
        raise UserError(f"{target} has {', '.join(taken)} already; move that away and run the same command again")
    for child in children:
        child.replace(target / child.name)


@contextmanager
def _one_sentence(archive: Path) -> Iterator[None]:
    if not archive.is_file():
        raise UserError(f"{archive} is not a file; give the path of a zip or tar archive")
    try:
        yield
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked ({error.strerror or error}); nothing was changed") from error
