"""A sheet on which a person is drawn in body units: x to the right, y up from the ground, height 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from data.synthetic.attributes import RGB

Point = tuple[float, float]
BREADTH: Final = 1.14  # how much broader than drawn, so that what is worn shows at small sizes
EDGE: Final = 0.006  # width of the dark outline of a part, in body heights
WEAVES: Final = {  # period, and width of a band or radius of a dot, in body heights
    "striped": (0.062, 0.025),
    "pinstriped": (0.048, 0.017),
    "checked": (0.068, 0.018),
    "dotted": (0.06, 0.016),
}


def shade(color: RGB, factor: float) -> RGB:
    """Returns `color` with its brightness multiplied by `factor`."""
    red, green, blue = (max(0, min(255, round(channel * factor))) for channel in color)
    return red, green, blue


def between(start: Point, end: Point, share: float) -> Point:
    """Returns the point that lies `share` of the way from `start` to `end`."""
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """Returns the colour that lies `share` of the way from `first` to `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Fabric:
    """What a part is made of: a colour, and a pattern in a second colour on it."""

    color: RGB
    pattern: str = "plain"
    second: RGB | None = None


class Canvas:
    """A transparent sheet of `size` pixels.

    Attributes:
        image: RGBA, what is drawn.
        relief: L, how near each drawn part is to the camera (0 where nothing is drawn).
    """

    def __init__(self, size: tuple[int, int], unit: float, ground: Point, flip: bool = False) -> None:
        """Makes an empty sheet.

        Args:
            size: width and height, in pixels.
            unit: pixels per body height.
            ground: pixel at which the body's origin lies.
            flip: mirrors what is drawn.
        """
        self.image = Image.new("RGBA", size, (0, 0, 0, 0))
        self.relief = Image.new("L", size, 0)
        self._draw = ImageDraw.Draw(self.image)
        self._relief_draw = ImageDraw.Draw(self.relief)
        self._unit = unit
        self._ground = ground
        self._sign = -1 if flip else 1
        self._edge = max(1, round(EDGE * unit))
        self._textures: dict[Fabric, Image.Image] = {}

    def shape(
        self, outline: Sequence[Point], fabric: Fabric, depth: int, *, shift: float = 0.0, smooth: bool = True
    ) -> None:
        """Fills the closed `outline`, moved by `shift` and rounded unless `smooth` is false, and edges it darker."""
        moved = [(x + shift, y) for x, y in outline]
        points = self._pixels(_rounded(moved) if smooth else moved)
        self._draw.line([*points, points[0]], fill=shade(fabric.color, 0.7), width=self._edge * 2)
        self._fill(points, fabric, depth)

    def limb(
        self,
        joints: Sequence[Point],
        radii: Sequence[float],
        fabric: Fabric,
        depth: int,
        *,
        cut: bool = False,
    ) -> None:
        """Fills tapered segments through `joints`, ending round or, with `cut`, flat, and edges them darker."""
        segments = list(zip(joints, joints[1:], radii, radii[1:], strict=False))
        flat = [cut and end is joints[-1] for _, end, _, _ in segments]
        edge = Fabric(shade(fabric.color, 0.7))
        for (start, end, first, last), is_flat in zip(segments, flat, strict=True):
            self._fill(self._pixels(_segment(start, end, first + EDGE, last + EDGE, is_flat)), edge, depth)
        for (start, end, first, last), is_flat in zip(segments, flat, strict=True):
            self._fill(self._pixels(_segment(start, end, first, last, is_flat)), fabric, depth)

    def ellipse(self, center: Point, radii: Point, fabric: Fabric, depth: int) -> None:
        """Fills an ellipse and edges it darker."""
        circle = [_around((0, 0), 1, math.tau * step / 20) for step in range(20)]
        outline = [(center[0] + radii[0] * x, center[1] + radii[1] * y) for x, y in circle]
        self.shape(outline, fabric, depth, smooth=False)

    def line(self, points: Sequence[Point], color: RGB, width: float) -> None:
        """Draws a line of `width` body heights."""
        pixels = max(1, round(width * self._unit))
        self._draw.line(self._pixels(points), fill=color, width=pixels, joint="curve")

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        x0, y0 = self._ground
        across = self._sign * self._unit * BREADTH
        return [(x0 + x * across, y0 - y * self._unit) for x, y in points]

    def _fill(self, points: list[Point], fabric: Fabric, depth: int) -> None:
        if fabric.second is None:
            self._draw.polygon(points, fill=fabric.color)
        else:
            mask = Image.new("L", self.image.size, 0)
            ImageDraw.Draw(mask).polygon(points, fill=255)
            self.image.paste(self._texture(fabric), mask=mask)
        self._relief_draw.polygon(points, fill=depth)

    def _texture(self, fabric: Fabric) -> Image.Image:
        if fabric not in self._textures:
            self._textures[fabric] = _weave(fabric, self.image.size, self._unit, self._ground)
        return self._textures[fabric]


def _weave(fabric: Fabric, size: tuple[int, int], unit: float, origin: Point) -> Image.Image:
    """Returns an RGBA sheet of the pattern of `fabric`, anchored at `origin`."""
    width, height = size
    sheet = Image.new("RGBA", size, fabric.color)
    draw = ImageDraw.Draw(sheet)
    second = fabric.second or fabric.color
    period, band = (share * unit for share in WEAVES[fabric.pattern])
    columns = [origin[0] % period + period * step for step in range(-1, math.ceil(width / period) + 1)]
    rows = [origin[1] % period + period * step for step in range(-1, math.ceil(height / period) + 1)]
    if fabric.pattern in ("striped", "checked"):
        for y in rows:
            draw.rectangle((0, y, width, y + band), fill=second)
    if fabric.pattern in ("pinstriped", "checked"):
        for x in columns:
            draw.rectangle((x, 0, x + band, height), fill=second)
    if fabric.pattern == "dotted":
        for row, y in enumerate(rows):
            for x in columns:
                center = x + period / 2 * (row % 2)
                draw.ellipse((center - band, y - band, center + band, y + band), fill=second)
    return sheet


def _rounded(outline: Sequence[Point]) -> list[Point]:
    """Returns the closed `outline` with its corners cut twice (Chaikin)."""
    points = list(outline)
    for _ in range(2):
        cut: list[Point] = []
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            cut += [
                (0.75 * x0 + 0.25 * x1, 0.75 * y0 + 0.25 * y1),
                (0.25 * x0 + 0.75 * x1, 0.25 * y0 + 0.75 * y1),
            ]
        points = cut
    return points


def _segment(start: Point, end: Point, first: float, last: float, flat: bool) -> list[Point]:
    """Returns the outline of a segment with half widths `first` and `last`, the far end flat or round."""
    along = math.atan2(end[1] - start[1], end[0] - start[0])
    turns = [math.pi * step / 6 for step in range(7)]
    tip = [turns[0], turns[-1]] if flat else turns
    far = [_around(end, last, along - math.pi / 2 + turn) for turn in tip]
    return far + [_around(start, first, along + math.pi / 2 + turn) for turn in turns]


def _around(center: Point, radius: float, angle: float) -> Point:
    return center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle)
