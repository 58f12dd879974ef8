"""Captions to token ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data.batch import Tokens
from utils.errors import UserError


class TokenCounts(NamedTuple):
    """How many captions have more tokens than are read, the most tokens of one, and the largest id."""

    cut: int
    longest: int
    max_id: int


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer that lies in a backbone's folder.

    Raises:
        UserError: there is none.
    """
    if not Path(folder).is_dir():
        raise UserError(f"The tokenizer folder {folder} does not exist; `uv run prepare_checkpoints.py` fills one.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The folder {folder} holds no tokenizer that transformers can load; "
            "`uv run prepare_checkpoints.py` fills it again."
        ) from error


class Tokenize:
    """Turns captions into ids of exactly `max_length` tokens: longer ones are cut, shorter ones padded.

    Always the full length: SigLIP attends to its padding, so that padding to the longest of a batch would
    change the embeddings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Returns ids and mask, both ``(B, max_length)``."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"].bool())

    def count(self, captions: Sequence[str]) -> TokenCounts:
        """Returns what the tokens of these captions come to before they are cut."""
        encoded = self.tokenizer(list(captions), verbose=False)["input_ids"]
        lengths = [len(ids) for ids in encoded]
        return TokenCounts(
            cut=sum(length > self.max_length for length in lengths),
            longest=max(lengths),
            max_id=max(max(ids) for ids in encoded),
        )
