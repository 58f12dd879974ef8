"""ShardsDataModule: training pairs from shards, validated and tested on an ordinary dataset."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from omegaconf import DictConfig

from data.annotations import DatasetSplits
from data.images.read import Resize
from data.loading.chosen import chosen_dataset, division
from data.loading.counts import DatasetCounts, SplitCounts
from data.loading.samplers import EpochSampler
from data.shards.mixture import ShardDataset, ShardMixture, Source, open_shards
from data.shards.order import ShardSampler
from data.text.tokens import clean_for
from lightning_data import TBPSDataModule
from utils.errors import UserError
from utils.report.provenance import file_hash

# Options that need all training records at once, or an order of their own -> the value that they must have.
UNUSED: Final = {
    "sampler": "random",
    "proportion": 1.0,
    "noise_rate": 0.0,
    "noise_file": None,
    "further_captions": None,
    "all_languages": False,
    "overfit_pairs": None,
}


class ShardsDataModule(TBPSDataModule):
    """The data loaders of a dataset whose training pairs come from shards.

    Args:
        dataset: the records to validate and test on; its training records are not used.
        shards: the training pairs.
        options: as in `TBPSDataModule`.
    """

    def __init__(self, dataset: DatasetSplits, shards: ShardMixture, *, splits: Sequence[str], **options: Any) -> None:
        self.shards = shards
        notes = (*dataset.notes, *shards.notes())
        evaluated = [split for split in splits if split != "train"]
        super().__init__(replace(dataset, train=[], notes=notes), splits=evaluated, **options)

    @property
    def num_classes(self) -> int:
        """Number of identities in the shards; each image of shards without identities counts as one."""
        return self.shards.identities

    @property
    def max_token_id(self) -> int:
        """The largest token id of the tokenizer: nothing reads all captions to find the largest that is used."""
        return max(super().max_token_id, *self.tokenize.tokenizer.get_vocab().values())

    @cached_property
    def counts(self) -> DatasetCounts:
        """The counts of the dataset, with those of the shards as the training split; no caption counts as cut there."""
        counts = super().counts
        pairs = sum(source.index.pairs for source in self.shards.sources)
        train = SplitCounts(self.shards.identities, self.shards.images, pairs, cut=0)
        return replace(counts, splits={**counts.splits, "train": train})

    @property
    def provenance(self) -> dict[str, Any]:
        """The facts that identify the dataset and the shards."""
        return {**super().provenance, "shards": self.shards.provenance()}

    def training_batches(self, world_size: int = 1) -> int:
        return len(self._shard_sampler(rank=0, world_size=world_size))

    def _training_set(self) -> ShardDataset:  # type: ignore[override]
        if self._views is None:
            raise RuntimeError("call set_views(objective.needs) before training")
        resize = Resize((self._img_size[0], self._img_size[1]), self.interpolation)
        return ShardDataset(self.shards, resize, self._views, self._clean, later=self._augments_on_device)

    def _sampler(self, dataset: Any, **share: int) -> EpochSampler:
        return self._shard_sampler(**share)

    def _shard_sampler(self, **share: int) -> ShardSampler:
        sampling, shards = self._sampling, self.shards
        return ShardSampler(shards.sizes, shards.shares, sampling.batch_size, seed=sampling.seed, **share)

    def _clean(self, caption: str) -> str:
        return clean_for(self.tokenize.tokenizer, [caption])[0]


def build_shards(cfg: DictConfig, splits: Sequence[str], options: dict[str, Any]) -> ShardsDataModule:
    """Returns the datamodule of `cfg.dataset` with training pairs from `cfg.dataset.shards`.

    Args:
        options: the arguments of `TBPSDataModule` besides the dataset.

    Raises:
        UserError: as `open_shards`, or an option does not go with shards.
    """
    for key, value in UNUSED.items():
        if cfg.dataset[key] != value:
            raise UserError(
                f"dataset.{key}={cfg.dataset[key]} does not go with dataset.shards, whose pairs are never in memory "
                f"together; set dataset.{key}={'null' if value is None else value}"
            )
    if cfg.pseudo_label.name != "none":
        raise UserError(
            f"pseudo_label={cfg.pseudo_label.name} labels all training pairs before an epoch, which dataset.shards "
            "does not allow; set pseudo_label=none"
        )
    shards = open_shards(cfg.dataset)
    dataset = chosen_dataset(cfg, [split for split in splits if split != "train"])
    for source in shards.sources:
        _check_apart(source, dataset, division(cfg))
    return ShardsDataModule(dataset, shards, splits=splits, **options)


def _check_apart(source: Source, dataset: DatasetSplits, divided_by: dict[str, Any]) -> None:
    """Raises `UserError` if shards of the annotations of `dataset` can have images that it validates or tests on."""
    made_of = source.index.made_of
    if dataset.file is None or made_of.get("annotations") != file_hash(dataset.file):
        return
    split, used = made_of.get("split"), made_of.get("divided_by")
    if split != "train" or used != divided_by:
        told = f"divided by {used}, and this run by {divided_by}" if split == "train" else f"of the split {split}"
        raise UserError(
            f"dataset.shards.{source.name} was written from {dataset.file}, {told}, so that the run would train on "
            "images that it validates or tests on; write the shards again, as this run divides the file"
        )
