"""Dummy training batches and published dataset sizes, for a memory plan without a dataset."""

from collections.abc import Sequence
from math import ceil

import torch

from data.annotations.layouts import layout_of
from data.batch import IMAGE_VIEWS, INDEX, LABELS, MLM_LABELS, MLM_POSITIONS, TEXT_VIEWS, Batch, Tokens
from data.text.masking import MASKED_SHARE
from utils.errors import UserError


def blank_batch(needs: frozenset[str], size: int, img_size: Sequence[int], length: int) -> Batch:
    """Returns a training batch of `size` pairs with the entries in `needs`, see `data.batch`; all values are zero.

    Args:
        img_size: (height, width) in pixels.
        length: tokens of every caption, without padding.
    """
    ids = torch.zeros(size, length, dtype=torch.int64)
    batch: Batch = {view: torch.zeros(size, 3, *img_size, dtype=torch.uint8) for view in IMAGE_VIEWS}
    batch |= {view: Tokens(ids.clone(), torch.ones_like(ids, dtype=torch.bool)) for view in TEXT_VIEWS}
    batch |= {label: torch.zeros(size, dtype=torch.int64) for label in LABELS}
    batch |= {MLM_LABELS: ids, MLM_POSITIONS: torch.zeros(ceil(MASKED_SHARE * ids.numel()), dtype=torch.int64)}
    return {key: value for key, value in batch.items() if key in needs} | {INDEX: torch.zeros(size, dtype=torch.int64)}


def published_identities(name: str, proportion: float) -> int:
    """Returns the number of identities in `proportion` of the training set of dataset `name`, as published.

    Raises:
        UserError: if the dataset's YAML does not give the number.
    """
    train = layout_of(name).official.get("train")
    if train is None:
        raise UserError(
            f"dataset={name}: the plan does not know the number of training persons; give description.official.train "
            f"in dataset/{name}.yaml, as cuhk_pedes.yaml does"
        )
    return ceil(train.ids * proportion)
