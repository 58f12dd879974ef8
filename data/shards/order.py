"""The order of pairs from shards: shuffled in windows of a few shards, and mixed from several sources."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from data.loading.samplers import EpochSampler, Indices
from utils.errors import UserError

WINDOW: Final = 16  # shards whose pairs are shuffled together


class PairStream:
    """An endless stream of the pairs of one source: pass after pass, each pair once in a pass.

    The shards come in a random order, and the pairs of `WINDOW` consecutive shards are shuffled together. The order and
    the seeds of a pass are a function of (seed, number of the pass), so the stream can start anywhere.

    Args:
        sizes: pairs of each shard. Shape: ``(S,)``.
        first: number of the source's first pair.
        seed: numbers that no other stream has.
    """

    def __init__(self, sizes: Sequence[int], first: int, seed: tuple[int, ...]) -> None:
        self._sizes = np.array(sizes, dtype=np.int64)
        self._starts = first + np.cumsum(self._sizes) - self._sizes
        self._seed = seed

    def start_at(self, position: int) -> "Cursor":
        """Returns a cursor at a position in the stream."""
        return Cursor(self._blocks(position))

    def _blocks(self, position: int) -> Iterator[Indices]:
        """Yields the rest of the window at `position`, then whole windows: pairs and their seeds, ``(2, N)``."""
        number, skipped = divmod(position, int(self._sizes.sum()))
        while True:
            order = np.random.default_rng((*self._seed, number)).permutation(len(self._sizes))
            for window in range(0, len(order), WINDOW):
                shards = order[window : window + WINDOW]
                size = int(self._sizes[shards].sum())
                if skipped >= size:
                    skipped -= size
                    continue
                rng = np.random.default_rng((*self._seed, number, 1 + window))  # a last 0 would give the seeds above
                pairs = np.concatenate([self._starts[one] + np.arange(self._sizes[one]) for one in shards])
                yield np.stack([rng.permutation(pairs), rng.integers(2**63, size=size)])[:, skipped:]
                skipped = 0
            number += 1


class Cursor:
    """A position in a stream of blocks ``(2, N)``."""

    def __init__(self, blocks: Iterator[Indices]) -> None:
        self._blocks = blocks
        self._rest = np.empty((2, 0), dtype=np.int64)

    def take(self, count: int) -> Indices:
        """Returns the next `count` columns, ``(2, count)``."""
        while self._rest.shape[1] < count:
            self._rest = np.concatenate([self._rest, next(self._blocks)], axis=1)
        taken, self._rest = self._rest[:, :count], self._rest[:, count:]
        return taken


class ShardSampler(EpochSampler):
    """A sampler of pairs from the shards of one or more sources.

    An epoch takes the next `shares[i]` pairs of source i, where the epoch before has stopped, in random turns. An epoch
    of all pairs of a single source has each pair at most once. An incomplete last batch is dropped.

    Args:
        sizes: for each source, the pairs of each of its shards. Pairs are numbered from 0, source after source.
        shares: for each source, its draws in an epoch.
        batch_size, seed, rank, world_size: as in `EpochSampler`.

    Raises:
        UserError: an epoch has fewer draws than processes, or `world_size` does not divide the batch.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[int]],
        shares: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        draws = sum(shares)
        if draws < world_size:
            raise UserError(f"An epoch of shards has {draws} draws for {world_size} processes; use fewer.")
        if draws < batch_size:
            batch_size = draws - draws % world_size
        super().__init__(draws // batch_size, batch_size, seed=seed, rank=rank, world_size=world_size)
        self._shares = list(shares)
        firsts = np.cumsum([0, *map(sum, sizes)]).tolist()
        self._streams = [
            PairStream(own, first, (seed, number))
            for number, (own, first) in enumerate(zip(sizes, firsts, strict=False))
        ]

    def _drawn(self, start: int) -> Iterator[tuple[Indices, Indices]]:
        turns, size = self._turns(), self.batch_size
        done = np.bincount(turns[: start * size], minlength=len(self._shares)).tolist()
        positions = [self.epoch * share + before for share, before in zip(self._shares, done, strict=True)]
        cursors = [stream.start_at(position) for stream, position in zip(self._streams, positions, strict=True)]
        for batch in range(start, len(self)):
            sources = turns[batch * size : (batch + 1) * size]
            drawn = np.empty((2, size), dtype=np.int64)
            for number, cursor in enumerate(cursors):
                own = sources == number
                drawn[:, own] = cursor.take(int(own.sum()))
            yield drawn[0], drawn[1]

    def _turns(self) -> NDArray[np.uint8]:
        """Returns the number of the source of each draw of the epoch, a byte each."""
        turns = np.repeat(np.arange(len(self._shares), dtype=np.uint8), self._shares)
        if len(self._shares) > 1:
            np.random.default_rng((self._seed, len(self._shares), self.epoch, 2**32 - 1)).shuffle(turns)
        return turns
