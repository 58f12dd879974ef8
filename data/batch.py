"""The keys and shapes of a batch's entries.

A training batch is a flat dict. Row i of every entry belongs to the same image-caption pair.

====================  ==========================================================================
key                   value
====================  ==========================================================================
an image view         uint8 ``(B, 3, H, W)``; `IMAGE_VIEWS`. Normalised by the encoder, on the device.
a text view           `Tokens` of int64 ids ``(B, L)`` and bool mask ``(B, L)``; `TEXT_VIEWS`
`PIDS`                int64 ``(B,)``, identities renumbered from 0 without gaps. Absent for methods
                      that may not read identities.
`MLM_LABELS`          int64 ``(B, L)``, the original id of each masked word in `TEXT_MASKED`,
                      `NOT_PREDICTED` elsewhere; present if this view is
`MLM_POSITIONS`       int64 ``(M,)``, indices of the M ids in the flattened `MLM_LABELS`, computed on
                      the host so that no step waits for the device to count them
`INDEX`               int64 ``(B,)``, index of the pair in the training set
====================  ==========================================================================

Labels that are found before an epoch, such as pseudo labels, are not in a batch: they are looked up by `INDEX`.

L is the length of the longest caption of the batch, rounded up, or the full length if the model needs that.

An evaluation batch holds one modality, `IMAGE` or `TEXT`, with `PIDS` (the raw ids of the annotation file)
and `INDEX`. Equal captions of a split are one row of `TEXT`: `COPIES` ``(B,)`` tells how many, and `PIDS` and `INDEX`
have an entry for each, row after row. A training sample also has the random numbers of its masking and of the
augmentation of its tokens, `MASK_DRAWS` and `TOKEN_DRAWS`; the batch does not, unless the training step masks words
(``masking=noise_aware``). Then `TEXT_MASKED` comes as it is, with fp32 `MASK_DRAWS` ``(B, 3, L)``, and without
`MLM_LABELS` and `MLM_POSITIONS`.

If image views are built on the training device, the loader's batch has `SOURCE` and `SEEDS` instead: `SOURCE` is uint8
``(B, 3, H, W)``, the images without augmentation, and `SEEDS` are B numbers that stay on the host.
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
MASK_DRAWS: Final = "mask_draws"
TOKEN_DRAWS: Final = "token_draws"
SOURCE: Final = "source"
SEEDS: Final = "seeds"
INDEX: Final = "index"
COPIES: Final = "copies"

IMAGE_VIEWS: Final = (IMAGE, IMAGE_AUG, IMAGE_SS1, IMAGE_SS2)
TEXT_VIEWS: Final = (TEXT, TEXT_MASKED)
VIEWS: Final = (*IMAGE_VIEWS, *TEXT_VIEWS)
LABELS: Final = (PIDS, MLM_LABELS, MLM_POSITIONS)
NOT_PREDICTED: Final = -100  # PyTorch's cross-entropy, and so the `mlm` loss, ignores this label

Batch = dict[str, Any]


def provided(with_pids: bool) -> frozenset[str]:
    """Returns the keys that a loss may use in training: views, and identities if training may read them."""
    return frozenset({*VIEWS, MLM_LABELS, MLM_POSITIONS, *((PIDS,) if with_pids else ())})


class Tokens(NamedTuple):
    """Token ids ``(B, L)`` int64, and a mask ``(B, L)`` bool that is false at padding."""

    ids: Tensor
    mask: Tensor

    def cut(self, multiple: int = 8) -> "Tokens":
        """Returns the tokens without the positions where every row has padding, up to a multiple of positions.

        A few lengths are faster than many: a GPU prepares its kernels for each.
        """
        used = int(self.mask.any(dim=0).nonzero().max()) + 1 if self.mask.any() else 1
        length = -(-used // multiple) * multiple
        return Tokens(self.ids[:, :length], self.mask[:, :length])
