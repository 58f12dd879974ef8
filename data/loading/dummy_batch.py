"""Training batches without a dataset: what a plan needs to know of the data."""

from collections.abc import Sequence
from math import ceil

import torch

from data.annotations.layouts import layout_of
from data.batch import IMAGE_VIEWS, INDEX, LABELS, MLM_LABELS, MLM_POSITIONS, TEXT_VIEWS, Batch, Tokens
from data.text.masking import MASKED_SHARE
from utils.errors import UserError


def blank_batch(needs: frozenset[str], size: int, img_size: Sequence[int], length: int) -> Batch:
    """Returns a training batch of `size` pairs with what the losses need, see `data.batch`; all of it is zero.

    Args:
        img_size: (height, width) in pixels.
        length: tokens of a caption; captions fill all of them.
    """
    ids = torch.zeros(size, length, dtype=torch.int64)
    batch: Batch = {view: torch.zeros(size, 3, *img_size, dtype=torch.uint8) for view in IMAGE_VIEWS}
    batch |= {view: Tokens(ids.clone(), torch.ones_like(ids, dtype=torch.bool)) for view in TEXT_VIEWS}
    batch |= {label: torch.zeros(size, dtype=torch.int64) for label in LABELS}
    batch |= {MLM_LABELS: ids, MLM_POSITIONS: torch.zeros(ceil(MASKED_SHARE * ids.numel()), dtype=torch.int64)}
    return {key: value for key, value in batch.items() if key in needs} | {INDEX: torch.zeros(size, dtype=torch.int64)}


def published_identities(name: str, proportion: float) -> int:
    """Returns how many identities `proportion` of the training set of dataset `name` has, as published.

    Raises:
        UserError: its YAML does not say it.
    """
    train = layout_of(name).official.get("train")
    if train is None:
        raise UserError(f"dataset={name}: its size is not known; give description.official.train in its YAML")
    return ceil(train.ids * proportion)
