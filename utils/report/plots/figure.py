"""Figures one column of a paper wide: the same one on the screen, and as PDF or SVG."""

import math
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageFont

WIDTH: Final = 3.3  # of a figure, in inches
DPI: Final = 300  # of its picture on the screen
TEXT_SIZE: Final = 7  # in points
LINE: Final = 0.12  # height of a line of text, in inches
MARGIN: Final = 0.04  # in inches
HEAT: Final = "inferno"
RIGHT, WRONG = "#1a8a3a", "#cc2936"
INK, FAINT, PAPER, BACKDROP = "#1c1c1c", "#6b6b6b", "#ffffff", "#e9e9e9"
STYLE: Final[Any] = {  # matplotlib's options
    "font.family": "DejaVu Sans",  # has the Vietnamese letters and comes with matplotlib
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.labelsize": TEXT_SIZE,
    "xtick.labelsize": TEXT_SIZE,
    "ytick.labelsize": TEXT_SIZE,
    "legend.fontsize": TEXT_SIZE,
    "figure.titlesize": TEXT_SIZE,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.0,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
VECTOR: Final = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # format -> metadata, without the time

styled = mpl.rc_context(STYLE)  # a decorator for functions that draw a figure


def new_figure(height: float, layout: Any = "constrained") -> Figure:
    """Returns an empty figure `WIDTH` wide and `height` high, in inches."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)


def sheet(height: float) -> tuple[Figure, Axes]:
    """Returns a figure, and axes that cover it: x and y are inches from its upper left corner."""
    figure = new_figure(height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def place_photo(axes: Axes, photo: Image.Image, left: float, top: float, width: float, height: float) -> None:
    """Draws a whole photo in the middle of a box of a `sheet`, with as many pixels as `DPI` can show there."""
    small = photo.copy()
    small.thumbnail((math.ceil(DPI * width), math.ceil(DPI * height)), Image.Resampling.LANCZOS)
    scale = min(width / small.width, height / small.height)
    size = scale * small.width, scale * small.height
    axes.add_patch(Rectangle((left, top), width, height, facecolor=BACKDROP, edgecolor="none", zorder=-1))
    place_image(axes, small, left + (width - size[0]) / 2, top + (height - size[1]) / 2, *size)


def place_image(axes: Axes, values: Any, left: float, top: float, width: float, height: float, **options: Any) -> None:
    """Draws an image, or values as colors, over a box of a `sheet`."""
    extent = (left, left + width, top + height, top)
    axes.imshow(values, extent=extent, aspect="auto", interpolation="none", **options)


def place_scale(figure: Figure, scale: ScalarMappable, label: str, left: float, top: float, width: float) -> None:
    """Draws what the colors of a `sheet` mean: a bar of `width` inches with its least and its most, and a label."""
    height = figure.get_figheight()
    bar = figure.add_axes((left / WIDTH, 1 - (top + 0.08) / height, width / WIDTH, 0.08 / height))
    bar.tick_params(length=2, pad=1)
    drawn = figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=scale.get_clim(), format="%.1f")
    drawn.set_label(label, labelpad=0)


@styled
def as_image(figure: Figure) -> Image.Image:
    """Returns `figure` in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


@styled
def save_vector(figure: Figure, path: Path) -> None:
    """Writes `figure` as it is to `path`, whose suffix is one of `VECTOR`."""
    figure.savefig(path, metadata=VECTOR[path.suffix[1:]])


def wrapped(text: str, width: float) -> list[str]:
    """Returns `text` in lines of at most `width` inches, at `TEXT_SIZE`; a longer word has a line of its own."""
    lines = [""]
    for word in composed(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]


def text_width(text: str) -> float:
    """Returns the width of `text` at `TEXT_SIZE` in inches."""
    return font(10 * TEXT_SIZE).getlength(text) / 720


def composed(text: str) -> str:
    """Returns `text` with letter and accents as one character (NFC), because fonts draw it better."""
    return unicodedata.normalize("NFC", text)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns the font of `STYLE`, `size` pixels high."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
