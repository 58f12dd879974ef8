"""What a caption says: which of the visible attributes an annotator mentions, and how often."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import Appearance
from data.synthetic.shot import Shot

Said = dict[str, str]  # field of an appearance -> its value; a caption says nothing else about the person

# Part, the details said with it, and the shares of captions (of those in which they are visible) that say them.
PARTS: Final[tuple[tuple[tuple[str, ...], dict[tuple[str, ...], float], float], ...]] = (
    (("gender",), {}, 0.88),
    (("hair", "hair_color"), {}, 0.75),
    (("headwear",), {("headwear_color",): 0.96}, 0.93),
    (("upper", "upper_color"), {("pattern", "pattern_color"): 0.93, ("inner_color",): 0.88}, 1.0),
    (("lower", "lower_color"), {}, 0.98),
    (("shoes", "shoes_color"), {}, 0.8),
    (("bag",), {("bag_color",): 0.96, ("bag_side",): 0.6}, 0.94),
    (("scarf_color",), {}, 0.92),
    (("eyewear",), {}, 0.85),
    (("mask_color",), {}, 0.9),
    (("held",), {("held_color",): 0.96, ("held_side",): 0.6}, 0.92),
)


@dataclass(frozen=True)
class Scene:
    """What a caption says about the picture besides the person's attributes; None for what it leaves out."""

    view: str | None
    walking: bool | None


def choose_content(person: Appearance, visible: Collection[str], rng: random.Random) -> Said:
    """Returns the attributes that one annotator mentions, all of them among the `visible` fields."""
    said: list[str] = []
    for part, details, share in PARTS:
        if part[0] in visible and rng.random() < share:
            said += part
            for detail, detail_share in details.items():
                if rng.random() < detail_share:
                    said += detail
    return {field: getattr(person, field) for field in said if field in visible}


def choose_scene(shot: Shot, rng: random.Random) -> Scene:
    """Returns what one annotator says about view and movement."""
    return Scene(shot.view if rng.random() < 0.15 else None, shot.walking if rng.random() < 0.3 else None)
