"""Masking of words, for losses in which the model predicts them, and as augmentation."""

from copy import copy
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.batch import NOT_PREDICTED, Tokens
from utils.errors import UserError

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


class Vocabulary:
    """The ids of words and of the mask token in a tokenizer, and how it pads.

    Args:
        tokenizer: if it has no mask token, one is added, with id ``len(tokenizer)``.
        mask_id: the mask token that the backbone was trained with; replaces the tokenizer's.

    Attributes:
        added: whether a mask token was added.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_id: int | None = None) -> None:
        self.added = mask_id is None and tokenizer.mask_token is None
        if self.added:
            tokenizer.add_special_tokens({"mask_token": ADDED_MASK_TOKEN})
        self.mask_id = int(tokenizer.mask_token_id) if mask_id is None else mask_id
        special = {*tokenizer.all_special_ids, self.mask_id}
        self.words = torch.tensor([i for i in sorted(tokenizer.get_vocab().values()) if i not in special])
        self.pad_id, self.pads_left = tokenizer.pad_token_id, tokenizer.padding_side == "left"
        self._special = torch.tensor(sorted(special))

    def on(self, device: torch.device) -> Self:
        """Returns this vocabulary for tokens on `device`."""
        moved = copy(self)
        moved.words, moved._special = self.words.to(device), self._special.to(device)
        return moved

    @property
    def max_id(self) -> int:
        """The largest id that masking may write."""
        return max(self.mask_id, int(self.words.max()))

    def is_word(self, tokens: Tokens) -> Tensor:
        """Returns bool ``(B, L)``, true on words: not on special and padding tokens."""
        return tokens.mask & ~torch.isin(tokens.ids, self._special)

    def drawn(self, draws: Tensor) -> Tensor:
        """Returns the ids of words that `draws`, uniform in [0, 1), choose."""
        return self.words[(draws * len(self.words)).long()]


class TokenNoise:
    """A text augmentation: each word is drawn with probability `p`, and then masked, replaced or removed.

    Source: the released code of RDE (CVPR 2024). Special tokens stay. The words after a removed one move up.

    Args:
        vocabulary: ids of words and of the mask token.
        p: probability that a word is drawn.
        masked, replaced: shares of the drawn words that become the mask token, and any word. The others are removed.
    """

    def __init__(self, vocabulary: Vocabulary, *, p: float, masked: float, replaced: float) -> None:
        if not (0 <= p <= 1 and masked >= 0 and replaced >= 0 and masked + replaced <= 1):
            raise UserError(
                f"aug.tokens: p={p}, masked={masked}, replaced={replaced} given, expected shares whose last two add up "
                "to at most 1"
            )
        self._vocabulary = vocabulary
        self._p, self._masked, self._changed = p, masked, masked + replaced

    def __call__(self, tokens: Tokens, draws: Tensor) -> Tokens:
        """Returns tokens of the same shape; the result depends only on the arguments.

        Args:
            tokens: tokens of B captions.
            draws: ``(B, 3, L)``, uniform in [0, 1): they decide whether a word is drawn, how it changes, and to what.
        """
        whether, how, which = draws.unbind(1)
        chosen = self._vocabulary.is_word(tokens) & (whether < self._p)
        ids = tokens.ids.masked_fill(chosen & (how < self._masked), self._vocabulary.mask_id)
        ids = self._vocabulary.drawn(which).where(chosen & (how >= self._masked) & (how < self._changed), ids)
        kept = tokens.mask & ~(chosen & (how >= self._changed))
        order = kept.argsort(dim=1, descending=not self._vocabulary.pads_left, stable=True)
        mask = kept.gather(1, order)
        return Tokens(ids.gather(1, order).where(mask, self._vocabulary.pad_id), mask)


class Masker:
    """A masker that masks 15 % of a caption's words like BERT: 80 % become the mask token, 10 % any word, 10 % stay.

    Source: IRRA (CVPR 2023), section 3.2. Special and padding tokens are never masked. At least one word of a
    caption is masked, unless it has none.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def on(self, device: torch.device) -> "Masker":
        """Returns this masker for tokens on `device`."""
        return Masker(self.vocabulary.on(device))

    def __call__(self, tokens: Tokens, draws: Tensor) -> MaskedTokens:
        """Returns masked tokens and labels; the result depends only on the arguments.

        Args:
            tokens: tokens of B captions.
            draws: ``(B, 3, L)``, uniform in [0, 1): they decide whether a position is masked, how, and by which word.
        """
        changed, masked = self.mask(tokens, draws, MASKED_SHARE)
        return MaskedTokens(changed, tokens.ids.where(masked, NOT_PREDICTED), masked.flatten().nonzero().squeeze(1))

    def mask(self, tokens: Tokens, draws: Tensor, probabilities: float | Tensor) -> tuple[Tokens, Tensor]:
        """Returns masked tokens, and bool ``(B, L)``, true on the masked words. It never waits for a device.

        Args:
            tokens, draws: as in `__call__`.
            probabilities: the probability of each word ``(B, L)``, or one of all words. If no word of a caption is
                drawn, the one whose draw exceeds its probability least is masked.
        """
        ids = tokens.ids
        whether, how, which = draws.unbind(1)
        maskable = self.vocabulary.is_word(tokens)
        excess = (whether - probabilities).masked_fill(~maskable, torch.inf)
        masked = maskable & ((excess < 0) | (excess == excess.amin(dim=1, keepdim=True)))
        words, mask_id = self.vocabulary.drawn(which), self.vocabulary.mask_id
        changed = torch.where(how < _TO_MASK, mask_id, torch.where(how < _TO_RANDOM, words, ids))
        return Tokens(changed.where(masked, ids), tokens.mask), masked
