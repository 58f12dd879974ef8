"""Draws what is not the person: streets, walls and greens behind them, and what stands in front of their legs."""

import random
from typing import Final

from PIL import Image, ImageDraw, ImageFilter

from data.synthetic.attributes import COLORS, RGB
from data.synthetic.drawing.canvas import mix, shade

WALLS: Final[tuple[RGB, ...]] = (
    (168, 158, 142), (186, 180, 168), (142, 128, 118), (150, 158, 162), (176, 150, 128), (120, 124, 128),
    (200, 192, 172),
)  # fmt: skip
HAZE: Final = (158, 158, 158)
FLOORS: Final[tuple[RGB, ...]] = (
    (146, 144, 140),
    (120, 118, 116),
    (168, 160, 148),
    (104, 106, 110),
    (182, 180, 176),
)
LEAVES: Final[tuple[RGB, ...]] = ((74, 104, 62), (92, 118, 70), (60, 88, 58), (110, 126, 84))


def draw_backdrop(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Returns an RGB scene of `size` pixels, out of focus."""
    width, height = size
    horizon = height * rng.uniform(0.42, 0.66)
    image = Image.new("RGB", size, rng.choice(WALLS))
    draw = ImageDraw.Draw(image)
    rng.choice((_street, _park, _shop))(draw, width, horizon, rng)
    floor = rng.choice(FLOORS)
    draw.rectangle((0, horizon, width, height), fill=floor)
    _tile_floor(draw, width, height, horizon, floor, rng)
    for _ in range(rng.choice((0, 1, 1, 2))):
        rng.choice((_passer_by, _pole, _bin, _motorbike))(draw, width, horizon, height, rng)
    hazy = Image.blend(image, Image.new("RGB", size, HAZE), rng.uniform(0.3, 0.5))
    return hazy.filter(ImageFilter.GaussianBlur(height / 128 * rng.uniform(0.5, 1.3)))


def draw_occluder(image: Image.Image, kind: str | None, shins: float, rng: random.Random) -> None:
    """Draws on the RGB `image` what stands before the person, up to the row `shins` (or a pole, all the way)."""
    if kind is None:
        return
    width, height = image.size
    draw = ImageDraw.Draw(image)
    if kind == "pole":
        x = width * rng.choice((rng.uniform(0.08, 0.26), rng.uniform(0.74, 0.92)))
        tone = shade((126, 126, 128), rng.uniform(0.6, 1.2))
        draw.rectangle((x, 0, x + width * 0.055, height), fill=tone)
        draw.line((x, 0, x, height), fill=shade(tone, 1.3), width=max(1, height // 128))
    elif kind == "bush":
        for _ in range(60):
            x, y = rng.uniform(-0.05, 1.05) * width, rng.uniform(shins + 0.04 * height, height)
            radius = height * rng.uniform(0.02, 0.045)
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=shade(rng.choice(LEAVES), rng.uniform(0.7, 1.25)),
            )
        draw.rectangle((0, shins + 0.07 * height, width, height), fill=(70, 96, 60))
        for _ in range(50):
            x, y = rng.uniform(0, 1) * width, rng.uniform(shins + 0.06 * height, height)
            radius = height * rng.uniform(0.01, 0.03)
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=shade(rng.choice(LEAVES), rng.uniform(0.7, 1.25)),
            )
    else:
        tone = (150, 118, 78) if kind == "crate" else shade(rng.choice(WALLS), rng.uniform(0.75, 1.15))
        draw.rectangle((0, shins, width, height), fill=tone)
        draw.rectangle((0, shins, width, shins + 0.02 * height), fill=shade(tone, 1.2))
        step = height * 0.05 if kind == "crate" else height * 0.3
        row = shins + step
        while row < height:
            draw.line((0, row, width, row), fill=shade(tone, 0.7), width=max(1, height // 100))
            row += step


def _street(draw: ImageDraw.ImageDraw, width: float, horizon: float, rng: random.Random) -> None:
    wall = rng.choice(WALLS)
    draw.rectangle((0, 0, width, horizon), fill=wall)
    edge = width * rng.uniform(0.2, 0.8)
    draw.rectangle((edge, 0, width, horizon), fill=shade(rng.choice(WALLS), rng.uniform(0.75, 1.1)))
    step = width * rng.uniform(0.24, 0.4)
    glass = shade((96, 112, 128), rng.uniform(0.7, 1.3))
    x = rng.uniform(-step, 0)
    while x < width:
        for y in (0.08, 0.52):
            draw.rectangle((x, horizon * y, x + step * 0.55, horizon * (y + 0.3)), fill=glass, outline=shade(wall, 0.7))
        x += step


def _park(draw: ImageDraw.ImageDraw, width: float, horizon: float, rng: random.Random) -> None:
    draw.rectangle((0, 0, width, horizon), fill=mix((188, 204, 216), (236, 236, 230), rng.random()))
    for _ in range(26):
        x, y = rng.uniform(0, width), horizon * rng.uniform(0.15, 1)
        radius = width * rng.uniform(0.08, 0.22)
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius),
            fill=shade(rng.choice(LEAVES), rng.uniform(0.8, 1.3)),
        )
    for _ in range(rng.randint(0, 2)):
        x = rng.uniform(0, width)
        draw.rectangle((x, 0, x + width * 0.07, horizon), fill=(92, 76, 62))


def _shop(draw: ImageDraw.ImageDraw, width: float, horizon: float, rng: random.Random) -> None:
    draw.rectangle((0, 0, width, horizon), fill=rng.choice(WALLS))
    sign = mix(COLORS[rng.choice(list(COLORS))], (128, 128, 128), 0.35)
    draw.rectangle((0, 0, width, horizon * 0.16), fill=sign)
    tone = shade((150, 160, 164), rng.uniform(0.5, 1.2))
    draw.rectangle((width * 0.05, horizon * 0.24, width * 0.95, horizon * 0.96), fill=tone)
    for _ in range(rng.randint(5, 12)):
        x, y = rng.uniform(0, width), horizon * rng.uniform(0.3, 0.9)
        goods = mix(COLORS[rng.choice(list(COLORS))], tone, 0.5)
        draw.rectangle((x, y, x + width * rng.uniform(0.05, 0.14), y + horizon * rng.uniform(0.04, 0.14)), fill=goods)


def _tile_floor(
    draw: ImageDraw.ImageDraw, width: float, height: float, horizon: float, floor: RGB, rng: random.Random
) -> None:
    line = shade(floor, rng.uniform(0.8, 0.92))
    row, step = horizon, height * 0.02
    while row < height:
        draw.line((0, row, width, row), fill=line)
        row += step
        step *= 1.5
    vanish = rng.uniform(0.2, 0.8) * width
    for column in range(-4, 9):
        draw.line((vanish, horizon, vanish + (column - 2) * width * 0.45, height), fill=line)
    draw.rectangle((0, horizon - 1, width, horizon + height * 0.012), fill=shade(floor, 0.72))


def _passer_by(draw: ImageDraw.ImageDraw, width: float, horizon: float, height: float, rng: random.Random) -> None:
    x = width * rng.choice((rng.uniform(-0.02, 0.12), rng.uniform(0.88, 1.02)))
    tall = height * rng.uniform(0.36, 0.5)
    feet = horizon + (height - horizon) * rng.uniform(0.2, 0.45)
    top, legs = (mix(COLORS[rng.choice(list(COLORS))], (120, 120, 120), 0.4) for _ in range(2))
    draw.rectangle((x - tall * 0.07, feet - tall * 0.48, x + tall * 0.07, feet), fill=legs)
    draw.rounded_rectangle(
        (x - tall * 0.11, feet - tall * 0.84, x + tall * 0.11, feet - tall * 0.44), tall * 0.05, fill=top
    )
    draw.ellipse((x - tall * 0.06, feet - tall, x + tall * 0.06, feet - tall * 0.84), fill=(120, 92, 76))


def _pole(draw: ImageDraw.ImageDraw, width: float, horizon: float, height: float, rng: random.Random) -> None:
    x = rng.uniform(0, width)
    draw.rectangle(
        (x, 0, x + width * 0.04, horizon + height * 0.06), fill=shade((120, 122, 124), rng.uniform(0.6, 1.2))
    )


def _bin(draw: ImageDraw.ImageDraw, width: float, horizon: float, height: float, rng: random.Random) -> None:
    x, size = width * rng.choice((0.06, 0.86)), width * 0.16
    tone = mix(COLORS[rng.choice(("green", "grey", "blue", "orange"))], (110, 110, 110), 0.4)
    draw.rectangle((x, horizon - size * 0.4, x + size, horizon + size), fill=tone, outline=shade(tone, 0.7))


def _motorbike(draw: ImageDraw.ImageDraw, width: float, horizon: float, height: float, rng: random.Random) -> None:
    x, size = width * rng.choice((rng.uniform(-0.2, 0.0), rng.uniform(0.72, 0.9))), width * 0.42
    y = horizon + height * 0.04
    body = mix(COLORS[rng.choice(("red", "blue", "black", "white"))], (110, 110, 110), 0.3)
    for wheel in (0.12, 0.88):
        center, radius = x + size * wheel, size * 0.17
        draw.ellipse((center - radius, y, center + radius, y + 2 * radius), outline=(40, 40, 44), width=2)
    draw.polygon(
        [
            (x, y),
            (x + size * 0.3, y - size * 0.16),
            (x + size * 0.7, y - size * 0.12),
            (x + size, y + size * 0.1),
            (x + size * 0.5, y + size * 0.26),
        ],
        fill=body,
    )
