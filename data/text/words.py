"""Words of token ids, for pictures that show a caption word by word."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
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


def most_telling(words: Sequence[Word], captions: Sequence[str], pids: Sequence[int], most: int = 8) -> list[Word]:
    """Returns up to `most` different words in their order: those that tell most about the person.

    If a caption has such a word, the other captions of the person have it much more often than all captions do.
    Function words do not differ so, and this needs no list of them for any language. Rarer words win a tie.

    Args:
        captions, pids: a split's captions and the identities that they describe.
    """
    lowered = [caption.lower() for caption in captions]
    _, persons, sizes = np.unique(pids, return_inverse=True, return_counts=True)

    def rank(text: str) -> tuple[float, int]:
        has = np.array([text in caption for caption in lowered])
        own = np.bincount(persons[has], minlength=len(sizes))
        pairs, possible = (own * (own - 1)).sum(), (own * (sizes - 1)).sum()
        return -pairs / max(possible * has.mean(), 1e-12), has.sum()

    different = {word.text.lower(): word for word in reversed(words)}
    chosen = sorted(different, key=rank)[:most]
    return sorted((different[text] for text in chosen), key=lambda word: word.positions)


def _spells(text: str) -> bool:
    """Returns whether a token's text has a letter, a digit, or a part of one."""
    return any(letter.isalnum() or letter == PART_OF_A_LETTER for letter in text)
