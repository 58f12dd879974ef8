"""Limits on a dataset: the first records of a split for a quick test, or a few pairs to overfit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from data.annotations import DatasetSplits, Record
from utils.errors import UserError

SPLIT_WORDS: Final = {"val": "validation", "test": "test"}

Limit = int | float | None


def limit_splits(dataset: DatasetSplits, limits: Mapping[str, Limit], batch_size: int) -> DatasetSplits:
    """Returns `dataset` with only the first images of "val" and "test" and all their captions.

    Args:
        limits: split -> number of batches of images (int), share of the images (float, at least one image), or all
            (None and 1.0; also 0, with which Lightning skips the split).
        batch_size: images in a batch.
    """
    for split, limit in limits.items():
        records = getattr(dataset, split)
        if limit is None or limit == 0 or (limit == 1.0 and isinstance(limit, float)):
            continue
        if isinstance(limit, float):
            kept, told = max(1, round(limit * len(records))), f"first {100 * limit:g} %"
        else:
            kept, told = limit * batch_size, f"first {limit} {'batches' if limit > 1 else 'batch'}"
        if kept < len(records):
            told = f"{told} of the {SPLIT_WORDS[split]} split ({kept:,} of {len(records):,} images)"
            changes: Any = {split: records[:kept], "limits": (*dataset.limits, told)}
            dataset = replace(dataset, **changes)
    return dataset


def overfit(dataset: DatasetSplits, pairs: int) -> DatasetSplits:
    """Returns `dataset` with the same `pairs` pairs in each split: the first image and caption of training persons.

    Raises:
        UserError: if `pairs` is less than two, or more than the number of training persons.
    """
    first: dict[int, Record] = {}
    for record in dataset.train:
        first.setdefault(record.pid, record._replace(captions=record.captions[:1]))
    if not 2 <= pairs <= len(first):
        raise UserError(
            f"dataset.overfit_pairs: {pairs} given, expected 2 to {len(first)}, the number of training persons"
        )
    chosen = list(first.values())[:pairs]
    told = f"trained, validated and tested on the same {pairs} pairs of train"
    return replace(dataset, train=chosen, val=chosen, test=chosen, validation="own", limits=(*dataset.limits, told))
