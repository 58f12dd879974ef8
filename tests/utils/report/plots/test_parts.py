"""Attention of a part head as pictures: what is red, what is bright, and where it lies."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.errors import UserError
from utils.report.plots.parts import WORDS_WIDTH, PartAttention, attention_picture, heat_map, word_shares

WORDS = [("áo", [1]), ("khoác", [2, 3]), ("đen", [5])]
GRID = (4, 2)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 130), "#3060c0").save(tmp_path / "person.png")
    return tmp_path / "person.png"


def sample(photo: Path, of_words: torch.Tensor, words: list[tuple[str, list[int]]] = WORDS) -> PartAttention:
    return PartAttention(photo, words, torch.rand(8, generator=torch.Generator().manual_seed(0)), GRID, of_words)


def red(picture: Image.Image) -> int:
    """How many pixels of the captions are clearly red."""
    pixels = np.asarray(picture).astype(int)[:, -WORDS_WIDTH:]
    return int(((pixels[:, :, 0] > 150) & (pixels[:, :, 1] < 80) & (pixels[:, :, 2] < 90)).sum())


def test_a_word_has_the_attention_of_its_tokens_relative_to_the_most_attended() -> None:
    attention = torch.tensor([0.5, 0.1, 0.2, 0.1, 0.05, 0.05])
    assert word_shares(WORDS, attention) == pytest.approx([1 / 3, 1, 1 / 6])
    assert word_shares(WORDS, torch.zeros(6)) == [0, 0, 0]


def test_the_patch_that_is_attended_to_most_is_the_brightest() -> None:
    for patch in (0, 3, 7):
        heat = heat_map(Image.new("RGB", (40, 80), "black"), torch.eye(8)[patch], GRID)
        row, column = divmod(patch, 2)
        cells = np.asarray(heat.convert("L")).reshape(4, 20, 2, 20).mean(axis=(1, 3))
        assert np.unravel_index(cells.argmax(), cells.shape) == (row, column)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png cannot be read as an image \(there is no such file\)"):
        attention_picture([sample(tmp_path / "gone.png", torch.ones(2, 6))])


def test_an_even_map_is_drawn_too() -> None:
    assert heat_map(Image.new("RGB", (40, 80)), torch.zeros(8), GRID).size == (40, 80)


def test_there_is_a_row_for_each_token_and_it_is_saved(photo: Path, tmp_path: Path) -> None:
    few, many = torch.zeros(2, 6), torch.zeros(12, 6)
    picture = attention_picture([sample(photo, few)], tmp_path / "parts.png")
    assert Image.open(tmp_path / "parts.png").tobytes() == picture.tobytes()
    assert attention_picture([sample(photo, many)]).height > picture.height
    assert attention_picture([sample(photo, few)] * 2).height > 1.8 * picture.height


def test_the_words_that_are_attended_to_are_red(photo: Path) -> None:
    none = attention_picture([sample(photo, torch.zeros(2, 6))])
    one = attention_picture([sample(photo, torch.eye(6)[[0, 1]])])
    both = attention_picture([sample(photo, torch.eye(6)[[1, 1]])])
    assert red(none) == 0
    assert 0 < red(one) < red(both)


def test_a_long_caption_goes_on_in_the_next_line(photo: Path) -> None:
    words = [("áo khoác đen", [place % 6]) for place in range(20)]
    picture = attention_picture([sample(photo, torch.zeros(8, 6), words)])
    assert picture.height > attention_picture([sample(photo, torch.zeros(8, 6))]).height
    assert picture.width > WORDS_WIDTH


def test_letters_composed_and_apart_look_the_same(photo: Path) -> None:
    attention = torch.eye(6)[[1, 2]]
    composed, apart = (
        attention_picture([sample(photo, attention, [(unicodedata.normalize(form, "khoác"), [1])])])
        for form in ("NFC", "NFD")
    )
    assert composed == apart
