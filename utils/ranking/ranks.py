"""Ranks of positives, counted over blocks of scores: without a full score matrix, and sorting only positives."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Final, NamedTuple

import torch
from torch import Tensor

from utils.training.progress import Bar

TILE: Final = 64
COMPARED: Final = 2**25  # comparisons of scores with positives that are in memory at a time, a byte each


class Grouped(NamedTuple):
    """The N items of one side, ordered so that items of the same identity are neighbours.

    order: ``(N,)`` the original index of each item.
    identity: ``(N,)`` the number of its identity, ascending, the same on both sides.
    first: ``(N,)`` the position on the other side at which its positives begin.
    matches: ``(N,)`` the number of its positives.
    """

    order: Tensor
    identity: Tensor
    first: Tensor
    matches: Tensor


def group_by_identity(pids: Tensor, other_pids: Tensor) -> tuple[Grouped, Grouped]:
    """Returns both sides, ``(Q,)`` and ``(G,)``, grouped; identities with similar numbers of items are neighbours."""
    _, numbers = torch.cat([pids.long(), other_pids.long()]).unique(return_inverse=True)
    sides = numbers.split([len(pids), len(other_pids)])
    sizes = [side.bincount(minlength=int(numbers.max()) + 1) for side in sides]
    by_size = (sizes[1] * (len(pids) + 1) + sizes[0]).argsort(stable=True)
    place = by_size.argsort()
    sorted_sides = [place[side].sort(stable=True) for side in sides]
    sizes = [size[by_size] for size in sizes]
    firsts = [size.cumsum(0) - size for size in sizes]
    mine, other = (
        Grouped(side.indices, side.values, first[side.values], size[side.values])
        for side, first, size in zip(sorted_sides, firsts[::-1], sizes[::-1], strict=True)
    )
    return mine, other


class RankBlock:
    """Neighbouring items of a side, the scores of their positives, and the number of negatives ahead of each positive.

    Args:
        side: the side that holds the items.
        start, stop: the range of the items.
        wanted: whether to rank these items.

    Attributes:
        positives: ``(K, n)``, the scores of up to K positives of n items, -inf where an item has fewer. They are
            sorted, best first, after all were collected and `sort` was called.
    """

    def __init__(self, side: Grouped, start: int, stop: int, *, wanted: bool) -> None:
        self.start, self.stop = start, stop
        self.order, self.identity, self.first, self.matches = (part[start:stop] for part in side)
        self.lowest, self.highest = int(self.identity[0]), int(self.identity[-1])
        most = int(self.matches.max()) if wanted else 0
        self._slots = torch.arange(most, device=self.first.device)[:, None]
        self.positives = self.first.new_full((most, stop - start), -torch.inf, dtype=torch.float32)
        self._num_ahead = torch.zeros_like(self.positives)
        self._lock = Lock()

    def shares_identities(self, other: "RankBlock") -> bool:
        """Returns whether the identity ranges of both blocks overlap."""
        return self.lowest <= other.highest and other.lowest <= self.highest

    def collect(self, scores: Tensor, start: int) -> None:
        """Stores the positives in `scores` ``(n, m)``, whose columns are the other side's items from `start` on."""
        columns = self.first + self._slots - start
        inside = (self._slots < self.matches) & (columns >= 0) & (columns < scores.shape[1])
        found = scores.T.gather(0, columns.clamp(0, scores.shape[1] - 1))
        with self._lock:
            self.positives = torch.where(inside, found, self.positives)

    def sort(self) -> None:
        """Sorts the positives, best first; call it after all are collected."""
        self.positives = self.positives.sort(dim=0, descending=True).values

    def count_negatives(self, scores: Tensor, buffer: Tensor) -> None:
        """Counts the `scores` ``(n, m)`` that are at least as high as each positive; overwrites `buffer` ``(n, m)``."""
        on_cpu = scores.device.type == "cpu"
        num_ahead = one_by_one(scores, self.positives, buffer) if on_cpu else together(scores, self.positives)
        with self._lock:
            self._num_ahead += num_ahead

    def ranks(self) -> Tensor:
        """Returns the ranks ``(n, K)`` of the positives, best first; rows with fewer than K positives are padded."""
        return (self._num_ahead + self._slots + 1).T

    def flat_ranks(self) -> Tensor:
        """Returns the ranks of the positives, item after item, without padding."""
        return self.ranks()[(self._slots < self.matches).T]


def one_by_one(scores: Tensor, positives: Tensor, buffer: Tensor) -> Tensor:
    """Returns the number ``(K, n)`` of `scores` ``(n, m)`` that are at least as high as each of `positives` ``(K, n)``.

    For a CPU: `buffer` ``(n, m)`` stays in its cache. Floats keep comparison and sum vectorised; sums are exact below
    2^24 items.
    """
    numbers = torch.empty_like(positives)
    for positive, number in zip(positives, numbers, strict=True):
        torch.ge(scores, positive[:, None], out=buffer)
        torch.sum(buffer, dim=1, out=number)
    return numbers


def together(scores: Tensor, positives: Tensor) -> Tensor:
    """Returns what `one_by_one` returns, with few kernels: on a GPU the start of each takes time."""
    some = positives.split(max(1, COMPARED // scores.numel()))
    return torch.cat([torch.sum(scores >= part[:, :, None], dim=2, dtype=torch.float32) for part in some])


def count_ranks(
    query: Tensor, gallery: Tensor, sides: tuple[Grouped, Grouped], size: int, *, both: bool
) -> tuple[list[RankBlock], list[RankBlock]]:
    """Returns the blocks of the query and of the gallery, counted; the gallery's are counted only if `both` is true.

    The first pass collects the positives' scores from the blocks that hold some; the second compares all blocks with
    them. All products have the same shape, a multiple of the tile: a matrix product may round the elements of a
    ragged edge, or of another shape, differently, and equal features must get equal scores wherever they stand.

    Args:
        query, gallery: features. Shapes: ``(Q, D)``, ``(G, D)``.
        sides: both sides from `group_by_identity`.
        size: items of a side in one block.
    """
    (rows, height), (columns, width) = (
        _rank_blocks(side, size, wanted=wanted) for side, wanted in zip(sides, (True, both), strict=True)
    )
    tiles = gallery.new_zeros(len(columns), width, gallery.shape[1], dtype=torch.float32)
    tiles.flatten(0, 1)[: len(gallery)] = gallery[sides[1].order]

    def blocks(row: RankBlock, against: Iterable[int]) -> Iterator[tuple[RankBlock, Tensor]]:
        chunk = query.new_zeros(height, query.shape[1], dtype=torch.float32)
        chunk[: len(row.order)] = query[row.order]
        block = chunk.new_empty(height, width)
        for number in against:
            torch.mm(chunk, tiles[number].T, out=block)
            yield columns[number], block[: len(row.order), : len(columns[number].order)]

    def collect(row: RankBlock) -> None:
        sharing = (number for number, column in enumerate(columns) if row.shares_identities(column))
        for column, scores in blocks(row, sharing):
            row.collect(scores, column.start)
            column.collect(scores.T, row.start)

    def count(row: RankBlock) -> None:
        buffer = query.new_empty(height, width, dtype=torch.float32)
        for column, scores in blocks(row, range(len(columns))):
            if row.shares_identities(column):
                scores.masked_fill_(row.identity[:, None] == column.identity, -torch.inf)
            free = buffer[: scores.shape[0], : scores.shape[1]]
            row.count_negatives(scores, free)
            column.count_negatives(scores.T, free.T)

    _side_by_side(collect, rows, "ranking, first pass")
    for block in (*rows, *columns):
        block.sort()
    _side_by_side(count, rows, "ranking, second pass")
    return rows, columns


def _side_by_side(work: Callable[[RankBlock], None], blocks: list[RankBlock], what: str) -> None:
    """Calls `work` for each block; on a CPU in single-core threads, which do not wait for each other."""
    threads = min(torch.get_num_threads(), len(blocks)) if blocks[0].first.device.type == "cpu" else 1
    if threads == 1:
        for block in Bar(blocks, desc=what, unit="block", leave=False):
            work(block)
        return
    before = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()  # modes are per thread

    @torch.no_grad()
    def as_here(block: RankBlock) -> None:
        with torch.inference_mode(inference):
            work(block)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(Bar(pool.map(as_here, blocks), desc=what, total=len(blocks), unit="block", leave=False))
    finally:
        torch.set_num_threads(before)  # the pool's setting is also the default for later threads


def whole_tiles(size: int) -> int:
    """Returns `size` rounded up to a multiple of `TILE`."""
    return -(-size // TILE) * TILE


def _rank_blocks(side: Grouped, size: int, *, wanted: bool) -> tuple[list[RankBlock], int]:
    """Returns the blocks of a side, of at most `size` items rounded up to whole tiles, and their length."""
    items = len(side.order)
    length = whole_tiles(-(-items // -(-items // whole_tiles(size))))
    blocks = [RankBlock(side, start, min(start + length, items), wanted=wanted) for start in range(0, items, length)]
    return blocks, length
