"""How a person is photographed, and what of them such a picture shows."""

import random
from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import Appearance

VIEWS: Final = {"front": 9, "back": 5, "left": 3, "right": 3}
SHOES: Final = {"shoes", "shoes_color"}
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
        centre: where the body stands, as a share of the frame's width.
        ground: where the feet stand, as a share of the frame's height; above 1 the frame cuts them off.
        occluder: what stands before the shins (bush, crate, board), or before nothing that counts (pole), or None.
    """

    view: str
    walking: bool
    stride: float
    turn: float
    height: float
    center: float
    ground: float
    occluder: str | None

    @property
    def sideways(self) -> bool:
        """Whether one side of the person faces the camera."""
        return self.view in ("left", "right")


def sample_shot(person: Appearance, view: str, rng: random.Random) -> Shot:
    """Returns a random shot of `person` from `view`."""
    walking = rng.random() < 0.75
    occluder = rng.choices((None, "pole", "bush", "crate", "board"), (82, 6, 4, 4, 4))[0]
    top = 1.1 if person.held == "umbrella" else 1.05
    height = rng.uniform(0.91, 0.95) / top
    ground = rng.uniform(0.96, 0.985)
    if occluder is None and rng.random() < 0.05:
        ground = rng.uniform(1.03, 1.05)
    return Shot(
        view=view,
        walking=walking,
        stride=rng.choice((-1, 1)) * (rng.uniform(0.45, 1) if walking else rng.uniform(0, 0.15)),
        turn=rng.uniform(-1, 1),
        height=height,
        center=0.5 + rng.uniform(-0.04, 0.04),
        ground=ground,
        occluder=occluder,
    )


def sample_views(count: int, rng: random.Random) -> list[str]:
    """Returns `count` views; people are seen from the front most often."""
    return rng.choices(list(VIEWS), list(VIEWS.values()), k=count)


def visible_fields(person: Appearance, shot: Shot) -> frozenset[str]:
    """Returns the fields of `person` that are not None and can be read off the picture."""
    hidden: set[str] = set()
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
    if shot.ground > 1 or shot.occluder not in (None, "pole"):
        hidden |= SHOES
        if person.bag == "suitcase":
            hidden |= BAG
    return frozenset(field for field, value in vars(person).items() if value is not None) - hidden
