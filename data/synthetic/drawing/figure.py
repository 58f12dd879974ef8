"""A person in a pose, on a canvas, ready to be drawn part by part."""

from dataclasses import dataclass

from data.synthetic.attributes import HAIR_COLORS, RGB, Appearance
from data.synthetic.drawing.canvas import Canvas, Fabric, shade
from data.synthetic.drawing.pose import Pose


@dataclass(frozen=True)
class Figure:
    """What every part needs to know to be drawn.

    Attributes:
        tints: this person's exact version of each named colour of cloth.
    """

    canvas: Canvas
    person: Appearance
    pose: Pose
    skin: Fabric
    tints: dict[str, RGB]

    @property
    def hair(self) -> Fabric:
        """The hair."""
        return Fabric(HAIR_COLORS[self.person.hair_color or "black"])

    @property
    def upper(self) -> Fabric:
        """The cloth of the upper garment; a chest print is no part of it."""
        person = self.person
        if person.pattern_color is None or person.pattern == "print":
            return self.cloth(person.upper_color)
        return Fabric(self.tints[person.upper_color], person.pattern, self.tints[person.pattern_color])

    def cloth(self, color: str | None) -> Fabric:
        """Returns plain cloth of the named colour (grey for None, which nothing that is drawn has)."""
        return Fabric(self.tints[color or "grey"])


def lit(cloth: Fabric, factor: float = 1.18) -> Fabric:
    """Returns plain cloth, brighter than `cloth` by `factor`."""
    return Fabric(shade(cloth.color, factor))


def dark(cloth: Fabric, factor: float = 0.78) -> Fabric:
    """Returns plain cloth, darker than `cloth` by `factor`."""
    return Fabric(shade(cloth.color, factor))
