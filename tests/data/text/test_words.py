"""Words of token ids, for tokenizers that mark the start of a word and for those that mark its end."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.synthetic import SyntheticSpec
from data.synthetic.captions.annotators import annotate
from data.synthetic.population import PEDESTRIANS
from data.synthetic.shot import sample_shot
from data.text.words import Word, most_telling, words_of

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


def test_the_most_telling_words_are_those_that_captions_of_a_person_share() -> None:
    words = [Word(text, [i]) for i, text in enumerate(["A", "red", "coat", "also", "Mauve", "hat", "a"])]
    captions = [
        "A red coat also mauve hat",
        "a red mauve hat",
        "a blue coat",
        "also a blue coat",
        "a red coat",
        "a coat",
    ]
    # shared with the other caption of the person / in all captions: a 1/1, red (2/3)/(3/6), coat (4/5)/(5/6), also 0,
    # mauve and hat 1/(2/6)
    assert most_telling(words, captions, [7, 7, 9, 9, 3, 3], most=3) == [words[1], words[4], words[5]]
    assert most_telling(words, captions, [7, 7, 9, 9, 3, 3], most=4) == [words[0], words[1], words[4], words[5]]
    assert most_telling(words, captions, range(6), most=3) == words[3:6]  # nothing is shared: the rarest
    assert most_telling([], captions, range(6)) == []


@pytest.mark.parametrize(
    ("language", "function_words"),
    [
        ("en", "a an the and is are in on with of to he she it they has have at by also wearing dressed as"),
        ("vi", "và là một có của cái chiếc với từ đang cũng người anh cô ấy mặc màu"),
    ],
)
def test_function_words_do_not_take_the_columns_of_word_maps(language: str, function_words: str) -> None:
    captions, pids = [], []
    for identity in SyntheticSpec(train=200, val=1, test=1, pretrain=1).identities():
        for camera in PEDESTRIANS.cameras[:3]:
            rng = random.Random(f"{identity.pid} {camera.light}")
            shot = sample_shot(identity.appearance, camera, rng)
            told = annotate(identity.appearance, shot, language, 2, rng, PEDESTRIANS.styles)
            captions += [caption.text for caption in told]
            pids += [identity.pid] * len(told)
    longest = sorted(captions, key=lambda text: -len(set(text.split())))[:10]
    for caption in longest:
        words = [Word(text.strip(".,"), [place]) for place, text in enumerate(caption.split())]
        shown = {word.text.lower() for word in most_telling(words, captions, pids)}
        assert len(shown) == 8
        assert not shown & set(function_words.split()), caption
