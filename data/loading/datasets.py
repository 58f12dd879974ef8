"""Datasets of samples, and their collation into the batches of `data/batch.py`."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.annotations import DatasetSplits, Record
from data.batch import (
    COPIES,
    IMAGE,
    INDEX,
    MASK_DRAWS,
    MLM_LABELS,
    MLM_POSITIONS,
    PIDS,
    SEEDS,
    SOURCE,
    TEXT,
    TEXT_MASKED,
    TEXT_VIEWS,
    TOKEN_DRAWS,
    Batch,
)
from data.images.read import ImageReader
from data.loading.samplers import Draw, Indices
from data.text.masking import Masker, TokenNoise
from data.text.tokens import Tokenize
from data.views.build import Views
from utils.errors import UserError

Sample = dict[str, Any]


class Caption(NamedTuple):
    """One caption of a split and the position of its image in the split."""

    image: int
    text: str


def captions_of(records: Sequence[Record]) -> list[Caption]:
    """Returns every caption of a split, image by image."""
    return [Caption(image, text) for image, record in enumerate(records) for text in record.captions]


class CaptionChoice:
    """A choice between a training pair's own caption and the further captions of the image it was written for.

    The seed of a draw alone decides. The own caption has the weight 1; of further captions at the chosen key all of the
    image are as likely.

    Args:
        dataset: the dataset.
        weights: key of further captions -> weight.

    Raises:
        UserError: a weight is not a number above 0.
    """

    def __init__(self, dataset: DatasetSplits, weights: Mapping[str, float]) -> None:
        for key, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
                raise UserError(
                    f"dataset.further_captions.{key}: {weight} given, expected a weight above 0; the dataset's own "
                    "captions have the weight 1"
                )
        self._weights = [1.0, *weights.values()]
        columns = [dataset.further[key] for key in weights]
        self._further = [[column[origin.image_id] for column in columns] for origin in dataset.training_origins()]

    def __call__(self, draw: Draw, own: str) -> str:
        """Returns the caption of `draw`, whose pair has the caption `own`."""
        random = Random(draw.seed)
        [source] = random.choices(range(len(self._weights)), self._weights)
        return random.choice(self._further[draw.pair][source - 1]) if source else own


class PairDataset(Dataset[Sample]):
    """The (image, caption) pairs of a training set: each caption with its image.

    Args:
        records: one per image.
        read: reads an image.
        views: builds the views that the losses need.
        with_pids: whether samples contain the person, renumbered from 0 without gaps. If not, training code has no
            access to identities.
        later: whether the image views are built later, from `SOURCE` and `SEEDS`.
        choice: chooses the caption of each draw; None: the pair's own.
    """

    def __init__(
        self,
        records: Sequence[Record],
        read: ImageReader,
        views: Views,
        *,
        with_pids: bool,
        later: bool = False,
        choice: CaptionChoice | None = None,
    ) -> None:
        self._records = records
        self._captions = captions_of(records)
        self._read = read
        self._views = views
        self._later = later
        self._choice = choice
        self._pids = self.pids.tolist() if with_pids else None

    @property
    def images(self) -> Indices:
        """The index of each pair's image in the records. Shape: ``(N,)``."""
        return np.array([caption.image for caption in self._captions])

    @property
    def pids(self) -> Indices:
        """The person of each pair, renumbered from 0 without gaps in the order of the raw ids. Shape: ``(N,)``."""
        raw = np.array([record.pid for record in self._records])
        return np.unique(raw, return_inverse=True)[1][self.images]

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, draw: Draw) -> Sample:
        """Returns the views of pair `draw.pair`; `draw.seed` alone determines their randomness."""
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """Returns the samples of these draws; the image views of all are built together."""
        samples = [self._of_text(draw) for draw in draws]
        if not self._views.need_image:
            return samples
        images = [self._read(self._records[self._captions[draw.pair].image]) for draw in draws]
        return with_images(samples, images, [draw.seed for draw in draws], None if self._later else self._views)

    def _of_text(self, draw: Draw) -> Sample:
        text = self._captions[draw.pair].text
        if self._choice is not None:
            text = self._choice(draw, text)
        sample: Sample = {**self._views.of_caption(text, draw.seed), INDEX: draw.pair}
        if self._pids is not None:
            sample[PIDS] = self._pids[draw.pair]
        return sample


def with_images(
    samples: Sequence[Sample], images: Sequence[Tensor], seeds: Sequence[int], views: Views | None
) -> list[Sample]:
    """Returns the samples with the views of their images, which are built together.

    Args:
        images: uint8 ``(3, H, W)``, one for each sample.
        seeds: of the draws of the samples.
        views: None: the samples get `SOURCE` and `SEEDS`, of which the views are built later.
    """
    made: Mapping[str, Any] = (
        {SOURCE: images, SEEDS: seeds} if views is None else views.of_images(torch.stack(list(images)), seeds)
    )
    return [sample | {key: rows[place] for key, rows in made.items()} for place, sample in enumerate(samples)]


class ImageDataset(Dataset[Sample]):
    """The images of a split, each once, without augmentation, with raw identities.

    Args:
        records: one per image.
        read: reads an image.
    """

    def __init__(self, records: Sequence[Record], read: ImageReader) -> None:
        self._records = records
        self._read = read

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        return {IMAGE: self._read(record), PIDS: record.pid, INDEX: index}


class CaptionDataset(Dataset[Sample]):
    """The different captions of a split, the shortest first, without augmentation, with raw identities.

    Equal captions are one sample, with the index and the identity of each.

    Args:
        records: one per image.
        change: changes each caption.
    """

    def __init__(self, records: Sequence[Record], change: Callable[[str], str] = str) -> None:
        self._pids = [record.pid for record in records for _ in record.captions]
        places: dict[str, list[int]] = {}
        for index, caption in enumerate(captions_of(records)):
            places.setdefault(caption.text, []).append(index)
        self._places = sorted(places.items(), key=lambda item: len(item[0]))
        self._change = change

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Sample:
        text, indices = self._places[place]
        pids = [self._pids[index] for index in indices]
        return {TEXT: self._change(text), PIDS: pids, INDEX: indices, COPIES: len(indices)}


class Collate:
    """A collate function: it stacks images, tokenises and masks texts, and turns numbers into int64 tensors.

    `SEEDS` stay a list, so that reading them never waits for a device. Lists of numbers are joined.

    Args:
        tokenize: turns captions into tokens.
        masker: makes `TEXT_MASKED`, `MLM_LABELS` and `MLM_POSITIONS` if samples contain that view.
        noise: changes the tokens of text views, before they are masked.
        fixed_length: whether captions keep the padding to the full length.
    """

    def __init__(
        self,
        tokenize: Tokenize,
        masker: Masker | None = None,
        noise: TokenNoise | None = None,
        *,
        fixed_length: bool = True,
    ) -> None:
        self._tokenize = tokenize
        self._masker = masker
        self._noise = noise
        self._fixed_length = fixed_length

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        batch = {key: self._column(key, [sample[key] for sample in samples]) for key in samples[0]}
        texts = [view for view in TEXT_VIEWS if view in batch]
        if self._noise is not None:
            draws = batch.pop(TOKEN_DRAWS)
            batch |= {view: self._noise(batch[view], draws) for view in texts}
        if not self._fixed_length:
            batch |= {view: batch[view].cut() for view in texts}
        if MASK_DRAWS in batch:
            batch[MASK_DRAWS] = batch[MASK_DRAWS][..., : batch[TEXT_MASKED].ids.shape[1]]
        if self._masker is not None and TEXT_MASKED in batch:
            masked = self._masker(batch[TEXT_MASKED], batch.pop(MASK_DRAWS))
            batch |= {TEXT_MASKED: masked.tokens, MLM_LABELS: masked.labels, MLM_POSITIONS: masked.positions}
        return batch

    def _column(self, key: str, values: list[Any]) -> Any:
        if isinstance(values[0], torch.Tensor):
            return torch.stack(values)
        if key in TEXT_VIEWS:
            return self._tokenize(values)
        if isinstance(values[0], list):
            values = [number for numbers in values for number in numbers]
        return values if key == SEEDS else torch.tensor(values)
