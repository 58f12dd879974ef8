"""Conversion of captions to token ids."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from data.annotations import DatasetSplits
from data.annotations.layouts import SPLITS
from data.batch import Tokens
from data.text.rules import open_clip_tokenizer, rule_of, transformers_tokenizer
from utils.checkpoints.folder import is_open_clip
from utils.errors import UserError, library_errors


class TokenCounts(NamedTuple):
    """The number of captions with too many tokens, the most tokens in a caption, and the largest token id."""

    cut: int
    longest: int
    max_id: int


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a backbone's folder; never runs code that the folder names.

    Raises:
        UserError: if there is none, or it cannot tokenize and pad.
    """
    if not Path(folder).is_dir():
        raise UserError(f"The tokenizer folder {folder} does not exist; `uv run prepare_checkpoints.py` fills one.")
    advice = "`uv run prepare_checkpoints.py` fills it again"
    with library_errors(f"The folder {folder} holds no tokenizer that transformers can load", advice):
        tokenizer = (open_clip_tokenizer if is_open_clip(Path(folder)) else transformers_tokenizer)(Path(folder))
        tokenize = Tokenize(tokenizer, max_length=8)
        tokenize.count(["a man"])
        padded = tokenize(["a man", "a man " * 8]).ids
    if padded.shape != (2, 8):
        raise UserError(f"The tokenizer in {folder} does not pad and cut captions to a length; {advice}.")
    return tokenizer


def clean_for(tokenizer: PreTrainedTokenizerBase, captions: Iterable[str]) -> tuple[str, ...]:
    """Returns captions as the tokenizer expects them: by the rule of its backbone (`rule_of`), or else unchanged."""
    rule = rule_of(tokenizer)
    return tuple(captions if rule is None else map(rule, captions))


def clean_dataset(dataset: DatasetSplits, tokenizer: PreTrainedTokenizerBase) -> DatasetSplits:
    """Returns the dataset with captions cleaned by `clean_for`, for augmentation, masking and display."""
    records: dict[str, Any] = {
        split: [record._replace(captions=clean_for(tokenizer, record.captions)) for record in getattr(dataset, split)]
        for split in SPLITS
    }
    further = {
        key: {image: clean_for(tokenizer, captions) for image, captions in column.items()}
        for key, column in dataset.further.items()
    }
    return replace(dataset, **records, further=further)


class Tokenize:
    """A function that turns captions into exactly `max_length` token ids: it cuts longer ones and pads shorter ones.

    It always pads to the full length: SigLIP attends to padding, so padding to the longest caption of a batch would
    change the embeddings. Captions that `count` has seen are stored and not tokenised again.

    Args:
        tokenizer: the backbone's tokenizer.
        max_length: number of tokens that the backbone reads.
        cleaned: whether captions were already cleaned by `clean_for`; if not, this class cleans them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, cleaned: bool = False) -> None:
        self.tokenizer = tokenizer
        self._cleaned = cleaned
        self.max_length = max_length
        self._rows: dict[str, int] = {}
        self._remembered = Tokens(torch.empty(0, max_length, dtype=torch.int64), torch.empty(0, max_length).bool())

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Returns ids and mask, both ``(B, max_length)``."""
        if not all(caption in self._rows for caption in captions):
            return self._tokenized(captions)
        rows = [self._rows[caption] for caption in captions]
        return Tokens(*(part[rows] for part in self._remembered))

    def _tokenized(self, captions: Sequence[str]) -> Tokens:
        encoded = self.tokenizer(
            self._texts(captions),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"].bool())

    def count(self, captions: Sequence[str]) -> TokenCounts:
        """Returns the counts of these captions' tokens before they are cut, and stores the tokens."""
        encoded = self.tokenizer(self._texts(captions), verbose=False)["input_ids"]
        lengths = [len(ids) for ids in encoded]
        self._remember(dict(zip(captions, encoded, strict=True)))
        return TokenCounts(
            cut=sum(length > self.max_length for length in lengths),
            longest=max(lengths),
            max_id=max(max(ids, default=0) for ids in encoded),
        )

    def _texts(self, captions: Sequence[str]) -> list[str]:
        return list(captions if self._cleaned else clean_for(self.tokenizer, captions))

    def _remember(self, encoded: dict[str, list[int]]) -> None:
        new = {caption: ids for caption, ids in encoded.items() if caption not in self._rows}
        long = [caption for caption, ids in new.items() if len(ids) > self.max_length]
        if long:  # the tokenizer cuts, because it keeps the end token
            new |= zip(long, self._tokenized(long).ids.tolist(), strict=True)
        self._rows |= {caption: row for row, caption in enumerate(new, start=len(self._rows))}
        parts = zip(self._remembered, self._padded(list(new.values())), strict=True)
        self._remembered = Tokens(*map(torch.cat, parts))

    def _padded(self, encoded: Sequence[list[int]]) -> Tokens:
        """Returns captions of up to `max_length` tokens, padded as the tokenizer pads. Shape: ``(N, max_length)``."""
        ids = torch.full((len(encoded), self.max_length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(encoded):
            place = slice(None, len(tokens))
            if self.tokenizer.padding_side == "left":
                place = slice(self.max_length - len(tokens), None)
            ids[row, place], mask[row, place] = torch.tensor(tokens), True
        return Tokens(ids, mask)
