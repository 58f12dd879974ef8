"""Changed captions and images, and the table of their results."""

import numpy as np
import pytest
import torch

from data.changes.captions import COLOR, COLORS, drop_words, exchange_colors, first_words
from data.changes.images import GREY, grey, hide_above, hide_below, shrink
from utils.errors import UserError
from utils.ranking.changes import Change, Changed, by_length, changes_table
from utils.ranking.metrics import STANDARD, RetrievalMetrics
from utils.ranking.positives import Ranks

CAPTION = "a man in a red coat, blue jeans and black shoes"


def test_captions_are_shortened() -> None:
    assert first_words(CAPTION, 0.5) == "a man in a red coat,"
    assert first_words(CAPTION, 0.01) == "a"
    assert first_words("", 0.5) == ""
    assert first_words(CAPTION, 1) == drop_words(CAPTION, 0) == exchange_colors(CAPTION, 0) == CAPTION
    dropped = drop_words(CAPTION, 0.3).split()
    assert len(dropped) == 8
    words = iter(CAPTION.split())
    assert all(word in words for word in dropped), "in their order"
    assert drop_words(CAPTION, 0.3) == " ".join(dropped), "the same each time"
    assert len(drop_words(CAPTION, 1).split()) == 1


@pytest.mark.parametrize(
    ("caption", "language"), [(CAPTION, 0), ("Áo Xanh Dương và quần xanh lá, giày đen, infrared reddish", 1)]
)
def test_colors_are_exchanged_for_others_of_the_language(caption: str, language: int) -> None:
    colors = COLOR.findall(caption)
    assert len(colors) == 3
    changed = exchange_colors(caption, 1)
    found = COLOR.findall(changed)
    assert all(new in COLORS[language] and new != old.lower() for new, old in zip(found, colors, strict=True))
    assert COLOR.split(changed)[::2] == COLOR.split(caption)[::2], "all other words are left"
    assert changed == exchange_colors(caption, 1), "the same each time"


def test_odd_letters_end_no_encoding() -> None:
    assert exchange_colors("a whıte shirt, WHİTE", 1) == "a whıte shirt, WHİTE"
    assert drop_words("\udcff a", 0.5) in ("\udcff", "a")
    assert first_words("a b", 0) == "a"


def test_images_are_changed_where_it_says() -> None:
    pixels = torch.randint(0, 256, (3, 8, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    before = pixels.clone()
    assert hide_below(pixels, 0.25)[:, 6:].unique().tolist() == [GREY]
    assert hide_below(pixels, 0.25)[:, :6].equal(pixels[:, :6])
    assert hide_above(pixels, 0.5)[:, :4].unique().tolist() == [GREY]
    assert hide_above(pixels, 0.5)[:, 4:].equal(pixels[:, 4:])
    assert all(change(pixels, 0).equal(pixels) for change in (hide_below, hide_above, grey))
    assert shrink(pixels, 1).equal(pixels)
    small = shrink(pixels, 0.25)
    assert small.shape == pixels.shape
    assert small.float().std() < pixels.float().std() / 2
    without = grey(pixels, 1)
    assert (without.amax(dim=0) - without.amin(dim=0)).max() == 0
    assert pixels.equal(before), "the image itself is left"


def test_captions_are_ranked_apart_by_their_length() -> None:
    captions = ["a b", "a b", "a b c", "a b c d e", "a", "a b c d e f"]
    ranks = Ranks.of([np.array([rank]) for rank in (1, 2, 1, 2, 1, 2)])
    found = by_length(captions, ranks, STANDARD)
    assert [(one.level, one.metrics["t2i"].queries, one.metrics["t2i"].values["R1"]) for one in found] == [
        ("1 to 2 words", 3, pytest.approx(200 / 3)),
        ("3 to 4 words", 1, 100.0),
        ("5 to 6 words", 2, 0.0),
    ]
    assert [one.level for one in by_length(["a b"], Ranks.of([np.array([1])]), STANDARD)] == ["2 to 2 words"]


def test_the_table_shows_differences_to_the_plain_test() -> None:
    plain = {direction: RetrievalMetrics({"R1": 50.0}, 4, 0) for direction in ("t2i", "i2t")}
    worse = {"t2i": RetrievalMetrics({"R1": 12.5}, 4, 0)}
    lines = changes_table(plain, [Changed("grey", "1", worse)], "R1").splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["none", "", "50.00", "50.00"]
    assert [cell.strip() for cell in lines[4].split("|")[1:-1]] == ["grey", "1", "12.50 (-37.50)", ""]


def test_a_wrong_change_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"evaluation\.changes\.x\.of=words.*captions"):
        Change("x", "words", [1], first_words).checked()
    for levels in ([], 0.5, "0.5", ["a"], [None], [float("nan")], [-1], [2], [True]):
        with pytest.raises(UserError, match=r"evaluation\.changes\.x\.levels: .* from 0 to 1"):
            Change("x", "captions", levels, first_words).checked()  # type: ignore[arg-type]
