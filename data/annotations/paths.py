"""Finds the images that an annotation file names, however the name is spelled there."""

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

LONGEST_PATH: Final = 4_096  # characters, what Linux takes
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class ImagePaths:
    """Finds the images of a dataset by the names that an annotation file has for them.

    A folder is listed once, when the first image in it is asked for. Links are followed: whoever made them has the
    right to the data, and an archive cannot bring any (`utils.download.archives`).

    Args:
        folder: the images lie below it.

    Attributes:
        respelled: name in the annotation file -> name on disk, where these differ in more than the slashes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = cache(self._listed)
        self._folded = cache(self._by_folded_name)
        self.respelled: dict[str, str] = {}

    def find(self, text: str) -> str:
        r"""Returns the path of an image below the folder, with slashes, as it is spelled on disk.

        Where there is no such file, the one that differs from it in nothing but case, the Unicode form of its letters
        or ``\`` for ``/`` is taken, if there is exactly one; if not, the path is returned as it was given.

        Raises:
            WrongValueError: a path that is absolute, climbs, names no file or is none; on every system.
        """
        path = _checked(text)
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
        """Returns the only path that spells `path` in another way; None if there are none or several."""
        found = ""
        for name in path.split("/"):
            if name not in self._names(found):
                alike = self._folded(found)[_fold(name)]
                if len(alike) > 1:  # case tells them apart
                    alike = [other for other in alike if _composed(other) == _composed(name)]
                if len(alike) != 1:
                    return None
                name = alike[0]
            found = posixpath.join(found, name)
        return found

    def _listed(self, folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self._folder / folder))
        except (OSError, ValueError):  # whoever reads the images tells why
            return frozenset()

    def _by_folded_name(self, folder: str) -> defaultdict[str, list[str]]:
        names = defaultdict(list)
        for name in sorted(self._names(folder)):
            names[_fold(name)].append(name)
        return names


def nearest_name(file: Path) -> str:
    """Returns ``"; there is NAME"`` for what lies nearest to where a missing file should, or an empty string.

    The numbers in a name tell one image from another: those of the nearest name are the same.
    """
    missing = file
    try:
        while not missing.parent.is_dir():
            if missing.parent == missing:
                return ""
            missing = missing.parent
        names = [] if missing.exists() else os.listdir(missing.parent)
    except OSError:  # whoever reads the file tells why
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
    parts = PureWindowsPath(text)  # splits at / and \, knows drives
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
    """Returns `name` without what systems disagree on: case and the Unicode form of letters."""
    return _composed(_composed(name).casefold())
