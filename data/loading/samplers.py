"""Batch samplers: random pairs, or P persons x K pairs. Batches do not depend on the number of processes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError

Indices = NDArray[np.int64]


class Draw(NamedTuple):
    """A pair to load: its position in the training set, and the seed of its augmentation."""

    pair: int
    seed: int


class EpochSampler(ABC):
    """A sampler that yields this process's share of every batch of an epoch, as lists of draws.

    Batches and seeds are a function of (seed, epoch) alone. Every process gets `batch_size / world_size`
    consecutive draws of each batch, so that the shares, gathered in order of rank, are the batch that a
    single process would see.

    Args:
        batches: batches in an epoch.
        batch_size: pairs in a batch, over all processes.
        seed: seed of the run.
        rank, world_size: number of this process, and of all processes.

    Attributes:
        epoch: the epoch to draw.
        start: the number of batches to skip (`ResumableLoader` sets it to continue an epoch).
    """

    def __init__(self, batches: int, batch_size: int, *, seed: int, rank: int, world_size: int) -> None:
        if batch_size % world_size:
            raise UserError(
                f"dataset.batch_size={batch_size} counts the pairs of all processes together and cannot be "
                f"shared out evenly over {world_size}; choose a multiple of {world_size}."
            )
        self.epoch = 0
        self.start = 0
        self._batches = batches
        self._batch_size = batch_size
        self._seed = seed
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)

    @property
    def batch_size(self) -> int:
        """Pairs in a batch, over all processes."""
        return self._batch_size

    @property
    def sampler(self) -> "EpochSampler":
        """This sampler: Lightning calls `set_epoch` on the `sampler` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns the number of batches in a whole epoch, including skipped ones."""
        return self._batches

    def __iter__(self) -> Iterator[list[Draw]]:
        for pairs, seeds in self._drawn(self.start):
            yield [Draw(*draw) for draw in zip(pairs[self._mine].tolist(), seeds[self._mine].tolist(), strict=True)]

    @abstractmethod
    def _drawn(self, start: int) -> Iterator[tuple[Indices, Indices]]:
        """Yields the pairs and the seeds of each batch of the epoch from batch `start` on, both ``(batch_size,)``."""


class TableSampler(EpochSampler):
    """A sampler that draws all pairs of an epoch at its beginning."""

    def _drawn(self, start: int) -> Iterator[tuple[Indices, Indices]]:
        rng = np.random.default_rng((self._seed, self.epoch))
        indices = self._indices(rng)
        seeds = rng.integers(2**63, size=indices.shape)
        yield from zip(indices[start:], seeds[start:], strict=True)

    @abstractmethod
    def _indices(self, rng: np.random.Generator) -> Indices:
        """Returns the pairs of one epoch, ``(batches, batch_size)``."""


class RandomSampler(TableSampler):
    """A sampler of pairs in random order; every pair comes at most once in an epoch.

    An incomplete last batch is dropped; each epoch drops other pairs. A training set smaller than one batch gives
    one batch of all its pairs, rounded down to a multiple of world_size.

    Args:
        pairs: number of pairs in the training set.
        batch_size, seed, rank, world_size: as in `EpochSampler`.
    """

    def __init__(self, pairs: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if pairs < world_size:
            raise UserError(f"The training set has {pairs} image-caption pairs for {world_size} processes; use fewer.")
        if pairs < batch_size:
            batch_size = pairs - pairs % world_size
        super().__init__(pairs // batch_size, batch_size, seed=seed, rank=rank, world_size=world_size)
        self._pairs = pairs

    def _indices(self, rng: np.random.Generator) -> Indices:
        order = rng.permutation(self._pairs)
        return order[: self._batches * self._batch_size].reshape(self._batches, -1)


class StagedSampler(RandomSampler):
    """A sampler of batches with stage-1 pairs in random order, then stage-2 pairs; stage-0 pairs are never used.

    An epoch always has as many batches as an epoch of all pairs, so that schedules know its length. Stage-2 pairs
    come at most once; pairs that do not fill a batch are skipped in this epoch. Stage-1 pairs fill all other batches
    and repeat if necessary.

    Args:
        stages: ``(N,)`` stage of each pair, read again at the beginning of each epoch.
        batch_size, seed, rank, world_size: as in `EpochSampler`.
    """

    def __init__(self, stages: Indices, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(len(stages), batch_size, seed=seed, rank=rank, world_size=world_size)
        self._stages = stages

    def _indices(self, rng: np.random.Generator) -> Indices:
        first, second = (rng.permutation(np.flatnonzero(self._stages == stage)) for stage in (1, 2))
        last = len(second) // self._batch_size if len(first) else self._batches
        in_turn = np.resize(first, (self._batches - last, self._batch_size))
        return np.concatenate([in_turn, second[: last * self._batch_size].reshape(-1, self._batch_size)])


class IdentitySampler(TableSampler):
    """A sampler of batches with P different persons and K pairs of each.

    A person with n pairs is in n/K batches of an epoch, rounded up or down at random, but at least in one. Its pairs
    come in a random cycle that alternates between its images, so that the K pairs of a batch show different images if
    the person has enough. A pair comes twice in a batch only if the person has fewer than K pairs. An epoch is the
    largest number of batches that can be filled with P different persons in this way, about pairs / (P*K).

    Args:
        pids: ``(N,)`` person of each pair, numbered from 0 without gaps.
        images: ``(N,)`` image of each pair, numbered from 0 without gaps.
        batch_size: P*K.
        num_instance: K.
        seed, rank, world_size: as in `EpochSampler`.
    """

    def __init__(
        self,
        pids: Indices,
        images: Indices,
        batch_size: int,
        num_instance: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_instance < 1 or batch_size % num_instance:
            raise UserError(
                f"dataset.num_instance={num_instance} does not divide dataset.batch_size={batch_size}; "
                "a batch is made of persons with num_instance pairs each."
            )
        self._pids, self._images = pids, images
        self._instances = num_instance
        self._persons = batch_size // num_instance
        self._sizes = np.bincount(pids)
        if self._persons > len(self._sizes):
            raise UserError(
                f"dataset.batch_size={batch_size} with dataset.num_instance={num_instance} needs "
                f"{self._persons} persons in a batch, but the training set has {len(self._sizes)}; lower the "
                "batch size or raise num_instance."
            )
        due = np.maximum(self._sizes, num_instance)
        batches = _most_batches(due, batch_size, num_instance)
        self._due = np.minimum(due, batches * num_instance)
        super().__init__(batches, batch_size, seed=seed, rank=rank, world_size=world_size)

    def _indices(self, rng: np.random.Generator) -> Indices:
        # Each person stands in a row as often as it has batches; place j of the row goes to batch j mod N.
        # A person has at most N neighbouring places, so a batch never has it twice (McNaughton's rule).
        persons = rng.permutation(len(self._sizes))
        turns = np.diff(np.cumsum(self._due[persons]) // self._instances, prepend=0)
        row = np.repeat(persons, turns)[: self._batches * self._persons]
        turn = _count_within_runs(row)
        place = (turn[:, None] * self._instances + np.arange(self._instances)) % self._sizes[row][:, None]
        first = np.cumsum(self._sizes) - self._sizes
        pairs = self._cycles(rng)[first[row][:, None] + place]  # (P*N, K)
        batches = pairs.reshape(self._persons, self._batches, self._instances).swapaxes(0, 1)
        return rng.permutation(batches).reshape(self._batches, -1)

    def _cycles(self, rng: np.random.Generator) -> Indices:
        """Returns all pairs ``(N,)``, person by person, alternating between the person's images in random order."""
        order = rng.permutation(len(self._images))
        order = order[np.argsort(self._images[order], kind="stable")]
        lap = _count_within_runs(self._images[order])
        image_rank = rng.permutation(self._images.max() + 1)[self._images[order]]
        return order[np.lexsort((image_rank, lap, self._pids[order]))]


def _most_batches(due: Indices, batch_size: int, num_instance: int) -> int:
    """Returns the number of batches that can be filled if person i gives due[i] pairs, up to num_instance to each."""
    batches = int(due.sum()) // batch_size
    while (filled := int(np.minimum(due, batches * num_instance).sum()) // batch_size) < batches:
        batches = filled
    return batches


def _count_within_runs(values: Indices) -> Indices:
    """Returns, for each value, the number of equal values directly before it. Shape: ``(N,)``.

    >>> _count_within_runs(np.array([7, 7, 7, 3, 3, 9])).tolist()
    [0, 1, 2, 0, 1, 0]
    """
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    return np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
