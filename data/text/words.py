"""Words of token ids, for pictures that show a caption word by word."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

STARTS, END = ("▁", "Ġ"), "</w>"  # word starts in SentencePiece and byte-level BPE; word end in CLIP
PART_OF_A_LETTER = "\N{REPLACEMENT CHARACTER}"


class Word(NamedTuple):
    """A word, and the positions of its tokens in the sequence."""

    text: str
    positions: list[int]


def words_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Word]:
    """Returns the words of token ids ``(L,)`` in order, without special tokens, padding and punctuation."""
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
    """Returns up to `most` different words in their order: the words that the fewest `captions` contain.

    Rare words distinguish persons, and this needs no list of stop words for any language.
    """
    lowered = [caption.lower() for caption in captions]
    different = list({word.text.lower(): word for word in reversed(words)}.items())
    different.sort(key=lambda item: sum(item[0] in caption for caption in lowered))
    return sorted((word for _, word in different[:most]), key=lambda word: word.positions)


def _spells(text: str) -> bool:
    """Returns whether a token's text has a letter, a digit, or a part of one."""
    return any(letter.isalnum() or letter == PART_OF_A_LETTER for letter in text)
