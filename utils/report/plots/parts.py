"""Figures of a part head's attention: maps over images, and how much of it each word of a caption gets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from utils.report.plots.figure import (
    FAINT,
    HEAT,
    INK,
    LINE,
    MARGIN,
    composed,
    place_image,
    place_scale,
    sheet,
    styled,
    text_width,
)
from utils.report.plots.pictures import THUMB, read_photo

WORD_HEAT = "Reds"
PHOTO = (0.55, 1.1)  # width and height of an image, in inches
GAP, SCALE = 0.06, 0.42  # between things, and the height of the scales, in inches
HALF, WIDEST = 1.27, 0.2  # width of half a caption, and of a token's column at most, in inches


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


@styled
def attention_figure(samples: Sequence[PartAttention]) -> Figure:
    """Returns a figure with a block for each sample: the image, its heat map, and the words of the caption.

    The words are rows, in two halves. Their columns are the mean of the shared tokens (S) and each text token (1, 2,
    ...). All heat maps have one scale, and all words another; both stand at the bottom, in percent of an attention.
    """
    shares = [100 * word_shares(sample.words, sample.of_words) for sample in samples]
    halves = [-(-len(sample.words) // 2) for sample in samples]
    heights = [max(2 * PHOTO[1] + GAP, LINE * (1 + half)) for half in halves]
    patches = _scale([100 * sample.foreground.float().cpu().numpy() for sample in samples])
    of_words = Normalize(0, _scale(shares).vmax)
    end = MARGIN + sum(heights) + GAP * len(samples)
    figure, axes = sheet(end + SCALE)
    top = MARGIN
    for sample, share, half, height in zip(samples, shares, halves, heights, strict=True):
        photo = read_photo(sample.path).resize(THUMB)
        place_image(axes, photo, MARGIN, top, *PHOTO)
        heat = heat_map(photo, sample.foreground, sample.grid, patches)
        place_image(axes, heat, MARGIN, top + PHOTO[1] + GAP, *PHOTO)
        texts = [composed(word) for word, _ in sample.words]
        for side, own in enumerate((slice(half), slice(half, None))):
            place = MARGIN + PHOTO[0] + GAP + side * (HALF + GAP), top
            _words_table(axes, texts[own], share[:, own], of_words, *place)
        top += height + GAP
    place_scale(figure, ScalarMappable(patches, HEAT), "attention of a patch, %", 0.2, end + 0.05, 1.2)
    place_scale(figure, ScalarMappable(of_words, WORD_HEAT), "attention of a word, %", 1.9, end + 0.05, 1.2)
    return figure


def _words_table(
    axes: Axes, texts: Sequence[str], shares: NDArray[np.float32], scale: Normalize, left: float, top: float
) -> None:
    """Draws words below each other, and beside each one its column of `shares` ``(R, words)`` as colors."""
    if not texts:
        return
    first = left + max(map(text_width, texts)) + GAP
    width = min((left + HALF - first) / len(shares), WIDEST)
    every = math.ceil(text_width("10 ") / width)
    for column in range(0, len(shares), every if len(shares) > 10 else 1):
        label = str(column) if column else "S"
        axes.text(first + (column + 0.5) * width, top, label, color=FAINT, ha="center", va="top")
    for row, text in enumerate(texts, 1):
        axes.text(left, top + (row + 0.5) * LINE, text, color=INK, va="center", parse_math=False)
    size = len(shares) * width, len(texts) * LINE
    place_image(axes, shares.T, first, top + LINE, *size, cmap=WORD_HEAT, norm=scale)


def heat_map(photo: Image.Image, attention: Tensor, grid: tuple[int, int], scale: Normalize) -> Image.Image:
    """Returns the photo in grey below the attention ``(N,)`` of its patches, of which `scale` normalizes percents."""
    values = np.asarray(scale(100 * attention.float().cpu().view(grid).numpy()), dtype=np.float32)
    smooth = Image.fromarray(values).resize(photo.size, Image.Resampling.BICUBIC)
    colors = colormaps[HEAT](np.clip(np.asarray(smooth), 0, 1))[:, :, :3]
    colored = Image.fromarray((255 * colors).astype(np.uint8))
    return Image.blend(ImageOps.grayscale(photo).convert("RGB"), colored, 0.6)


def word_shares(words: Sequence[tuple[str, Sequence[int]]], attention: Tensor) -> NDArray[np.float32]:
    """Returns how much of each row of the attention ``(R, L)`` each word gets. Shape: ``(R, words)``."""
    sums = [attention[:, list(positions)].sum(dim=1).float().cpu().numpy() for _, positions in words]
    return np.stack(sums, axis=1) if sums else np.zeros((len(attention), 0), dtype=np.float32)


def _scale(values: Sequence[NDArray[np.float32]]) -> Normalize:
    """Returns a scale from the least to the most of all `values`; these differ."""
    every = np.concatenate([own.ravel() for own in values])
    least, most = (float(every.min()), float(every.max())) if every.size else (0.0, 0.0)
    return Normalize(least, max(most, least + 1e-6))
