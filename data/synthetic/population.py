"""The two populations: whom the dataset shows, and whom backbones are pre-trained on; each with its own cameras."""

from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import Weights

Light = tuple[float, float, float]  # what the light multiplies red, green and blue by


@dataclass(frozen=True)
class Camera:
    """One camera of a population.

    Attributes:
        views: how often people show it their front, back, left or right.
        light: of its place.
        scene: street, park or hall.
        cuts: what hides the lower body and how often: None, a thing that stands before it, or the frame (`shot.CUTS`).
    """

    views: Weights
    light: Light
    scene: str
    cuts: Weights


@dataclass(frozen=True)
class Population:
    """People, their cameras, and who describes them.

    Attributes:
        habits: how much oftener than usual these people wear a colour or a thing.
        styles: of the captions: terse, flowing.
    """

    habits: Weights
    cameras: tuple[Camera, ...]
    styles: tuple[str, ...]


# fmt: off
PEDESTRIANS: Final = Population(
    habits={
        "black": 1.6, "white": 1.3, "grey": 1.3, "blue": 1.3, "orange": 0.7, "purple": 0.6, "pink": 0.8,
        "conical hat": 0.5, "suitcase": 0.6, "wide hat": 0.5,
    },
    cameras=(
        Camera({"front": 1}, (1.0, 1.0, 1.0), "street", {None: 10, "pole": 1, "board": 1}),
        Camera({"back": 1}, (0.97, 1.0, 0.97), "park", {None: 10, "bush": 1}),
        Camera({"left": 2, "front": 1}, (1.04, 0.98, 0.9), "hall", {None: 8, "waist": 1}),
        Camera({"right": 2, "back": 1}, (0.82, 0.84, 0.88), "street", {None: 10, "crate": 1}),
        Camera({"front": 3, "right": 1}, (0.94, 0.98, 1.05), "hall", {None: 10, "waist": 1, "counter": 1}),
        Camera({"back": 2, "front": 1}, (0.92, 0.88, 0.8), "park", {None: 10, "counter": 1}),
    ),
    styles=("terse", "flowing"),
)
STRANGERS: Final = Population(
    habits={
        "black": 0.6, "white": 0.8, "grey": 0.6, "jeans": 0.5, "jacket": 0.6, "coat": 0.6, "hoodie": 0.5,
        "backpack": 0.6, "tank top": 2.0, "dress": 1.5, "shorts": 1.5, "sandals": 2.0, "wide hat": 3.0,
    },
    cameras=(
        Camera({"front": 1}, (1.06, 1.06, 1.0), "park", {None: 1}),
        Camera({"front": 1, "back": 1, "left": 1, "right": 1}, (0.9, 0.9, 0.96), "hall", {None: 1}),
        Camera({"front": 2, "back": 1}, (0.8, 0.78, 0.72), "street", {None: 3, "waist": 1}),
    ),
    styles=("flowing",),
)
# fmt: on
