"""The picture of ranked images: what it says, that right and wrong differ in shape, and that texts fit."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageColor
from torch.nn.functional import normalize

from utils.errors import UserError
from utils.report.plots import pictures
from utils.report.plots.pictures import RankedImage, RankedQuery, marked, rank_queries, ranked_picture

VIETNAMESE = "Người phụ nữ tóc dài buộc đuôi ngựa, mặc áo sơ mi kẻ sọc, đi giày thể thao trắng, xách túi nhỏ."


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (60, 90), "#3060c0").save(path)
    return path


def query(photo: Path, caption: str = VIETNAMESE, *, right: tuple[bool, ...] = (True, False, True)) -> RankedQuery:
    images = tuple(RankedImage(photo, 0.9 - rank / 10, hit) for rank, hit in enumerate(right))
    return RankedQuery(caption, images, true_images=4)


def test_rank_queries(photo: Path) -> None:
    gallery = normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    gallery_pids = torch.arange(30) // 3
    paths = [Path(f"{i}.jpg") for i in range(30)]
    first, second = rank_queries(
        gallery[[4, 20]], gallery, torch.tensor([1, 99]), gallery_pids, ["a", "b"], paths, k=10
    )
    assert (first.caption, first.true_images, len(first.images)) == ("a", 3, 10)
    assert first.images[0] == RankedImage(Path("4.jpg"), pytest.approx(1), True)
    scores = [image.score for image in first.images]
    assert scores == sorted(scores, reverse=True)
    assert [image.right for image in first.images] == [int(i.path.stem) in (3, 4, 5) for i in first.images]
    assert (second.caption, second.true_images, second.found) == ("b", 0, 0)


def test_right_and_wrong_differ_in_colour_and_in_shape(photo: Path) -> None:
    right, wrong = (marked(RankedImage(photo, 0.5, hit)) for hit in (True, False))
    assert right.size == wrong.size == pictures.THUMB
    corner = pictures.THUMB[0] - 1, pictures.THUMB[1] - 1
    assert right.getpixel(corner) == ImageColor.getrgb(pictures.RIGHT)
    assert wrong.getpixel(corner) == ImageColor.getrgb(pictures.WRONG)
    corners = [image.crop((0, 0, pictures.BADGE, pictures.BADGE)).split()[2] for image in (right, wrong)]
    strokes = [corner.point(lambda blue: 255 * (blue > 230)) for corner in corners]
    assert all(stroke.getbbox() for stroke in strokes)
    assert ImageChops.difference(*strokes).getbbox()


def test_picture_has_a_row_per_query_and_is_saved(photo: Path, tmp_path: Path) -> None:
    one = ranked_picture([query(photo)], tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size == one.size
    ten = ranked_picture([query(photo, right=(False,) * 10)] * 3)
    assert ten.height > 3 * pictures.THUMB[1] > one.height
    assert ten.width == one.width + 7 * (pictures.THUMB[0] + pictures.GAP)


def test_long_captions_push_the_next_row_down_and_stay_left_of_the_images(photo: Path) -> None:
    short, long = (ranked_picture([query(photo, " ".join([VIETNAMESE] * n)), query(photo)]) for n in (1, 8))
    assert long.height > short.height
    gutter = (pictures.MARGIN + pictures.CAPTION_WIDTH + 1, 0)
    strip = long.crop((*gutter, gutter[0] + pictures.GAP, long.height))
    assert strip.getcolors() == [(strip.width * strip.height, ImageColor.getrgb(pictures.PAPER))]


def test_every_vietnamese_letter_has_a_glyph(photo: Path) -> None:
    font = pictures.font(pictures.TEXT_SIZE)
    missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    letters = "ăâđêôơưàảãáạằẳẵắặầẩẫấậèẻẽéẹềểễếệìỉĩíịòỏõóọồổỗốộờởỡớợùủũúụừửữứựỳỷỹýỵ"
    for letter in letters + letters.upper():
        assert (font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != missing, letter
    composed, apart = (
        ranked_picture([query(photo, unicodedata.normalize(form, VIETNAMESE))]) for form in ("NFC", "NFD")
    )
    assert composed == apart


def test_images_are_shown_as_models_saw_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    upside_down = np.repeat(np.uint16([40_000, 0]), 30)[:, None].repeat(30, axis=1)
    Image.fromarray(upside_down).save(tmp_path / "grey.png", exif=exif)
    drawn = marked(RankedImage(tmp_path / "grey.png", 0.5, True))
    middle = pictures.THUMB[0] // 2
    assert drawn.getpixel((middle, pictures.THUMB[1] // 4)) == (0, 0, 0)
    assert drawn.getpixel((middle, 3 * pictures.THUMB[1] // 4)) == (156, 156, 156)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    for path in (broken, tmp_path / "absent.jpg"):
        with pytest.raises(UserError, match=rf"{path.name} cannot be read as an image"):
            ranked_picture([query(path)])
