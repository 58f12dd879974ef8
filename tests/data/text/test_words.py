"""Words of token ids, for tokenizers that mark the start of a word and for those that mark its end."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.text.words import Word, rarest, words_of

START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture
def sentencepiece() -> PreTrainedTokenizerBase:
    """Pieces that start a word have a bar in front, as in SigLIP and mSigLIP."""
    pieces = ["<pad>", "</s>", "▁", "▁áo", "▁khoác", "▁đ", "en", ",", "▁sneak", "er", "-", "."]
    core = Tokenizer(models.Unigram([(piece, -float(i + 1)) for i, piece in enumerate(pieces)], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


@pytest.fixture
def clip(tmp_path: Path) -> PreTrainedTokenizerBase:
    """Pieces that end a word have a mark behind; letters are bytes: "á" is two of them."""
    merges = ["m a", "ma n</w>", "t o", "to p</w>", "Ã ¡</w>"]
    letters = [*"amnopt-,Ã¡"]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocab = {piece: i for i, piece in enumerate([*pieces, START, END])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(tmp_path)


def ids_of(tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[piece] for piece in pieces]


def test_pieces_that_start_words_are_joined_and_punctuation_left_out(sentencepiece: PreTrainedTokenizerBase) -> None:
    pieces = ["▁áo", "▁khoác", "▁đ", "en", ",", "▁", ".", "▁sneak", "er", "-", "er", ".", "</s>", "<pad>", "<pad>"]
    assert words_of(sentencepiece, ids_of(sentencepiece, pieces)) == [
        Word("áo", [0]),
        Word("khoác", [1]),
        Word("đen", [2, 3]),
        Word("sneaker-er", [7, 8, 10]),
    ]


def test_pieces_that_end_words_are_joined_and_bytes_become_letters(clip: PreTrainedTokenizerBase) -> None:
    ids = clip("Man, a t-top mát má", padding="max_length", max_length=20)["input_ids"]
    pieces = clip.convert_ids_to_tokens(ids)
    words = words_of(clip, ids)
    assert [word.text for word in words] == ["man", "a", "t", "top", "mát", "má"]
    assert words[0].positions == [pieces.index("man</w>")] == [1]
    assert ["".join(pieces[i] for i in word.positions) for word in words[2:4]] == ["t</w>", "top</w>"]
    assert len(words[4].positions) == 4
    assert all(pieces[i] not in (START, END, ",</w>") for word in words for i in word.positions)


def test_nothing_but_padding_and_punctuation_has_no_words(sentencepiece: PreTrainedTokenizerBase) -> None:
    assert words_of(sentencepiece, ids_of(sentencepiece, ["▁", ".", "</s>", "<pad>"])) == []


def test_the_rarest_words_come_in_the_order_of_the_caption() -> None:
    words = [Word(text, [i]) for i, text in enumerate(["A", "red", "coat", "a", "mauve", "hat", "a"])]
    captions = ["A red coat a mauve hat a", "a red coat", "A Red hat", "a Mauve bag"]
    assert rarest(words, captions, most=3) == [words[2], words[4], words[5]]
    assert rarest(words, captions) == words[:3] + words[4:6]
    assert rarest([], captions) == []
