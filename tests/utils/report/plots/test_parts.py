"""Attention of a part head as figures: what is red, what is bright, where it lies, and the scale."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize
from PIL import Image
from utils.report.plots.figure import DPI, as_image

from utils.errors import UserError
from utils.report.plots.parts import PHOTO, PartAttention, attention_figure, heat_map, word_shares

WORDS = [("áo", [1]), ("khoác", [2, 3]), ("đen", [5])]
GRID = (4, 2)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 130), "#3060c0").save(tmp_path / "person.png")
    return tmp_path / "person.png"


def sample(photo: Path, of_words: torch.Tensor, words: list[tuple[str, list[int]]] = WORDS) -> PartAttention:
    return PartAttention(photo, words, torch.rand(8, generator=torch.Generator().manual_seed(0)), GRID, of_words)


def picture(*samples: PartAttention) -> Image.Image:
    return as_image(attention_figure(samples))


def red(drawn: Image.Image) -> int:
    """How many pixels of the captions are clearly red; the scale below them is not counted."""
    pixels = np.asarray(drawn).astype(int)[: -DPI // 2, int(DPI * PHOTO[0]) + 20 :]
    return int(((pixels[:, :, 0] > 90) & (pixels[:, :, 1] < 60) & (pixels[:, :, 2] < 60)).sum())


def test_a_word_has_the_attention_of_its_tokens() -> None:
    attention = torch.tensor([[0.5, 0.1, 0.2, 0.1, 0.05, 0.05], [0, 0, 0, 0, 0, 1]])
    assert word_shares(WORDS, attention) == pytest.approx(np.array([[0.1, 0.3, 0.05], [0, 0, 1]]))
    assert word_shares([], attention).shape == (2, 0)


def test_the_patch_that_is_attended_to_most_is_the_brightest() -> None:
    for patch in (0, 3, 7):
        heat = heat_map(Image.new("RGB", (40, 80), "black"), torch.eye(8)[patch], GRID, Normalize(0, 100))
        row, column = divmod(patch, 2)
        cells = np.asarray(heat.convert("L")).reshape(4, 20, 2, 20).mean(axis=(1, 3))
        assert np.unravel_index(cells.argmax(), cells.shape) == (row, column)


def test_all_maps_of_a_figure_have_one_scale_that_is_written_below(photo: Path) -> None:
    maps = [torch.full((8,), share) for share in (0.02, 0.1)]
    shares = torch.tensor([[0, 0.25, 0.25, 0, 0, 0.5], [0, 0.875, 0.125, 0, 0, 0]])
    figure = attention_figure([PartAttention(photo, WORDS, own, GRID, shares) for own in maps])
    pixels = np.asarray(as_image(figure))
    scales = [[float(tick.get_text()) for tick in bar.get_xticklabels()] for bar in figure.axes[1:]]
    assert scales == [[2, 10], [0, 87.5]]
    first, second = (pixels[int(DPI * (0.04 + top + 1.5)), int(DPI * 0.3)].astype(int).sum() for top in (0.0, 2.32))
    assert second > first + 100  # the least and the most of the scale


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png cannot be read as an image \(there is no such file\)"):
        attention_figure([sample(tmp_path / "gone.png", torch.ones(2, 6))])


def test_even_maps_and_a_caption_without_words_are_drawn_too(photo: Path) -> None:
    even = PartAttention(photo, [], torch.zeros(8), GRID, torch.zeros(2, 6))
    assert picture(even).width == picture(sample(photo, torch.zeros(2, 6))).width


def test_there_is_a_block_for_each_sample(photo: Path) -> None:
    one, two = ([sample(photo, torch.zeros(12, 6))] * count for count in (1, 2))
    assert picture(*two).height > 1.7 * picture(*one).height


def test_the_words_that_are_attended_to_are_red(photo: Path) -> None:
    none = picture(sample(photo, torch.zeros(2, 6)))
    one = picture(sample(photo, torch.eye(6)[[0, 1]]))
    both = picture(sample(photo, torch.eye(6)[[1, 1]]))
    assert red(none) == 0
    assert 0 < red(one) < red(both)


def test_a_long_caption_makes_its_block_higher(photo: Path) -> None:
    words = [("áo khoác đen", [place % 6]) for place in range(60)]
    assert picture(sample(photo, torch.zeros(8, 6), words)).height > picture(sample(photo, torch.zeros(8, 6))).height


def test_letters_composed_and_apart_look_the_same(photo: Path) -> None:
    attention = torch.eye(6)[[1, 2]]
    composed, apart = (
        picture(sample(photo, attention, [(unicodedata.normalize(form, "khoác"), [1])])) for form in ("NFC", "NFD")
    )
    assert composed == apart
