"""Search for the images that an annotation file names, also if the spelling differs on disk."""

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Final

from data.annotations.values import WrongValueError, short

LONGEST_PATH: Final = 4_096  # characters, Linux's limit
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class ImagePaths:
    """A finder of a dataset's images by their paths in the annotation file.

    Each folder is listed once, at its first image. Links are followed: only the user can have made them, because
    archives with links are refused (`utils.download.archives`).

    Args:
        folder: the folder that holds the images.

    Attributes:
        respelled: path in the annotation file -> path on disk, if they differ in more than the slashes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prefix = f"{os.path.abspath(folder)}/"
        self._names = cache(self._listed)
        self._folded = cache(self._by_folded_name)
        self.respelled: dict[str, str] = {}

    def find(self, text: str) -> str:
        r"""Returns the path of an image below the folder, with slashes, as it is spelled on disk.

        If there is no such file, it looks for files whose path differs only in case, in the Unicode form of letters
        or in ``\`` for ``/``. If there is exactly one, it returns this path, else the given path with slashes.

        Raises:
            WrongValueError: if the path is absolute and not below the folder, contains "..", names no file or is
                invalid; on every system.
        """
        path = _checked(text.removeprefix(self._prefix))
        if self._is_there(path):
            return path
        slashed = posixpath.normpath(path.replace("\\", "/"))
        found = self._on_disk(slashed)
        if found is None:
            return slashed
        if found != path:
            self.respelled[text] = found
        return found

    def _is_there(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self._names(folder)

    def _on_disk(self, path: str) -> str | None:
        """Returns the path on disk that differs from `path` only in spelling; None if there are none or several."""
        found = ""
        for name in path.split("/"):
            if name not in self._names(found):
                alike = self._folded(found)[_fold(name)]
                if len(alike) > 1:  # they differ in case
                    alike = [other for other in alike if _composed(other) == _composed(name)]
                if len(alike) != 1:
                    return None
                name = alike[0]
            found = posixpath.join(found, name)
        return found

    def _listed(self, folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self._folder / folder))
        except (OSError, ValueError):  # reading the images will report the reason
            return frozenset()

    def _by_folded_name(self, folder: str) -> defaultdict[str, list[str]]:
        names = defaultdict(list)
        for name in sorted(self._names(folder)):
            names[_fold(name)].append(name)
        return names


def nearest_name(file: Path) -> str:
    """Returns ``"; there is NAME"`` for the existing name most similar to a missing file's, or an empty string.

    Only names with the same digits are compared, because digits distinguish images.
    """
    missing = file
    try:
        while not missing.parent.is_dir():
            if missing.parent == missing:
                return ""
            missing = missing.parent
        names = [] if missing.exists() else os.listdir(missing.parent)
    except OSError:  # reading the file will report the reason
        return ""
    alike = [name for name in names if _digits(name) == _digits(missing.name)]
    nearest = get_close_matches(missing.name, alike, n=1, cutoff=0.6)
    return f"; there is {short(nearest[0])}" if nearest else ""


def _checked(text: str) -> str:
    """Returns the normalised POSIX path `text`."""
    if len(text) > LONGEST_PATH:
        raise WrongValueError(f"{short(text)} is a path of {len(text):,} characters")
    if control := _CONTROL.search(text):
        raise WrongValueError(f"{short(text)} has a line break or control character (U+{ord(control[0]):04X})")
    parts = PureWindowsPath(text)  # splits at / and \ and recognises drives
    if parts.anchor or ".." in parts.parts:
        raise WrongValueError(f"{short(text)} is absolute or climbs out of the dataset folder")
    path = posixpath.normpath(text)
    if not parts.parts:
        raise WrongValueError(f"{short(text)} names no file")
    return path


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _fold(name: str) -> str:
    """Returns `name` without differences between systems: case and the Unicode form of letters."""
    return _composed(_composed(name).casefold())
