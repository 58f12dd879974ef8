"""The tables of an index in LanceDB, and the model that the index is bound to."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

os.environ.setdefault("LANCEDB_LOG", "error")  # lancedb reads it when it is imported
import lancedb
import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from lancedb import Expr, col, lit
from lancedb.index import IvfFlat
from numpy.typing import NDArray

from search.files import FileState, within
from utils.errors import UserError

EXACT_UP_TO: Final = 100_000  # rows; beyond, a sentence is compared with the nearest partitions only
PROBES: Final = 20  # of some 4,000 rows each
SEEN_AFTER: Final = timedelta(seconds=1)  # until a reader sees what an indexer commits
KEPT: Final = timedelta(hours=1)  # of versions before the newest, which a reader may still read
AT_ONCE: Final = 1_000  # rows that one deletion names
IMAGES: Final = "images"
UNREADABLE: Final = "unreadable"
VECTOR: Final = "vector"
MODEL: Final = "model"
STATE: Final = (pa.field("id", pa.string()), pa.field("path", pa.string()), pa.field("folder", pa.string()))
STATE_OF_FILE: Final = (pa.field("size", pa.int64()), pa.field("mtime", pa.int64()))


class Model(NamedTuple):
    """The model of an index: fingerprint of its encoder, where it was loaded from, and width of embeddings."""

    fingerprint: str
    source: str
    width: int


class ImageRow(NamedTuple):
    """An image in the index. `id` is `id_of` its path, `hash` the SHA-256 of its file, `thumbnail` a JPEG."""

    id: str
    path: str
    folder: str
    size: int
    mtime: int
    hash: str
    thumbnail: bytes
    vector: NDArray[np.float32]


class UnreadableRow(NamedTuple):
    """A file that cannot be read as an image, and the reason."""

    id: str
    path: str
    folder: str
    size: int
    mtime: int
    why: str


class Known(NamedTuple):
    """What an index knows of a file: its state, and its hash; None for a file that cannot be read."""

    state: FileState
    hash: str | None


class Hit(NamedTuple):
    """An image that was found, with its inner product with the query."""

    id: str
    path: str
    folder: str
    score: float


def id_of(path: str) -> str:
    """Returns the id of the image at an absolute path."""
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def in_folder(folder: str) -> Expr:
    """Returns the condition that a row's path lies in `folder`."""
    start = within(folder)
    return (col("path") >= lit(start)) & (col("path") < lit(start[:-1] + chr(ord("/") + 1)))


class Tables:
    """The tables of the index at `place`: a folder, or an address of object storage such as ``s3://bucket/index``.

    Each write is one version of a table: a process that is killed leaves the tables before or after it.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self._is_local = "://" not in self.place
        self._images: Any = None
        self._unreadable: Any = None
        if not self._is_local or Path(self.place, f"{IMAGES}.lance").is_dir():
            self._open()

    @property
    def model(self) -> Model | None:
        """The model that the index is bound to; None if there is no index yet."""
        if self._images is None:
            return None
        metadata = self._images.schema.field(VECTOR).metadata or {}
        try:
            return Model(**json.loads(metadata[MODEL.encode()]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.place} is not an index of this project; name another folder with --index"
            ) from error

    def bind(self, model: Model) -> None:
        """Creates the tables for the embeddings of a model, or notes where the same model was loaded from.

        Raises:
            UserError: if the index is bound to another model.
        """
        bound = self.model
        if bound is None or not len(self):  # there is nothing in it that a model has made
            vector = pa.field(
                VECTOR, pa.list_(pa.float32(), model.width), metadata={MODEL: json.dumps(model._asdict())}
            )
            kept = (*STATE, *STATE_OF_FILE, pa.field("hash", pa.string()), pa.field("thumbnail", pa.binary()), vector)
            why = (*STATE, *STATE_OF_FILE, pa.field("why", pa.string()))
            database = self._connect()
            self._unreadable = database.create_table(UNREADABLE, schema=pa.schema(why), mode="overwrite")
            self._images = database.create_table(IMAGES, schema=pa.schema(kept), mode="overwrite")
        elif bound.fingerprint != model.fingerprint:
            raise UserError(
                f"the index {self.place} is bound to the model {bound.source}, whose embeddings differ from those of "
                f"{model.source}; use that model, or name another index with --index"
            )
        elif bound != model:
            self._images.update_field_metadata({"path": VECTOR, "metadata": {MODEL: json.dumps(model._asdict())}})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets only one process at a time change an index in a folder.

        Raises:
            UserError: if another process changes it.
        """
        if not self._is_local:
            yield
            return
        try:
            Path(self.place).mkdir(parents=True, exist_ok=True)
            with FileLock(Path(self.place, ".lock"), timeout=0):
                self._open()  # as the last process left it
                yield
        except Timeout as error:
            raise UserError(f"another process changes the index {self.place}; wait until it has ended") from error

    def known(self, folder: str) -> dict[str, Known]:
        """Returns what is known of the files below `folder`, by path."""
        found: dict[str, Known] = {}
        if self._images is None:
            return found
        for table, has_hash in ((self._unreadable, False), (self._images, True)):
            columns = ["path", "size", "mtime", *(["hash"] if has_hash else [])]
            for row in table.search().where(in_folder(folder)).select(columns).to_arrow().to_pylist():
                found[row["path"]] = Known(FileState(row["size"], row["mtime"]), row.get("hash"))
        return found

    def hashes(self) -> set[str]:
        """Returns the hashes of all images."""
        return set(self._images.search().select(["hash"]).to_arrow()["hash"].to_pylist())

    def with_hashes(self, hashes: Collection[str]) -> dict[str, ImageRow]:
        """Returns, for each of these hashes that the index has, an image with it."""
        if not hashes:
            return {}
        rows = self._images.search().where(col("hash").isin(sorted(hashes))).to_arrow()
        return {row["hash"]: ImageRow(**row) for row in rows.select(ImageRow._fields).to_pylist()}

    def write(self, images: Sequence[ImageRow], unreadable: Sequence[UnreadableRow]) -> None:
        """Writes rows, over those of the same files."""
        for table, rows in ((self._unreadable, unreadable), (self._images, images)):
            if rows:
                merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(_arrow(rows, table.schema))

    def remove(self, paths: Collection[str]) -> None:
        """Removes the rows of files."""
        ids = sorted(map(id_of, paths))
        for start in range(0, len(ids), AT_ONCE):
            condition = col("id").isin(ids[start : start + AT_ONCE])
            self._images.delete(condition)
            self._unreadable.delete(condition)

    def settle(self) -> None:
        """Joins the small pieces that batches leave and, for many images, makes or extends the index of vectors."""
        if self._images.count_rows() > EXACT_UP_TO and not self._images.list_indices():
            self._images.create_index(VECTOR, config=IvfFlat(distance_type="dot"))
        for table in (self._images, self._unreadable):
            table.optimize(cleanup_older_than=KEPT)

    def nearest(self, vector: NDArray[np.float32], k: int, folder: str | None = None) -> list[Hit]:
        """Returns the `k` images whose embeddings have the largest inner product with `vector`, the best first."""
        query = self._images.search(vector, vector_column_name=VECTOR).distance_type("dot").nprobes(PROBES).limit(k)
        if folder is not None:
            query = query.where(in_folder(folder))
        rows = query.select(["id", "path", "folder", "_distance"]).to_arrow().to_pylist()
        return [Hit(row["id"], row["path"], row["folder"], 1 - row["_distance"]) for row in rows]

    def image(self, image_id: str) -> ImageRow | None:
        """Returns the image with an id, or None."""
        rows = self._images.search().where(col("id") == lit(image_id)).limit(1).to_arrow()
        return next((ImageRow(**row) for row in rows.select(ImageRow._fields).to_pylist()), None)

    def paths(self) -> list[tuple[str, str]]:
        """Returns the path of each image, and the indexed folder that it belongs to."""
        rows = self._images.search().select(["path", "folder"]).to_arrow()
        return list(zip(rows["path"].to_pylist(), rows["folder"].to_pylist(), strict=True))

    def unreadable(self) -> list[UnreadableRow]:
        """Returns the files that cannot be read."""
        rows = self._unreadable.search().to_arrow().select(UnreadableRow._fields)
        return [UnreadableRow(**row) for row in rows.to_pylist()]

    def __len__(self) -> int:
        return 0 if self._images is None else self._images.count_rows()

    def _connect(self) -> Any:
        return lancedb.connect(self.place, read_consistency_interval=SEEN_AFTER)

    def _open(self) -> None:
        database = self._connect()
        if IMAGES in database.list_tables().tables:
            self._images, self._unreadable = (database.open_table(name) for name in (IMAGES, UNREADABLE))


def _arrow(rows: Sequence[NamedTuple], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True))
    if VECTOR in columns:
        values = pa.array(np.concatenate(columns[VECTOR]).astype(np.float32))
        columns[VECTOR] = pa.FixedSizeListArray.from_arrays(values, schema.field(VECTOR).type.list_size)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
