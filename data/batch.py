"""The one place that names what a batch holds.

A training batch is a flat dict. Row i of every entry belongs to the same image-caption pair.

====================  ==========================================================================
key                   value
====================  ==========================================================================
an image view         uint8 ``(B, 3, H, W)``; `IMAGE_VIEWS`. Normalised by the encoder, on the device.
a text view           `Tokens` of int64 ids ``(B, L)`` and bool mask ``(B, L)``; `TEXT_VIEWS`
`PIDS`                int64 ``(B,)``, identities relabelled densely from 0. Absent under methods
                      that may not read them.
`MLM_LABELS`          int64 ``(B, L)``, the masked word's id where `TEXT_MASKED` has one to predict,
                      `NOT_PREDICTED` elsewhere; comes with that view
`MLM_POSITIONS`       int64 ``(M,)``, where in the flattened `MLM_LABELS` the M ids are: known before the
                      batch reaches the device, which need not be asked how many there are
`INDEX`               int64 ``(B,)``, position of the pair in the training set
====================  ==========================================================================

Pseudo labels, `IMAGE_LABELS` and `TEXT_LABELS`, are not in a batch: they are looked up by `INDEX`.

An evaluation batch holds one modality, `IMAGE` or `TEXT`, with `PIDS` (the raw ids of the annotation file)
and `INDEX`. A training sample with `TEXT_MASKED` also carries its `MASK_DRAWS`, which the batch no longer needs.

Where image views are built on the device of training, what comes from the loader has in their place `SOURCE`, uint8
``(B, 3, H, W)``, the images as they are, and `SEEDS`, B numbers that stay on the host.
"""

from typing import Any, Final, NamedTuple

from torch import Tensor

IMAGE: Final = "image"
IMAGE_AUG: Final = "image_aug"
IMAGE_SS1: Final = "image_ss1"
IMAGE_SS2: Final = "image_ss2"
TEXT: Final = "text"
TEXT_MASKED: Final = "text_masked"
PIDS: Final = "pids"
MLM_LABELS: Final = "mlm_labels"
MLM_POSITIONS: Final = "mlm_positions"
IMAGE_LABELS: Final = "image_labels"
TEXT_LABELS: Final = "text_labels"
MASK_DRAWS: Final = "mask_draws"
SOURCE: Final = "source"
SEEDS: Final = "seeds"
INDEX: Final = "index"

IMAGE_VIEWS: Final = (IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2)
TEXT_VIEWS: Final = (TEXT, TEXT_MASKED)
VIEWS: Final = (*IMAGE_VIEWS, *TEXT_VIEWS)
LABELS: Final = (PIDS, MLM_LABELS, MLM_POSITIONS)
NOT_PREDICTED: Final = -100  # what PyTorch's cross-entropy, and with it the `mlm` loss, leaves out

Batch = dict[str, Any]


def provided(with_pids: bool) -> frozenset[str]:
    """Returns what a loss may need of training batches: views, and identities or, without these, pseudo labels."""
    return frozenset({*VIEWS, MLM_LABELS, MLM_POSITIONS, *((PIDS,) if with_pids else (IMAGE_LABELS, TEXT_LABELS))})


class Tokens(NamedTuple):
    """Token ids ``(B, L)`` int64 and the mask ``(B, L)`` bool that is true on tokens that are not padding."""

    ids: Tensor
    mask: Tensor
