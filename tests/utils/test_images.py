"""Images are read as a viewer shows them."""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from utils.images import TURNS, BadImageError, read_bytes, read_rgb

HEIGHT, WIDTH = 6, 4
GRAY = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 10 + 5


def packed(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(content: bytes) -> np.ndarray:
    """The image in `content`: ``(H, W, 3)``."""
    image = read_rgb(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def whites(tags: dict[int, int]) -> TiffImagePlugin.ImageFileDirectory_v2:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    return directory


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (GRAY.astype(np.uint16) * 257, "PNG"),
        (GRAY.astype(np.uint16) * 257, "TIFF"),
        (GRAY.astype(">u2") * 257, "TIFF"),
        (GRAY.astype(np.int32) * 257, "TIFF"),
        (GRAY.astype(np.int32) * 257, "PPM"),
        (GRAY.astype(np.int32), "TIFF"),
        (GRAY.astype(np.float32) / 255, "TIFF"),
        (GRAY.astype(np.float32), "TIFF"),
        (GRAY.astype(np.float32) * 257, "TIFF"),
        (GRAY.astype(np.float32) / 255, "PPM"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else value,
)
def test_more_than_8_bits_are_scaled_to_8(pixels: np.ndarray, kind: str) -> None:
    assert np.abs(read(packed(pixels, kind)) - GRAY[..., None]).max() <= 1


def test_a_dark_16_bit_image_stays_dark() -> None:
    assert read(packed(GRAY.astype(np.uint16), "PNG")).max() == 1


def test_numbers_a_little_outside_of_their_range_are_cut_off() -> None:
    pixels = np.array([[-0.02, 0.5, 1.02]], dtype=np.float32)
    assert read(packed(pixels, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [[0, 7.5], [-40, 255], [0, 4095], [0, 1e6], [0, np.nan], [0, np.inf]])
def test_numbers_of_no_known_range_are_refused(values: list[float]) -> None:
    with pytest.raises(BadImageError, match=r"its numbers, .* are not 0 to 1, 0 to 255 or 0 to 65,535") as error:
        read_rgb(packed(np.array([values], dtype=np.float32), "TIFF"))
    assert error.value.fault == "unreadable"


def test_a_tiff_whose_white_is_zero_is_turned_round() -> None:
    pixels = (255 - GRAY).astype(np.uint16) * 257
    content = packed(pixels, "TIFF", tiffinfo=whites({262: 0}))
    with Image.open(io.BytesIO(content)) as image:
        assert image.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.abs(read(content) - GRAY[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_upright(kind: str, orientation: int) -> None:
    upright = Image.fromarray(np.kron(GRAY, np.ones((16, 16), np.uint8))).convert("RGB")
    back = {6: 8, 8: 6}.get(orientation, orientation)
    lying = upright.transpose(TURNS[back])
    exif = Image.Exif()
    exif[274] = orientation
    image = read_rgb(packed(lying, kind, exif=exif))
    assert image.size == (16 * WIDTH, 16 * HEIGHT)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).mean() < 3


@pytest.mark.parametrize("damage", [b"MM\0*\0\0\0\x08\xff\xff", b"nonsense", b"MM\0*\0\0\0\x08\0\2\1\x0f\0\2\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_is_done_without(damage: bytes) -> None:
    content = packed(GRAY, "WEBP", exif=b"Exif\0\0" + damage, lossless=True)
    assert np.array_equal(read(content)[..., 0], GRAY)


def test_orientation_beside_odd_exif_entries_is_read() -> None:
    """Pillow's own `exif_transpose` fails where it cannot write the entries again."""
    entries = b"\0\2" + b"\x01\x0f\0\2\0\0\0\4\xff\xfe\xfd\0" + b"\x01\x12\0\3\0\0\0\1\0\6\0\0"
    content = packed(GRAY, "WEBP", exif=b"MM\0*\0\0\0\x08" + entries + b"\0\0\0\0", lossless=True)
    assert read(content).shape == (WIDTH, HEIGHT, 3)


def transparent(mode: str) -> tuple[bytes, str]:
    """An image whose left half is red and opaque, whose right half is transparent over black."""
    alpha = Image.new("L", (WIDTH, HEIGHT), 255)
    alpha.paste(0, (WIDTH // 2, 0, WIDTH, HEIGHT))
    image = Image.new("RGB", (WIDTH, HEIGHT), "black")
    image.paste((250, 0, 0) if mode != "LA" else (250,) * 3, (0, 0, WIDTH // 2, HEIGHT))
    if mode == "key":
        return packed(image, transparency=(0, 0, 0)), "PNG"
    if mode == "16 bits":
        return packed(np.asarray(image.getchannel("R")).astype(np.uint16) * 257, transparency=0), "PNG"
    image.putalpha(alpha)
    if mode == "GIF":
        return packed(image, "GIF"), "GIF"
    return packed(image.quantize(8) if mode == "P" else image.convert(mode)), "PNG"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "GIF", "key", "16 bits"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    content, kind = transparent(mode)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == kind
    pixels = read(content)
    assert np.abs(pixels[:, WIDTH // 2 :] - 255).max() <= 1
    assert np.abs(pixels[:, : WIDTH // 2, 0] - 250).max() <= 8
    if mode not in ("LA", "16 bits"):
        assert pixels[:, : WIDTH // 2, 1:].max() <= 8


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert read(packed(Image.new("RGBA", (3, 3), (255, 0, 0, 51))))[0, 0].tolist() == [255, 204, 204]


def test_one_bit_cmyk_and_the_first_frame_of_an_animation() -> None:
    bits = Image.fromarray(GRAY > 100)
    assert bits.mode == "1"
    assert np.array_equal(read(packed(bits))[..., 0], 255 * (GRAY > 100))
    assert np.abs(read(packed(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")) - [255, 0, 0]).max() <= 3
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for kind in ("GIF", "PNG", "WEBP"):
        animation = packed(first, kind, save_all=True, append_images=[second])
        assert np.abs(read(animation)[0, 0] - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("share", [1, 3])
def test_a_size_bomb_is_an_error_without_a_warning(monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    content = packed(Image.new("L", (40, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799 // share)
    with warnings.catch_warnings(record=True), pytest.raises(BadImageError, match=r"more than the \d+ ") as error:
        read_rgb(content)
    assert "pixels" in str(error.value)


def test_a_format_that_another_program_would_execute_is_no_image() -> None:
    content = packed(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(BadImageError, match="not an image"):
        read_rgb(content)


def test_what_is_no_file_with_something_in_it_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)  # takes no room
    faults = {"nothing": "missing", "empty": "empty"} | dict.fromkeys(("pipe", ".", "loop", "huge"), "unreadable")
    for name, fault in faults.items():
        with pytest.raises(BadImageError) as error:
            read_bytes(tmp_path / name)
        assert error.value.fault == fault
