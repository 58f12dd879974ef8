import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper

from data.annotations import Record
from data.images.oddities import jpeg_damage, oddities_of
from data.images.read import Resize, read_image
from utils.errors import UserError
from utils.images import read_rgb

RESIZE = Resize((24, 12), "bicubic")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (24, 12, 3)))


def write(path: Path, pixels: np.ndarray, mode: str = "RGB") -> Record:
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)
    return Record(pid=17, image_id=0, image_path=path, captions=("a red shirt",))


class TestReadImage:
    def test_the_pixels_at_their_own_size(self, record: Record) -> None:
        image = read_image(record, RESIZE)
        assert image.shape == (3, 24, 12)
        assert image.dtype == torch.uint8
        expected = np.asarray(Image.open(record.image_path)).transpose(2, 0, 1)
        assert np.array_equal(image.numpy(), expected)

    def test_resizing_averages_and_takes_height_first(self, tmp_path: Path) -> None:
        checkers = np.indices((192, 96)).sum(0) % 2 * 255
        image = read_image(write(tmp_path / "b.png", np.stack([checkers] * 3, -1)), Resize((48, 24), "bicubic"))
        assert image.shape == (3, 48, 24)
        assert (image.float() - 127.5).abs().max() < 3

    @pytest.mark.parametrize("size", [(384, 128), (48, 24), (300, 171)])
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_both_filters_are_those_of_pillow(self, tmp_path: Path, size: tuple[int, int], interpolation: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (200, 90, 3))
        record = write(tmp_path / "noise.png", noise)
        image = read_image(record, Resize(size, interpolation))
        with Image.open(record.image_path) as file:
            pillow = file.resize((size[1], size[0]), getattr(Image.Resampling, interpolation.upper()))
        assert np.array_equal(image.numpy(), np.asarray(pillow).transpose(2, 0, 1))

    @pytest.mark.parametrize("size", [(384, 128), (48, 24), (300, 171)])
    def test_bilinear_is_antialiased_to_one_grey_level(self, tmp_path: Path, size: tuple[int, int]) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (200, 90, 3))
        image = read_image(write(tmp_path / "noise.png", noise), Resize(size, "bilinear"))
        pixels = torch.from_numpy(noise).permute(2, 0, 1)[None].double()
        exact = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)[0]
        assert (image - exact.round()).abs().max() <= 1

    @pytest.mark.parametrize(
        ("suffix", "mode"), [("jpg", "L"), ("png", "RGBA"), ("png", "P"), ("bmp", "RGB"), ("jpg", "CMYK")]
    )
    def test_every_format_and_mode_becomes_rgb(self, tmp_path: Path, suffix: str, mode: str) -> None:
        gray = np.full((30, 20, 3), 102)  # in the palette that Pillow converts to
        image = read_image(write(tmp_path / f"c.{suffix}", gray, mode), RESIZE)
        assert image.shape == (3, 24, 12)
        assert (image.int() - 102).abs().max() <= 3

    @pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "not an image", "a folder"])
    def test_a_bad_file_is_named_with_its_identity(self, tmp_path: Path, damage: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (200, 100, 3))
        bad = write(tmp_path / "d.jpg", noise)
        content = bad.image_path.read_bytes()
        bad.image_path.unlink()
        if damage == "a folder":
            bad.image_path.mkdir()
        elif damage != "missing":
            kept = {"empty": b"", "truncated": content[: len(content) // 2], "not an image": b"<html>" * 50}
            bad.image_path.write_bytes(kept[damage])
        with pytest.raises(UserError) as error:
            read_image(bad, RESIZE)
        reason = {
            "missing": "there is no such file",
            "empty": "the file is empty",
            "truncated": "truncated",
            "not an image": "not an image",
            "a folder": "not a file",
        }
        assert f"{bad.image_path} (identity 17) cannot be read (" in str(error.value)
        assert reason[damage] in str(error.value)
        assert "data.doctor" in str(error.value)

    def test_the_error_crosses_a_worker_as_the_same_sentence(self, tmp_path: Path) -> None:
        missing = Record(17, 0, tmp_path / "nothing.jpg", ("a",))
        with pytest.raises(UserError) as error:
            read_image(missing, RESIZE)
        try:
            read_image(missing, RESIZE)
        except UserError:
            carried = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0")))
        with pytest.raises(UserError) as arrived:
            carried.reraise()
        assert str(arrived.value) == str(error.value)
        assert "\n" not in str(arrived.value)


def jpeg(**options: Any) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


class TestOddities:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"quality": 5}])
    def test_a_sound_jpeg_is_not_damaged(self, options: dict[str, Any]) -> None:
        content = jpeg(**options)
        assert jpeg_damage(content) is None
        assert jpeg_damage(content + b"behind the end") is None
        assert oddities_of(content, read_rgb(content)) == ()

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}])
    def test_damage_that_pillow_passes_over_is_noticed(self, options: dict[str, Any]) -> None:
        content = jpeg(**options)
        middle = len(content) // 2
        for damaged in (content[:middle] + b"\xff\xd9", content[:middle] + b"\xff\xd0" + content[middle:]):
            image = read_rgb(damaged)  # without a word
            assert oddities_of(damaged, image) == ("damaged",)

    def test_most_runs_of_wrong_bytes_are_noticed(self) -> None:
        content, rng = jpeg(), np.random.default_rng(0)
        start = content.index(b"\xff\xda") + 14
        noticed = 0
        for place in rng.integers(start, len(content) - 40, 100):
            wrong = rng.integers(0, 255, 30, dtype=np.uint8).tobytes()
            noticed += jpeg_damage(content[:place] + wrong + content[place + 30 :]) is not None
        assert noticed > 50

    def test_other_formats_have_other_means(self) -> None:
        buffer = io.BytesIO()
        Image.effect_noise((16, 16), 50).save(buffer, "PNG")
        assert jpeg_damage(buffer.getvalue()) is None

    @pytest.mark.parametrize(
        ("image", "oddities"),
        [
            (Image.new("RGB", (8, 8), "white"), ("constant",)),
            (Image.new("RGB", (7, 90)), ("constant", "small")),
            (Image.effect_noise((7, 90), 50).convert("RGB"), ("small",)),
            (Image.effect_noise((8, 8), 50).convert("RGB"), ()),
        ],
    )
    def test_one_color_and_few_pixels(self, image: Image.Image, oddities: tuple[str, ...]) -> None:
        assert oddities_of(b"", image) == oddities
