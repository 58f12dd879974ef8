"""Indexing of a folder: finds what is new, changed and gone, and encodes what the index does not have yet."""

import hashlib
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.images.read import Resize
from search.files import FileState, Problem, list_images, real_folder, within
from search.tables import ImageRow, Known, Model, Tables, UnreadableRow, id_of
from utils.errors import UserError
from utils.images import BadImageError, image_faults, read_bytes, read_rgb
from utils.training.threads import in_threads

BATCH: Final = 64  # files of a commit
THUMBNAIL: Final = 224  # pixels of the longer side
QUALITY: Final = 70


class Encoder(Protocol):
    """The parts of `encoder_loading.LoadedEncoder` that search uses."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def source(self) -> Path: ...
    @property
    def resize(self) -> Resize: ...
    def images(self, pixels: Tensor) -> Tensor: ...
    def texts(self, sentences: Sequence[str]) -> Tensor: ...


class Added(NamedTuple):
    """The changes of an index: numbers of images, and the files and folders that cannot be read.

    encoded: images whose content the index did not have. links: links, which are not followed.
    """

    new: int
    changed: int
    unchanged: int
    gone: int
    encoded: int
    links: int
    unreadable: list[Problem]


class _Looked(NamedTuple):
    """A file after a look: its hash, pixels and thumbnail if the index lacks its content, or why it is unreadable."""

    path: str
    state: FileState
    hash: str = ""
    pixels: Tensor | None = None
    thumbnail: bytes = b""
    fault: BadImageError | None = None


def model_of(encoder: Encoder) -> Model:
    """Returns the model that an index of this encoder's embeddings is bound to."""
    return Model(encoder.fingerprint, str(encoder.source.resolve()), encoder.width)


def add_folder(tables: Tables, folder: str | Path, encoder: Encoder) -> Added:
    """Brings the index up to date with the image files below `folder`.

    A file with the same size and time as before is not read, a file with known content is not encoded. Files that
    cannot be read are noted and left out. Every `BATCH` files are one commit, so that a killed process loses at most
    the last batch; the next one goes on from there with the same batches.

    Raises:
        UserError: there is no such folder, the index is bound to another model, another process changes it, or all
            images are gone.
    """
    root = real_folder(folder)
    with tables.locked():
        listing, known = list_images(root), tables.known(str(root))
        if not listing.files:
            _refuse_nothing(root, listing.links, len(known), tables.place)
        tables.bind(model_of(encoder))
        open_ones = _not_below(known, [problem.path for problem in listing.closed])
        missing = {path for path in open_ones if path not in listing.files}
        same = {path for path, state in listing.files.items() if path in known and known[path].state == state}
        todo = [(path, state) for path, state in listing.files.items() if path not in same]
        indexing = _Indexing(tables, encoder, str(root), known)
        indexing.run(todo)
        missing |= indexing.vanished
        tables.remove(missing)
        if todo or missing:
            tables.settle()
        below = within(str(root))
        noted = [Problem(row.path, row.why) for row in tables.unreadable() if row.path.startswith(below)]
        return Added(
            new=indexing.new,
            changed=indexing.changed,
            unchanged=sum(known[path].hash is not None for path in same),
            gone=len(missing & known.keys()),
            encoded=indexing.encoded,
            links=listing.links,
            unreadable=sorted([*listing.closed, *listing.unnamed, *noted]),
        )


class _Indexing:
    """The indexing of files that are new or changed."""

    def __init__(self, tables: Tables, encoder: Encoder, folder: str, known: dict[str, Known]) -> None:
        self._tables, self._encoder, self._folder, self._known = tables, encoder, folder, known
        self._hashes = tables.hashes()
        self.new = self.changed = self.encoded = 0
        self.vanished: set[str] = set()

    def run(self, files: Sequence[tuple[str, FileState]]) -> None:
        """Indexes files, a commit for each batch."""
        looks = in_threads(self._look, files, total=len(files), title="indexing", unit="img")
        batch: list[_Looked] = []
        for number, looked in enumerate(looks, start=1):
            batch.append(looked)
            if number % BATCH == 0 or number == len(files):
                self._commit(batch)
                batch = []

    def _look(self, file: tuple[str, FileState], *, decode: bool = False) -> _Looked:
        path, state = file
        try:
            content = read_bytes(Path(path))
            found = hashlib.sha256(content).hexdigest()
            if found in self._hashes and not decode:
                return _Looked(path, state, found)
            image = read_rgb(content)
            with image_faults():
                return _Looked(path, state, found, self._encoder.resize(image), thumbnail_of(image))
        except BadImageError as error:
            return _Looked(path, state, fault=error)

    def _commit(self, batch: Sequence[_Looked]) -> None:
        self.vanished |= {looked.path for looked in batch if looked.fault and looked.fault.fault == "missing"}
        broken = [looked for looked in batch if looked.fault and looked.path not in self.vanished]
        whole = [looked for looked in batch if not looked.fault]
        there = self._tables.with_hashes({looked.hash for looked in whole} & self._hashes)
        # Another file had this content, and lost it while this batch was looked at.
        whole = [
            self._look(looked[:2], decode=True) if looked.pixels is None and looked.hash not in there else looked
            for looked in whole
        ]
        there |= self._encoded(
            {looked.hash: looked for looked in whole if looked.hash not in there and not looked.fault}
        )
        broken += [looked for looked in whole if looked.fault]
        self._tables.remove({looked.path for looked in batch if self._changes_table(looked)})
        self._tables.write(
            [self._row(looked, there[looked.hash]) for looked in whole if not looked.fault],
            [UnreadableRow(*self._place(looked), str(looked.fault)) for looked in broken],
        )
        self._hashes |= there.keys()
        images = [looked.path for looked in whole if not looked.fault]
        changed = sum(path in self._known and self._known[path].hash is not None for path in images)
        self.changed += changed
        self.new += len(images) - changed

    def _encoded(self, contents: dict[str, _Looked]) -> dict[str, ImageRow]:
        """Returns rows with the embeddings of images with different content."""
        if not contents:
            return {}
        looks = list(contents.values())
        vectors = self._encoder.images(torch.stack([looked.pixels for looked in looks])).numpy()  # type: ignore[misc]
        self.encoded += len(looks)
        return {
            looked.hash: ImageRow(*self._place(looked), looked.hash, looked.thumbnail, vector)
            for looked, vector in zip(looks, vectors, strict=True)
        }

    def _changes_table(self, looked: _Looked) -> bool:
        """Returns whether a file could be read before and cannot now, or the other way round."""
        before = self._known.get(looked.path)
        return before is not None and (before.hash is None) != (looked.fault is not None)

    def _place(self, looked: _Looked) -> tuple[str, str, str, int, int]:
        return id_of(looked.path), looked.path, self._folder, *looked.state

    def _row(self, looked: _Looked, same: ImageRow) -> ImageRow:
        vector: NDArray[np.float32] = np.asarray(same.vector, dtype=np.float32)
        return ImageRow(*self._place(looked), looked.hash, same.thumbnail, vector)


def thumbnail_of(image: Image.Image) -> bytes:
    """Returns an RGB image as a small JPEG."""
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2.0)
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _not_below(paths: Collection[str], closed: Sequence[str]) -> list[str]:
    starts = tuple(map(within, closed))
    return [path for path in paths if not path.startswith(starts)]


def _refuse_nothing(root: Path, links: int, indexed: int, place: str) -> None:
    if indexed:
        raise UserError(
            f"{root} has no image any more, and the index {place} has {indexed:,} of it; is its disk mounted? If they "
            "are really gone, make a new index"
        )
    hint = f"; its {links:,} links are not followed, name the folder that they lead to" if links else ""
    raise UserError(f"{root} has no image{hint or ', such as a JPEG or PNG file; name the folder of your images'}")
