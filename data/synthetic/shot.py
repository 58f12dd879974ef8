"""How a camera photographs a person, and what of them such a picture shows."""

import random
from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import Appearance
from data.synthetic.population import Camera, Light

VIEWS: Final = ("front", "back", "left", "right")
# What hides the lower body, and the height up to which it does, in body heights: the frame, or a thing in front.
CUTS: Final = {
    None: 0.0, "pole": 0.0, "shins": 0.2, "bush": 0.2, "crate": 0.2, "board": 0.2, "waist": 0.42, "counter": 0.42,
}  # fmt: skip
FRAMED: Final = ("shins", "waist")
# Field, and the height that must be in sight for it to be read.
LOWEST: Final = {
    "lower": 0.4, "lower_color": 0.4, "shoes": 0.1, "shoes_color": 0.1,
    "suitcase": 0.1, "handbag": 0.4, "shoulder bag": 0.45,
}  # fmt: skip
BAG: Final = {"bag", "bag_color", "bag_side"}
HELD: Final = {"held", "held_color", "held_side"}


@dataclass(frozen=True)
class Shot:
    """One camera's look at a person.

    Attributes:
        view: which side of the person faces the camera: front, back, or the person's own left or right.
        walking: whether the person walks or stands.
        stride: phase of the step, from -1 to 1 (0 for feet together).
        turn: how far a front or back view is turned away from frontal, from -1 to 1.
        height: body height as a share of the frame's height.
        center: where the body stands, as a share of the frame's width.
        ground: where the feet stand, as a share of the frame's height; above 1 the frame cuts them off.
        cut: what hides the lower body, a key of `CUTS`.
        light: what multiplies red, green and blue.
        scene: what lies behind.
    """

    view: str
    walking: bool
    stride: float
    turn: float
    height: float
    center: float
    ground: float
    cut: str | None
    light: Light
    scene: str

    @property
    def sideways(self) -> bool:
        """Whether one side of the person faces the camera."""
        return self.view in ("left", "right")


def sample_shot(person: Appearance, camera: Camera, rng: random.Random) -> Shot:
    """Returns a random shot of `person` by `camera`."""
    walking = rng.random() < 0.75
    cut = rng.choices(list(camera.cuts), list(camera.cuts.values()))[0]
    top = 1.1 if person.held == "umbrella" else 1.05
    height, ground = rng.uniform(0.84, 0.95) / top, rng.uniform(0.96, 0.985)
    if cut in FRAMED:
        height = min(1.2, rng.uniform(0.9, 0.96) / (top - CUTS[cut]))
        ground = 1 + CUTS[cut] * height
    dim = rng.uniform(0.9, 1.1)
    red, green, blue = camera.light
    warm = rng.uniform(0.95, 1.05)
    return Shot(
        view=rng.choices(list(camera.views), list(camera.views.values()))[0],
        walking=walking,
        stride=rng.choice((-1, 1)) * (rng.uniform(0.45, 1) if walking else rng.uniform(0, 0.15)),
        turn=rng.uniform(-1, 1),
        height=height,
        center=0.5 + rng.uniform(-0.06, 0.06),
        ground=ground,
        cut=cut,
        light=(red * dim * warm, green * dim, blue * dim / warm),
        scene=camera.scene,
    )


def visible_fields(person: Appearance, shot: Shot) -> frozenset[str]:
    """Returns the fields of `person` that are not None and can be read off the picture."""
    hidden = {field for field, height in LOWEST.items() if CUTS[shot.cut] > height}
    if person.bag in hidden:
        hidden |= BAG
    if person.headwear and person.hair in ("short", "shaved"):
        hidden |= {"hair", "hair_color"}
    if shot.view != "front":
        hidden |= {"inner_color"}
        if person.pattern == "print":
            hidden |= {"pattern", "pattern_color"}
    if shot.view == "back":
        hidden |= {"eyewear", "mask_color"}
        if person.held == "phone":
            hidden |= HELD
    if shot.sideways and person.bag_side not in (None, shot.view):
        hidden |= {"bag_side"} if person.bag == "suitcase" else BAG
    if shot.sideways and person.held_side not in (None, shot.view):
        hidden |= {"held_side"} if person.held == "umbrella" else HELD
    return frozenset(field for field, value in vars(person).items() if value is not None) - hidden
