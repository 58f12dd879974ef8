"""Pictures of a part head's attention: heat maps of images, captions with coloured words."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from utils.report.plots.pictures import FAINT, GAP, INK, LINE, MARGIN, PAPER, TEXT_SIZE, THUMB, font, read_photo

HEAT = "inferno"
RED = (204, 41, 54)
LABEL_WIDTH, WORDS_WIDTH = 150, 900
ROW_GAP, PADDING = 12, 3


@dataclass(frozen=True)
class PartAttention:
    """An image, its caption, and the decoder's attention over both.

    words: the text of each word in the caption, and its positions in the sequence.
    foreground: ``(N,)`` attention over the patches.
    grid: (rows, columns) of the patches.
    of_words: ``(1 + P, L)`` attention over the sequence: the mean of the shared tokens, then each text token.
    """

    path: Path
    words: Sequence[tuple[str, Sequence[int]]]
    foreground: Tensor
    grid: tuple[int, int]
    of_words: Tensor


def attention_picture(samples: Sequence[PartAttention], path: str | Path | None = None) -> Image.Image:
    """Returns a picture with a row for each sample: the image, its heat map, and the caption; saves it to `path`.

    The caption is drawn once for the mean of the shared tokens and once for each text token. A redder word gets more
    of that token's attention, relative to the word with the most.
    """
    left = MARGIN + 2 * (THUMB[0] + GAP)
    blocks = [_caption_block(sample) for sample in samples]
    heights = [max(THUMB[1], block.height) for block in blocks]
    size = (
        left + LABEL_WIDTH + WORDS_WIDTH + MARGIN,
        2 * MARGIN + sum(heights) + 2 * MARGIN * (len(samples) - 1),
    )
    picture = Image.new("RGB", size, PAPER)
    top = MARGIN
    for sample, block, height in zip(samples, blocks, heights, strict=True):
        photo = read_photo(sample.path).resize(THUMB)
        picture.paste(photo, (MARGIN, top))
        picture.paste(heat_map(photo, sample.foreground, sample.grid), (MARGIN + THUMB[0] + GAP, top))
        picture.paste(block, (left, top))
        top += height + 2 * MARGIN
    if path is not None:
        picture.save(path, quality=90)
    return picture


def heat_map(photo: Image.Image, attention: Tensor, grid: tuple[int, int]) -> Image.Image:
    """Returns the photo in grey below the attention ``(N,)`` of its patches, scaled from minimum to maximum."""
    values = attention.float().cpu().view(grid).numpy()
    spread = (values - values.min()) / max(values.max() - values.min(), 1e-12)
    smooth = Image.fromarray(spread.astype(np.float32)).resize(photo.size, Image.Resampling.BICUBIC)
    colors = colormaps[HEAT](np.clip(np.asarray(smooth), 0, 1))[:, :, :3]
    colored = Image.fromarray((255 * colors).astype(np.uint8))
    return Image.blend(ImageOps.grayscale(photo).convert("RGB"), colored, 0.6)


def word_shares(words: Sequence[tuple[str, Sequence[int]]], attention: Tensor) -> list[float]:
    """Returns each word's sum of the attention ``(L,)``, divided by the sum of the word with the most."""
    sums = [float(attention[list(positions)].sum()) for _, positions in words]
    most = max([*sums, 1e-12])
    return [share / most for share in sums]


def _caption_block(sample: PartAttention) -> Image.Image:
    """Returns a picture that repeats the caption, coloured by each row of the attention."""
    labels = ["shared tokens", *(f"text token {i}" for i in range(1, len(sample.of_words)))]
    texts = [unicodedata.normalize("NFC", word) for word, _ in sample.words]
    places, lines = _places(texts)
    step = lines * LINE + ROW_GAP
    block = Image.new("RGB", (LABEL_WIDTH + WORDS_WIDTH, step * len(labels)), PAPER)
    draw = ImageDraw.Draw(block)
    for row, (label, attention) in enumerate(zip(labels, sample.of_words, strict=True)):
        draw.text((0, row * step), label, FAINT, font=font(TEXT_SIZE - 6))
        for text, (x, line), share in zip(texts, places, word_shares(sample.words, attention), strict=True):
            corner = (LABEL_WIDTH + x, row * step + line * LINE)
            box = draw.textbbox(corner, text, font=font(TEXT_SIZE))
            draw.rectangle([box[0] - PADDING, corner[1], box[2] + PADDING, corner[1] + LINE - 3], _tint(share))
            draw.text(corner, text, INK, font=font(TEXT_SIZE))
    return block


def _places(texts: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Returns (x, line) of every word, and the number of lines."""
    places: list[tuple[int, int]] = []
    x, line, space = 0.0, 0, font(TEXT_SIZE).getlength(" ") + 2 * PADDING
    for text in texts:
        width = font(TEXT_SIZE).getlength(text)
        if x and x + width > WORDS_WIDTH:
            x, line = 0.0, line + 1
        places.append((round(x), line))
        x += width + space
    return places, line + 1


def _tint(share: float) -> tuple[int, int, int]:
    """Returns a colour from white (0) to red (1)."""
    red, green, blue = (round(255 + share * (channel - 255)) for channel in RED)
    return red, green, blue
