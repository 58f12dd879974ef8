"""Ranks of positives, counted over blocks of scores: no score matrix, and nothing is sorted but the positives."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from utils.training.progress import Bar

TILE = 64


class Grouped(NamedTuple):
    """The N items of one side, ordered so that those of an identity stand together.

    order: ``(N,)`` which item stands where.
    identity: ``(N,)`` a number for its identity, rising, the same on both sides.
    first: ``(N,)`` where its positives begin on the other side.
    matches: ``(N,)`` how many there are.
    """

    order: Tensor
    identity: Tensor
    first: Tensor
    matches: Tensor


def group_by_identity(pids: Tensor, other_pids: Tensor) -> tuple[Grouped, Grouped]:
    """Returns both sides, ``(Q,)`` and ``(G,)``, with identities of similar size next to each other."""
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
    """Some neighbouring items of a side: the scores of their positives, and how many negatives are ahead of each.

    Args:
        side: where they are taken from.
        start, stop: which.
        wanted: whether they are to be ranked at all.

    Attributes:
        positives: ``(K, n)`` of n items with K positives at most, once all are collected and `sort` was called the
            best first; -inf where an item has fewer.
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
        """Whether the identities of both overlap."""
        return self.lowest <= other.highest and other.lowest <= self.highest

    def collect(self, scores: Tensor, start: int) -> None:
        """Takes the positives among `scores` ``(n, m)`` against the items from `start` on of the other side."""
        columns = self.first + self._slots - start
        inside = (self._slots < self.matches) & (columns >= 0) & (columns < scores.shape[1])
        found = scores.T.gather(0, columns.clamp(0, scores.shape[1] - 1))
        with self._lock:
            self.positives = torch.where(inside, found, self.positives)

    def sort(self) -> None:
        """Puts the positives in order once all are collected."""
        self.positives = self.positives.sort(dim=0, descending=True).values

    def count_negatives(self, scores: Tensor, buffer: Tensor) -> None:
        """Counts those among `scores` ``(n, m)`` that are not below a positive; `buffer` ``(n, m)`` is overwritten."""
        # Comparing into a float buffer keeps comparison and sum vectorised; sums are exact below 2^24 items.
        num_ahead = torch.empty_like(self.positives)
        for positive, number in zip(self.positives, num_ahead, strict=True):
            torch.ge(scores, positive[:, None], out=buffer)
            torch.sum(buffer, dim=1, out=number)
        with self._lock:
            self._num_ahead += num_ahead

    def ranks(self) -> Tensor:
        """Ranks ``(n, K)`` of the positives, the best first; an item with fewer than K ends in filling."""
        return (self._num_ahead + self._slots + 1).T

    def flat_ranks(self) -> Tensor:
        """Ranks of the positives of one item after the other, without filling."""
        return self.ranks()[(self._slots < self.matches).T]


def count_ranks(
    query: Tensor, gallery: Tensor, sides: tuple[Grouped, Grouped], size: int, *, both: bool
) -> tuple[list[RankBlock], list[RankBlock]]:
    """Returns the query's and the gallery's blocks, counted; those of the gallery only where `both` are wanted.

    The positives' scores are collected from the blocks that hold some, then all blocks are compared with them.
    All products have one shape, of whole tiles: a matrix product may round the elements of a ragged edge, or of
    another shape, differently, and equal features must get equal scores wherever they stand.

    Args:
        query, gallery: ``(Q, D)`` and ``(G, D)``.
        sides: from `group_by_identity`.
        size: of a block, in items of a side.
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
    """Calls `work` for each block: on a CPU in threads of one core each, which then never wait for one another."""
    threads = min(torch.get_num_threads(), len(blocks)) if blocks[0].first.device.type == "cpu" else 1
    if threads == 1:
        for block in Bar(blocks, desc=what, unit="block", leave=False):
            work(block)
        return
    before = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()  # each thread has modes of its own

    @torch.no_grad()
    def as_here(block: RankBlock) -> None:
        with torch.inference_mode(inference):
            work(block)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(Bar(pool.map(as_here, blocks), desc=what, total=len(blocks), unit="block", leave=False))
    finally:
        torch.set_num_threads(before)  # what a thread sets is also the default of threads to come


def whole_tiles(size: int) -> int:
    """Returns `size` rounded up to a multiple of `TILE`."""
    return -(-size // TILE) * TILE


def _rank_blocks(side: Grouped, size: int, *, wanted: bool) -> tuple[list[RankBlock], int]:
    """Returns a side in blocks of at most `size` items (rounded up to whole tiles), and that number."""
    items = len(side.order)
    length = whole_tiles(-(-items // -(-items // whole_tiles(size))))
    blocks = [RankBlock(side, start, min(start + length, items), wanted=wanted) for start in range(0, items, length)]
    return blocks, length
