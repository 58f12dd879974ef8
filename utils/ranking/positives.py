"""The ranks of the queries' positives, from which all metrics are computed, and the file that stores them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from utils.checkpoints.disk import whole_file
from utils.errors import UserError

RANKS_FILE = "ranks.npz"
PARTS = ("ranks", "counts", "pids")
CAPTIONS = "captions"  # UTF-8, one caption on a line
LARGEST = 2**30  # bytes of the arrays together


@dataclass(frozen=True)
class Ranks:
    """The ranks of the positives of Q queries; 1 is best, and ties count against the query.

    values: ``(P,)`` int32, query after query, the best rank of each query first.
    counts: ``(Q,)`` how many positives each query has.
    """

    values: NDArray[Any]
    counts: NDArray[Any]

    @classmethod
    def of(cls, ranks: Sequence[NDArray[Any]]) -> "Ranks":
        """Returns the ranks in a list that has one array for each query."""
        values = np.concatenate([np.zeros(0, dtype=np.int32), *ranks])
        return cls(values, np.array([len(own) for own in ranks], dtype=np.int64))

    def as_list(self) -> list[NDArray[Any]]:
        """Returns a list that has one array for each query."""
        return np.split(self.values, self.starts[1:]) if len(self.counts) else []

    @cached_property
    def starts(self) -> NDArray[Any]:
        """The position in `values` at which each query begins. Shape: ``(Q,)``."""
        return np.cumsum(self.counts) - self.counts

    @property
    def first(self) -> NDArray[Any]:
        """The rank of each query's best positive; every query must have one. Shape: ``(Q,)``."""
        return self.values[self.starts]

    @property
    def last(self) -> NDArray[Any]:
        """The rank of each query's worst positive; every query must have one. Shape: ``(Q,)``."""
        return self.values[self.starts + self.counts - 1]

    @property
    def place(self) -> NDArray[Any]:
        """The place of each positive among its query's positives, counted from 1. Shape: ``(P,)``."""
        return np.arange(1, len(self.values) + 1) - np.repeat(self.starts, self.counts)

    def mean(self, per_positive: NDArray[Any]) -> NDArray[Any]:
        """Returns the mean ``(Q,)`` of `per_positive` ``(P,)`` for each query; every query must have a positive."""
        values = per_positive.astype(np.float64)  # np.add of booleans would be a logical or
        return np.add.reduceat(values, self.starts) / self.counts if len(self.counts) else self.starts / 1

    def matched(self) -> "Ranks":
        """Returns the ranks of the queries that have a positive."""
        return Ranks(self.values, self.counts[self.counts > 0])

    def take(self, queries: NDArray[Any]) -> "Ranks":
        """Returns the ranks of the given `queries` ``(q,)``, in that order."""
        counts = self.counts[queries]
        starts = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(self.starts[queries] - starts, counts)
        return Ranks(self.values[places], counts)


def save_ranks(
    folder: str | Path,
    ranks: Mapping[str, Ranks],
    pids: Mapping[str, NDArray[Any]],
    captions: Sequence[str] = (),
) -> Path:
    """Writes `RANKS_FILE` into `folder` and returns its path.

    Args:
        ranks: direction -> ranks.
        pids: direction -> identities of the queries ``(Q,)``.
        captions: the Q queries of "t2i".
    """
    lines = "\n".join(" ".join(caption.split()) for caption in captions)
    arrays: dict[str, Any] = {CAPTIONS: np.frombuffer(lines.encode(errors="replace"), dtype=np.uint8)}
    for direction, own in ranks.items():
        for part, array in zip(PARTS, (own.values, own.counts, pids[direction]), strict=True):
            arrays[f"{direction}_{part}"] = array
    path = Path(folder, RANKS_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)
    return path


def load_ranks(path: str | Path) -> dict[str, tuple[Ranks, NDArray[Any]]]:
    """Returns direction -> (ranks, identities of the queries) from a run's `RANKS_FILE`; executes no code from it.

    Raises:
        UserError: if `path` is not such a file.
    """
    try:
        arrays = _read(path)
        directions = list(dict.fromkeys(name.rpartition("_")[0] for name in arrays if name != CAPTIONS))
        found = {d: [arrays[f"{d}_{part}"] for part in PARTS] for d in directions}
        for values, counts, pids in found.values():
            _check(values, counts, pids)
        return {d: (Ranks(values, counts), pids) for d, (values, counts, pids) in found.items()}
    except Exception as error:  # a damaged archive can raise almost any error
        raise _damaged(path, error) from error


def load_captions(path: str | Path) -> list[str]:
    """Returns the captions in a run's `RANKS_FILE`, none if an older version has written it.

    Raises:
        UserError: if `path` is not such a file.
    """
    try:
        lines = _read(path).get(CAPTIONS, np.zeros(0, dtype=np.uint8)).astype(np.uint8).tobytes().decode()
    except Exception as error:
        raise _damaged(path, error) from error
    return lines.split("\n") if lines else []


def _read(path: str | Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays in the file, unless they are larger than `LARGEST`."""
    with ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST >> 30} GiB")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _damaged(path: str | Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a {RANKS_FILE} that this framework wrote ({type(error).__name__}: {error}): test the run "
        "again with task=test"
    )


def _check(values: NDArray[Any], counts: NDArray[Any], pids: NDArray[Any]) -> None:
    """Raises `ValueError` if the arrays of a direction do not fit together."""
    for array in (values, counts, pids):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"an array of {array.dtype} of shape {array.shape}, expected whole numbers in a row")
    in_range = counts.min(initial=0) >= 0 and counts.max(initial=0) <= len(values)  # or their sum could overflow
    if len(counts) != len(pids) or not in_range or counts.sum() != len(values):
        raise ValueError(f"{len(values)} ranks, {counts.sum()} counted, {len(counts)} queries, {len(pids)} identities")
    if values.min(initial=1) < 1:
        raise ValueError("a rank below 1")
