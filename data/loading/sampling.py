"""The choice of the batch sampler of a training, and the sampler that shows every language of an image together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data.loading.samplers import IdentitySampler, Indices, RandomSampler, StagedSampler, TableSampler
from utils.errors import UserError, check_choice, check_positive

SAMPLERS: Final = ("random", "identity")


class LanguageSampler(TableSampler):
    """A sampler whose batches have, next to each pair, a pair of the same image in each other language.

    `base` draws the pairs of the first language. The j-th of an image's m such pairs comes in epoch e with pair
    (j + e * m) mod n of the image's n pairs in another language. So if an image has as many captions in each language,
    an epoch of all pairs of the first language has all pairs of the others.

    Args:
        base: a sampler over the pairs of the first language, of a single process.
        members: for each language its pairs, in order. All images have pairs in each language.
        images: ``(N,)`` image of each pair, numbered from 0 without gaps, in ascending order.
        seed, rank, world_size: as in `EpochSampler`.
    """

    def __init__(
        self, base: TableSampler, members: Sequence[Indices], images: Indices, *, seed: int, rank: int, world_size: int
    ) -> None:
        size = base.batch_size * len(members)
        super().__init__(len(base), size, seed=seed, rank=rank, world_size=world_size)
        self._base, self._members, self._images = base, members, images

    def _indices(self, rng: np.random.Generator) -> Indices:
        drawn = self._base._indices(rng)  # (batches, batch_size / languages), places in members[0]
        first = self._members[0]
        image = self._images[first]
        count = np.bincount(image)
        place = np.arange(len(first)) - (np.cumsum(count) - count)[image]
        columns = [first]
        for own in self._members[1:]:
            others = np.bincount(self._images[own])
            turn = (place + self.epoch * count[image]) % others[image]
            columns.append(own[(np.cumsum(others) - others)[image] + turn])
        together = np.stack(columns, axis=1)  # (pairs of the first language, languages)
        return together[drawn].reshape(len(drawn), -1)


class Pairs(Protocol):
    """The person and the image of each pair of a training set, both ``(N,)``, numbered from 0 without gaps."""

    @property
    def pids(self) -> Indices: ...

    @property
    def images(self) -> Indices: ...


@dataclass(frozen=True)
class Sampling:
    """The settings of batch sampling in training.

    name: `random` pairs, or P persons x `num_instance` pairs (`identity`).
    num_instance: pairs of a person in a batch, for `identity`.
    batch_size: pairs in a batch, over all processes.
    seed: seed of the run.
    with_pids: whether identities may be read; if not, pairs come in stages.
    all_languages: whether each image comes with a caption of each language.

    Raises:
        UserError: if the name is unknown or needs identities that may not be read, a number is below 1, or two
            settings exclude each other.
    """

    name: str
    num_instance: int
    batch_size: int
    seed: int
    with_pids: bool
    all_languages: bool = False

    def __post_init__(self) -> None:
        check_choice("dataset.sampler", self.name, SAMPLERS)
        check_positive("dataset.batch_size", self.batch_size)
        check_positive("dataset.num_instance", self.num_instance)
        if self.name == "identity" and not self.with_pids:
            raise UserError(
                "dataset.sampler=identity reads identities, which training with pseudo_label must not; use "
                "dataset.sampler=random."
            )
        if self.all_languages and not self.with_pids:
            raise UserError("dataset.all_languages=true does not go with pseudo_label, whose pairs come in stages")

    def sampler(
        self, pairs: Pairs, stages: Indices, languages: Sequence[str] = (), *, rank: int, world_size: int
    ) -> TableSampler:
        """Returns the sampler of a process.

        Args:
            pairs: the pairs of the training set.
            stages: ``(N,)`` stage of each pair; used if identities may not be read.
            languages: N languages of the pairs' captions, or none; used for `all_languages`.
            rank, world_size: number of this process, and of all processes.

        Raises:
            UserError: this training set gives no batch, or `world_size` does not divide the batch.
        """
        if self.all_languages:
            return self._of_all_languages(pairs, np.array(languages), rank=rank, world_size=world_size)
        share = {"seed": self.seed, "rank": rank, "world_size": world_size}
        if not self.with_pids:
            return StagedSampler(stages, self.batch_size, **share)
        if self.name == "random":
            return RandomSampler(len(stages), self.batch_size, **share)
        return IdentitySampler(pairs.pids, pairs.images, self.batch_size, self.num_instance, **share)

    def _of_all_languages(self, pairs: Pairs, languages: NDArray[Any], **share: int) -> TableSampler:
        names = list(dict.fromkeys(languages.tolist()))
        if len(names) < 2:
            raise UserError(
                "dataset.all_languages=true needs captions in several languages, but the training captions have one; "
                "choose such a dataset.language, as dataset=vn3k_mixed does"
            )
        for key, value in (("batch_size", self.batch_size), ("num_instance", self.num_instance)):
            if value % len(names) and (key == "batch_size" or self.name == "identity"):
                raise UserError(
                    f"dataset.{key}={value} counts pairs, and with dataset.all_languages=true each image has one in "
                    f"each of {' and '.join(names)}; choose a multiple of {len(names)}"
                )
        members = [np.flatnonzero(languages == name) for name in names]
        if any(len(np.unique(pairs.images[own])) <= pairs.images.max() for own in members):
            raise UserError(
                f"dataset.all_languages=true needs captions in {' and '.join(names)} of every training image, but an "
                "image has none in one of them (dataset.overfit_pairs keeps one caption of an image)"
            )
        first = _Subset(pairs.pids[members[0]], pairs.images[members[0]])
        one = replace(
            self,
            batch_size=self.batch_size // len(names),
            num_instance=max(1, self.num_instance // len(names)),
            all_languages=False,
        )
        base = one.sampler(first, np.ones(len(members[0]), dtype=np.int64), rank=0, world_size=1)
        return LanguageSampler(base, members, pairs.images, seed=self.seed, **share)


class _Subset(NamedTuple):
    """The person and the image of some pairs of a training set."""

    pids: Indices
    images: Indices
