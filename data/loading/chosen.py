"""The dataset that a config chooses: its splits, training noise and limits."""

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig

from data.annotations import DatasetSplits, read_dataset
from data.annotations.identities import NO_IDENTITIES
from data.annotations.layouts import GIVEN, given_options
from data.loading.limits import limit_splits, overfit
from data.loading.noise import add_noise
from utils.errors import UserError

READING = ("language", "val_protocol", "val_identities", "proportion", "fold_id")
# Options of a dataset that its data module does not need.
SHARDS = ("shards", "epoch_pairs", "shard_cache_gb")
USED = (*READING, *SHARDS, "name", "label", "overfit_pairs", "noise_rate", "noise_file", "description", *GIVEN)


def division(cfg: DictConfig) -> dict[str, Any]:
    """Returns the options that divide the records of a file into splits."""
    return {key: cfg.dataset[key] for key in ("val_protocol", "val_identities")} | {"split_seed": cfg.split_seed}


def chosen_dataset(cfg: DictConfig, splits: Collection[str]) -> DatasetSplits:
    """Returns the dataset that `cfg.dataset` describes. Noise and further captions only if `splits` has "train".

    Raises:
        UserError: the dataset is absent or damaged, or an option is invalid.
    """
    options = cfg.dataset
    chosen = {key: options[key] for key in READING}
    further = tuple(options.further_captions or ()) if "train" in splits else ()
    given = given_options(options)
    dataset = read_dataset(
        options.name, cfg.dataset_root_dir, **chosen, seed=cfg.split_seed, further=further, given=given
    )
    if dataset.pairs_only and options.sampler == "identity":
        raise UserError(
            f"dataset.sampler=identity needs several images of a person, but {dataset.file} has {NO_IDENTITIES}; use "
            "dataset.sampler=random, or name the column of identities with dataset.columns.identity"
        )
    if options.overfit_pairs is not None:
        dataset = overfit(dataset, options.overfit_pairs)
    if "train" in splits:
        dataset = add_noise(dataset, options.noise_rate, options.noise_file, cfg.split_seed)
    limits = {"val": cfg.trainer.limit_val_batches, "test": cfg.trainer.limit_test_batches}
    return limit_splits(dataset, limits, options.eval_batch_size)
