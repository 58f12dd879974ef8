"""Noise-aware masking: the words of a caption that fit its image least are masked most in the next epoch.

Source: Tan et al., CVPR 2024, "Harnessing the Power of MLLMs for Transferable Text-to-Image Person ReID", and the
authors' code. Captions that a language model wrote name things that the image does not show. A word that is masked
teaches the encoder nothing.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import Encoded, at_least_fp32, no_gather
from model.resizable import Resizable
from utils.errors import UserError

STEPS: Final = 254  # a probability is kept as a whole number of steps from 0 to 1
UNSEEN: Final = 255


def masking_probabilities(words: Tensor, patches: Tensor, is_word: Tensor, is_patch: Tensor, share: float) -> Tensor:
    """Returns the probability ``(B, L)`` with which each word is masked in the next epoch; 0 where there is no word.

    r_i = 1 - max_j cos(word_i, patch_j) and p_i = clip(r_i - mean(r) + share, 0, 1).
    Decision: the mean is over the words of one caption, as in the authors' code, so that each caption keeps the share.

    Args:
        words: projected tokens of the captions ``(B, L, D)``.
        patches: projected tokens of their images ``(B, N, D)``.
        is_word: bool ``(B, L)``, false at start, end and padding.
        is_patch: bool ``(B, N)``, false at [CLS].
        share: the mean probability.
    """
    words, patches = (F.normalize(at_least_fp32(tokens), dim=-1) for tokens in (words, patches))
    cosines = (words @ patches.mT).masked_fill(~is_patch[:, None], -torch.inf)
    mismatch = (1 - cosines.amax(dim=2)).masked_fill(~is_word, 0)
    mean = mismatch.sum(dim=1, keepdim=True) / is_word.sum(dim=1, keepdim=True).clamp_min(1)
    return (mismatch - mean + share).clamp(0, 1).masked_fill(~is_word, 0)


class PlainCaptions(NamedTuple):
    """The captions of a batch before masking: ids ``(B, L)``, mask ``(B, L)``, and bool ``(B, L)``, true on words."""

    ids: Tensor
    mask: Tensor
    is_word: Tensor


class MatchedCaptions:
    """The masking probabilities of a batch. They are found while its images are encoded, some rows after the others.

    Args:
        captions: captions of the batch.
        encode: (ids, mask) -> projected tokens ``(B, L, D)``.
        share: as in `masking_probabilities`.
    """

    def __init__(self, captions: PlainCaptions, encode: Callable[[Tensor, Tensor], Tensor], share: float) -> None:
        self._captions = captions
        self._encode = encode
        self._share = share
        self._found: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, images: Encoded) -> None:
        """Compares the next rows of the batch with their images. Further images, of another view, are not used."""
        start = sum(map(len, self._found))
        if start == len(self._captions.ids):
            return
        ids, mask, is_word = (rows[start : start + len(images.tokens)] for rows in self._captions)
        words = self._encode(ids, mask)
        self._found.append(masking_probabilities(words, images.tokens, is_word, images.mask, self._share))

    @property
    def probabilities(self) -> Tensor:
        """The probabilities of all rows so far. Shape: ``(B, L)``."""
        return torch.cat(self._found)


class NoiseAwareMasking(Resizable):
    """The masking probabilities of all words of all training pairs, from one epoch to the next.

    A pair has `share` for all its words until a step has trained it. Its row is replaced in each step that trains it: a
    pair that an epoch leaves out keeps its row, and one that an epoch draws twice has the newer one. All processes have
    the same table, and checkpoints contain it. It takes one byte a token on the device: 77 MB for a million pairs of 77
    tokens.

    Decision: probabilities are rounded to steps of 1 / 254.

    Args:
        name: name of the option `masking`.
        share: mean probability that a word is masked.
        max_length: tokens of a caption.
    """

    resizable = frozenset({"steps"})
    steps: Tensor

    def __init__(self, *, name: str, share: float, max_length: int) -> None:
        super().__init__()
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise UserError(f"masking.share: {share} given, expected a number above 0 and below 1, such as 0.15")
        self.name = name
        self.share = share
        self._pads_left = False
        self.register_buffer("steps", torch.zeros(0, max_length, dtype=torch.uint8))

    def begin(self, pairs: int, *, pads_left: bool) -> None:
        """Gives a new table its rows, and checks those of a checkpoint.

        Args:
            pairs: number of training pairs.
            pads_left: whether captions are padded at their start.

        Raises:
            UserError: the checkpoint has another number of pairs.
        """
        self._pads_left = pads_left
        if len(self.steps) == 0:
            self.steps = self.steps.new_full((pairs, self.steps.shape[1]), UNSEEN)
        if len(self.steps) != pairs:
            raise UserError(
                f"the checkpoint has masking probabilities of {len(self.steps):,} pairs, but this training set has "
                f"{pairs:,}; continue with the dataset that it was trained on"
            )

    def columns(self, full: Tensor, ids: Tensor) -> Tensor:
        """Returns the columns of `full` ``(..., max_length)`` that belong to the tokens `ids` ``(B, L)``."""
        length = ids.shape[1]
        return full[..., -length:] if self._pads_left else full[..., :length]

    def of(self, pairs: Tensor, ids: Tensor) -> Tensor:
        """Returns the probabilities ``(B, L)``, in fp32, of the tokens `ids` ``(B, L)`` of `pairs` ``(B,)``."""
        steps = self.columns(self.steps[pairs], ids)
        return (steps.float() / STEPS).masked_fill(steps == UNSEEN, self.share)

    def keep(self, pairs: Tensor, probabilities: Tensor, gather: Callable[[Tensor], Tensor] = no_gather) -> None:
        """Replaces the probabilities of `pairs` ``(B,)`` by `probabilities` ``(B, L)``. All processes call it.

        Args:
            gather: as in `Features`.
        """
        rows = self.steps.new_full((len(pairs), self.steps.shape[1]), UNSEEN)
        self.columns(rows, probabilities).copy_((STEPS * probabilities).round())
        pairs, rows = gather(pairs), gather(rows)
        order = pairs.argsort(stable=True)
        ordered = pairs[order]
        newest = order[torch.searchsorted(ordered, ordered, right=True) - 1]
        self.steps[ordered] = rows[newest]  # equal rows for a pair drawn twice: which of two is written is undefined
