"""Draws what is not the person: streets, halls and parks behind them, and what stands in front of their legs."""

import random
from typing import Final

from PIL import Image, ImageDraw, ImageFilter

from data.synthetic.attributes import COLORS, RGB
from data.synthetic.drawing.canvas import mix, shade

WALLS: Final[tuple[RGB, ...]] = ((168, 158, 142), (186, 180, 168), (142, 128, 118), (150, 158, 162), (120, 124, 128))
FLOORS: Final[tuple[RGB, ...]] = ((146, 144, 140), (120, 118, 116), (168, 160, 148), (182, 180, 176))
LEAVES: Final[tuple[RGB, ...]] = ((74, 104, 62), (92, 118, 70), (60, 88, 58), (110, 126, 84))
HAZE: Final = (158, 158, 158)


def draw_backdrop(size: tuple[int, int], scene: str, rng: random.Random) -> Image.Image:
    """Returns an RGB `scene` (street, park or hall) of `size` pixels, out of focus."""
    width, height = size
    horizon = height * rng.uniform(0.42, 0.66)
    image = Image.new("RGB", size, rng.choice(WALLS))
    draw = ImageDraw.Draw(image)
    SCENES[scene](draw, width, horizon, rng)
    floor = rng.choice(FLOORS)
    draw.rectangle((0, horizon, width, height), fill=floor)
    line, vanish = shade(floor, rng.uniform(0.8, 0.92)), rng.uniform(0.2, 0.8) * width
    for row in range(6):
        y = horizon + height * 0.02 * 1.6**row
        draw.line((0, y, width, y), fill=line)
    for column in range(-6, 7):
        draw.line((vanish, horizon, vanish + column * width * 0.45, height), fill=line)
    for _ in range(rng.choice((0, 1, 1))):
        _passer_by(draw, width, horizon, height, rng)
    hazy = Image.blend(image, Image.new("RGB", size, HAZE), rng.uniform(0.3, 0.5))
    return hazy.filter(ImageFilter.GaussianBlur(height / 128 * rng.uniform(0.5, 1.3)))


def draw_occluder(image: Image.Image, kind: str | None, top: float, rng: random.Random) -> None:
    """Draws on the RGB `image` what stands before the person, up to the row `top` (or a pole, all the way)."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    if kind == "pole":
        x = width * rng.choice((rng.uniform(0.08, 0.26), rng.uniform(0.74, 0.92)))
        draw.rectangle((x, 0, x + width * 0.055, height), fill=shade((126, 126, 128), rng.uniform(0.6, 1.2)))
    elif kind == "bush":
        draw.rectangle((0, top + 0.05 * height, width, height), fill=(70, 96, 60))
        _leaves(draw, (0, top + 0.03 * height, width, height), 0.03 * height, rng)
    elif kind is not None:
        tone = (150, 118, 78) if kind == "crate" else shade(rng.choice(WALLS), rng.uniform(0.75, 1.15))
        draw.rectangle((0, top, width, height), fill=tone)
        draw.rectangle((0, top, width, top + 0.02 * height), fill=shade(tone, 1.2))
        for row in range(1, 12 if kind == "crate" else 2):
            y = top + row * height * 0.06
            draw.line((0, y, width, y), fill=shade(tone, 0.7), width=max(1, height // 100))


def _street(draw: ImageDraw.ImageDraw, width: float, horizon: float, rng: random.Random) -> None:
    wall = rng.choice(WALLS)
    draw.rectangle((width * rng.uniform(0.2, 0.8), 0, width, horizon), fill=shade(wall, rng.uniform(0.75, 1.1)))
    step = width * rng.uniform(0.24, 0.4)
    glass = shade((96, 112, 128), rng.uniform(0.7, 1.3))
    for column in range(-1, 5):
        x = column * step + rng.uniform(0, step * 0.3)
        for y in (0.08, 0.52):
            draw.rectangle((x, horizon * y, x + step * 0.55, horizon * (y + 0.3)), fill=glass, outline=shade(wall, 0.7))


def _park(draw: ImageDraw.ImageDraw, width: float, horizon: float, rng: random.Random) -> None:
    draw.rectangle((0, 0, width, horizon), fill=mix((188, 204, 216), (236, 236, 230), rng.random()))
    _leaves(draw, (0, horizon * 0.15, width, horizon), width * 0.15, rng)


def _hall(draw: ImageDraw.ImageDraw, width: float, horizon: float, rng: random.Random) -> None:
    sign = mix(COLORS[rng.choice(list(COLORS))], (128, 128, 128), 0.35)
    draw.rectangle((0, 0, width, horizon * 0.16), fill=sign)
    tone = shade((150, 160, 164), rng.uniform(0.5, 1.2))
    draw.rectangle((width * 0.05, horizon * 0.24, width * 0.95, horizon * 0.96), fill=tone)
    for _ in range(rng.randint(4, 8)):
        x, y = rng.uniform(0, width), horizon * rng.uniform(0.3, 0.9)
        goods = mix(COLORS[rng.choice(list(COLORS))], tone, 0.5)
        draw.rectangle((x, y, x + width * rng.uniform(0.05, 0.14), y + horizon * rng.uniform(0.04, 0.14)), fill=goods)


def _leaves(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], size: float, rng: random.Random) -> None:
    for _ in range(40):
        x, y = rng.uniform(box[0], box[2]), rng.uniform(box[1], box[3])
        radius = size * rng.uniform(0.5, 1.4)
        color = shade(rng.choice(LEAVES), rng.uniform(0.7, 1.25))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _passer_by(draw: ImageDraw.ImageDraw, width: float, horizon: float, height: float, rng: random.Random) -> None:
    x = width * rng.choice((rng.uniform(-0.02, 0.12), rng.uniform(0.88, 1.02)))
    tall = height * rng.uniform(0.36, 0.5)
    feet = horizon + (height - horizon) * rng.uniform(0.2, 0.45)
    top, legs = (mix(COLORS[rng.choice(list(COLORS))], (120, 120, 120), 0.4) for _ in range(2))
    draw.rectangle((x - tall * 0.07, feet - tall * 0.48, x + tall * 0.07, feet), fill=legs)
    draw.rectangle((x - tall * 0.11, feet - tall * 0.84, x + tall * 0.11, feet - tall * 0.44), fill=top)
    draw.ellipse((x - tall * 0.06, feet - tall, x + tall * 0.06, feet - tall * 0.84), fill=(120, 92, 76))


SCENES: Final = {"street": _street, "park": _park, "hall": _hall}
