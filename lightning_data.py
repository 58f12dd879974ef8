"""TBPSDataModule: a dataset, its views and its sampler, as loaders."""

import os
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities import suggested_max_num_workers
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from data.annotations import DatasetSplits, Record, read_dataset
from data.augmentation import Augmentation
from data.batch import (
    IMAGE,
    IMAGE_LABELS,
    INDEX,
    MLM_LABELS,
    MLM_POSITIONS,
    PIDS,
    TEXT,
    TEXT_LABELS,
    TEXT_MASKED,
    VIEWS,
    Batch,
)
from data.counts import DatasetCounts, count, describe
from data.datasets import CaptionDataset, Collate, ImageDataset, PairDataset, captions_of
from data.loader import ResumableLoader, evaluation_loader
from data.masking import Masker
from data.samplers import EpochSampler, IdentitySampler, RandomSampler, StagedSampler
from data.tokens import Tokenize, load_tokenizer
from data.views import Views, read_image
from utils.errors import UserError, nearest

SAMPLERS = ("random", "identity")
MOST_AUTO_WORKERS = 8


class TBPSDataModule(L.LightningDataModule):
    """The loaders of a dataset.

    Training batches hold the views that `set_views` was told, evaluation comes as two loaders for a split:
    its images and its captions (`data/batch.py`).

    Args:
        dataset: the records to train, validate and test on.
        tokenizer_path: folder of the backbone, with its tokenizer.
        max_length: tokens that the backbone reads of a caption.
        img_size: (height, width).
        aug: what provides the views of training.
        sampler: ``random`` pairs, or P persons x `num_instance` pairs (``identity``).
        num_instance: pairs of a person in a batch, for ``identity``.
        batch_size: pairs of a training batch, over all processes.
        eval_batch_size: images or captions of an evaluation batch, for each process.
        num_workers: loading processes beside each training process; ``auto`` takes the cores that are left.
        seed: of batches and augmentation.
        with_pids: whether training may read identities; without, no training batch carries them, and pairs
            are trained in the stages that `set_stages` was told.

    Raises:
        UserError: a setting that cannot be, or no tokenizer.
    """

    def __init__(
        self,
        dataset: DatasetSplits,
        *,
        tokenizer_path: str | Path,
        max_length: int,
        img_size: Sequence[int],
        aug: Augmentation,
        sampler: str,
        num_instance: int,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int | Literal["auto"],
        seed: int,
        with_pids: bool = True,
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise UserError(
                f"dataset.sampler={sampler} is unknown; expected {' or '.join(SAMPLERS)}." + nearest(sampler, SAMPLERS)
            )
        if sampler == "identity" and not with_pids:
            raise UserError(
                "dataset.sampler=identity reads identities, which training with pseudo_label must not; use "
                "dataset.sampler=random."
            )
        self.dataset = dataset
        self.tokenize = Tokenize(load_tokenizer(tokenizer_path), max_length)
        height, width = img_size
        self._img_size = (height, width)
        self._aug = aug
        self._sampler = sampler
        self._num_instance = num_instance
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._num_workers = num_workers
        self._seed = seed
        self._with_pids = with_pids
        self._views: Views | None = None
        self._masker: Masker | None = None
        self._stages = np.ones(len(self.text_images), dtype=np.int64)

    @property
    def provides(self) -> frozenset[str]:
        """What a loss may need: views, and labels of the batch."""
        labels = (PIDS,) if self._with_pids else (IMAGE_LABELS, TEXT_LABELS)
        return frozenset({*VIEWS, MLM_LABELS, MLM_POSITIONS, *labels})

    def set_views(self, needs: Collection[str]) -> None:
        """Says what training batches must hold: the `needs` of the objective, all among `provides`.

        Raises:
            UserError: the augmentation does not offer one of them.
        """
        views = set(needs) & set(VIEWS) | ({TEXT_MASKED} if MLM_LABELS in needs else set())
        self._views = Views(views, self._img_size, self.tokenize.max_length, self._aug)
        self._masker = Masker(self.tokenize.tokenizer) if TEXT_MASKED in views else None

    def set_stages(self, stages: Tensor) -> None:
        """Says when the pairs of the training set are trained, from the next epoch to begin on.

        Args:
            stages: of each pair, 1, 2 after all of 1, or 0 for not at all. Shape: ``(P,)``.

        Raises:
            UserError: they are of another training set.
        """
        if len(stages) != len(self._stages):
            raise UserError(
                f"the checkpoint has pseudo labels of {len(stages)} pairs, but this training set has "
                f"{len(self._stages)}; continue with the dataset that it was trained on."
            )
        self._stages[:] = stages.cpu().numpy()

    @property
    def text_images(self) -> Tensor:
        """``(P,)`` position of the image of each pair, or of each caption, of the training set."""
        return torch.tensor([caption.image for caption in captions_of(self.dataset.train)])

    @property
    def mask_token_added(self) -> bool:
        """Whether words are masked by a token that the backbone's own tokenizer does not have."""
        return self._masker is not None and self._masker.added

    @property
    def num_classes(self) -> int:
        """Identities in the training set: training pids lie in ``0 .. num_classes - 1``."""
        return len({record.pid for record in self.dataset.train})

    @property
    def max_token_id(self) -> int:
        """The largest token id of any caption, masked or not; the backbone's token table must reach beyond it."""
        written_by_masking = 0 if self._masker is None else self._masker.max_id
        return max(written_by_masking, self.counts.max_token_id)

    def check_token_ids(self, vocab_size: int) -> None:
        """Passes when every token id lies in a table of `vocab_size` rows.

        Raises:
            UserError: one does not; it would end in NaN or in a device assert.
        """
        if self.max_token_id >= vocab_size:
            raise UserError(
                f"token id {self.max_token_id} lies outside the backbone's table of {vocab_size} tokens: "
                "tokenizer and weights in the checkpoint folder do not belong together; fill it again."
            )

    @property
    def test_captions(self) -> list[str]:
        """The captions of the test split, in the order of its evaluation."""
        return [caption.text for caption in captions_of(self.dataset.test)]

    @property
    def test_image_paths(self) -> list[Path]:
        """The image files of the test split, in the order of its evaluation."""
        return [record.image_path for record in self.dataset.test]

    def test_pair(self, caption: int) -> Batch:
        """Returns a caption of the test split, by its place in `test_captions`, with its image: a batch of one.

        `INDEX` is the place of the image in `test_image_paths`.
        """
        image, text = captions_of(self.dataset.test)[caption]
        return {
            INDEX: torch.tensor([image]),
            IMAGE: read_image(self.dataset.test[image], self._img_size)[None],
            TEXT: self.tokenize([text]),
        }

    @cached_property
    def counts(self) -> DatasetCounts:
        """What the splits hold."""
        return count(self.dataset, self.tokenize)

    def describe(self) -> str:
        """Returns one line on the dataset for the start of a run."""
        return describe(self.dataset, self.counts, self.tokenize.max_length)

    def train_dataloader(self) -> ResumableLoader:
        if self._views is None:
            raise RuntimeError("set_views(objective.needs) comes before training")
        dataset = PairDataset(self.dataset.train, self._views, with_pids=self._with_pids)
        return ResumableLoader(
            dataset, self._train_sampler(dataset), Collate(self.tokenize, self._masker), num_workers=self._workers()
        )

    def relabel_dataloaders(self) -> list[DataLoader[Batch]]:
        """Returns the loader of the training images and that of the training captions, as for evaluation."""
        return self._evaluation_loaders(self.dataset.train)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Returns the loader of the validation images and that of the validation captions."""
        return self._evaluation_loaders(self.dataset.val)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Returns the loader of the test images and that of the test captions."""
        return self._evaluation_loaders(self.dataset.test)

    @property
    def _share(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _train_sampler(self, dataset: PairDataset) -> EpochSampler:
        if not self._with_pids:
            return StagedSampler(self._stages, self._batch_size, seed=self._seed, **self._share)
        if self._sampler == "random":
            return RandomSampler(len(dataset), self._batch_size, seed=self._seed, **self._share)
        return IdentitySampler(
            dataset.pids, dataset.images, self._batch_size, self._num_instance, seed=self._seed, **self._share
        )

    def _evaluation_loaders(self, records: Sequence[Record]) -> list[DataLoader[Batch]]:
        images, captions = ImageDataset(records, self._img_size), CaptionDataset(records)
        collate, size = Collate(self.tokenize), self._eval_batch_size
        return [
            evaluation_loader(images, collate, size, num_workers=self._workers(), **self._share),
            evaluation_loader(captions, collate, size, num_workers=0, **self._share),
        ]

    def _workers(self) -> int:
        # Tokenizers' threads do not survive the fork of a worker; it warns unless told so.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if self._num_workers != "auto":
            return self._num_workers
        on_this_machine = self.trainer.num_devices if self.trainer else 1
        return min(MOST_AUTO_WORKERS, suggested_max_num_workers(on_this_machine))


def build_data(cfg: DictConfig) -> TBPSDataModule:
    """Returns the datamodule that `cfg.dataset`, `cfg.aug` and `cfg.backbone` describe.

    Raises:
        UserError: the dataset is absent or damaged, or a setting cannot be.
    """
    options = cfg.dataset
    reading = ("language", "val_protocol", "val_identities", "proportion", "fold_id")
    loading = ("sampler", "num_instance", "batch_size", "eval_batch_size", "num_workers")
    splits = read_dataset(
        options.name, cfg.dataset_root_dir, **{key: options[key] for key in reading}, seed=cfg.split_seed
    )
    return TBPSDataModule(
        splits,
        tokenizer_path=cfg.backbone.folder,
        max_length=cfg.backbone.max_length,
        img_size=cfg.img_size,
        aug=instantiate(cfg.aug),
        **{key: options[key] for key in loading},
        seed=cfg.seed,
        with_pids=cfg.pseudo_label.name == "none",
    )
