"""Masking of words, for losses in which the model predicts them."""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.batch import NOT_PREDICTED, Tokens

MASKED_SHARE: Final = 0.15
ADDED_MASK_TOKEN: Final = "<|mask|>"
DRAWS: Final = 3
_TO_MASK, _TO_RANDOM = 0.8, 0.9


class MaskedTokens(NamedTuple):
    """Masked tokens and the labels to predict.

    labels: ``(B, L)``, the original id at masked positions, elsewhere `NOT_PREDICTED`.
    positions: ``(M,)``, the indices of the M ids in the flattened labels.
    """

    tokens: Tokens
    labels: Tensor
    positions: Tensor


class Masker:
    """A masker that masks 15 % of a caption's words like BERT: 80 % become the mask token, 10 % any word, 10 % stay.

    Source: IRRA (CVPR 2023), section 3.2. Special and padding tokens are never masked. At least one word of a
    caption is masked, unless it has none.

    Args:
        tokenizer: if it has no mask token, one is added, with id ``len(tokenizer)``.
        mask_id: the mask token that the backbone was trained with; replaces the tokenizer's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_id: int | None = None) -> None:
        self.added = mask_id is None and tokenizer.mask_token is None
        if self.added:
            tokenizer.add_special_tokens({"mask_token": ADDED_MASK_TOKEN})
        self.mask_id = int(tokenizer.mask_token_id) if mask_id is None else mask_id
        special = {*tokenizer.all_special_ids, self.mask_id}
        self._words = torch.tensor([i for i in sorted(tokenizer.get_vocab().values()) if i not in special])
        self._special = torch.tensor(sorted(special))

    @property
    def max_id(self) -> int:
        """The largest id that masking may write."""
        return max(self.mask_id, int(self._words.max()))

    def __call__(self, tokens: Tokens, draws: Tensor) -> MaskedTokens:
        """Returns masked tokens and labels; the result depends only on the arguments.

        Args:
            tokens: tokens of B captions.
            draws: ``(B, 3, L)``, uniform in [0, 1): they decide whether a position is masked, how, and by which word.
        """
        ids = tokens.ids
        whether, how, which = draws.unbind(1)
        maskable = tokens.mask & ~torch.isin(ids, self._special)
        whether = whether.masked_fill(~maskable, 1.0)
        lowest = whether == whether.min(dim=1, keepdim=True).values
        masked = maskable & ((whether < MASKED_SHARE) | lowest)
        labels = ids.where(masked, NOT_PREDICTED)
        words = self._words[(which * len(self._words)).long()]
        changed = torch.where(how < _TO_MASK, self.mask_id, torch.where(how < _TO_RANDOM, words, ids))
        positions = masked.flatten().nonzero().squeeze(1)
        return MaskedTokens(Tokens(changed.where(masked, ids), tokens.mask), labels, positions)
