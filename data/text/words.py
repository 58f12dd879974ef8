"""The words behind token ids, for what shows a caption word by word."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

STARTS, END = ("▁", "Ġ"), "</w>"  # how SentencePiece and byte-level BPE, and how CLIP mark the bounds of a word
PART_OF_A_LETTER = "\N{REPLACEMENT CHARACTER}"


class Word(NamedTuple):
    """A word, and where in the sequence its tokens are."""

    text: str
    positions: list[int]


def words_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Word]:
    """Returns the words of token ids ``(L,)`` in their order, without special tokens, padding and punctuation."""
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    groups: list[list[int]] = []
    inside = False
    for position, (token_id, token) in enumerate(zip(ids, tokens, strict=True)):
        if token_id in tokenizer.all_special_ids:
            inside = False
            continue
        if not inside or token.startswith(STARTS):
            groups.append([])
        groups[-1].append(position)
        inside = not token.endswith(END)

    def text(of: slice) -> str:
        return str(tokenizer.decode(list(ids[of]))).strip()

    words: list[Word] = []
    for group in groups:
        kept = [i for i in group if _spells(text(slice(i, i + 1)))]
        if kept:
            words.append(Word(text(slice(kept[0], kept[-1] + 1)), kept))
    return words


def rarest(words: Sequence[Word], captions: Sequence[str], most: int = 8) -> list[Word]:
    """Returns at most `most` different words in their order: those that the fewest of `captions` contain.

    What is rare tells one person from another; it needs no list of stop words in any language.
    """
    lowered = [caption.lower() for caption in captions]
    different = list({word.text.lower(): word for word in reversed(words)}.items())
    different.sort(key=lambda item: sum(item[0] in caption for caption in lowered))
    return sorted((word for _, word in different[:most]), key=lambda word: word.positions)


def _spells(text: str) -> bool:
    """Whether there is a letter or a digit in the text of a token, or a part of one."""
    return any(letter.isalnum() or letter == PART_OF_A_LETTER for letter in text)
