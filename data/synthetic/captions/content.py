"""What a caption says: which of the visible attributes an annotator mentions, and what they call the colours."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import COLORS, HAIR_COLORS, RGB, Appearance, luminance
from data.synthetic.population import Light
from data.synthetic.shot import Shot, visible_fields

Said = dict[str, str]  # field of an appearance -> what the caption calls it; it says nothing else about the person

# Part, the details said with it, and the shares of full captions (of those in which they are visible) that say them.
PARTS: Final[tuple[tuple[tuple[str, ...], dict[tuple[str, ...], float], float], ...]] = (
    (("gender",), {}, 0.92),
    (("hair", "hair_color"), {}, 0.8),
    (("headwear",), {("headwear_color",): 0.96}, 0.93),
    (("upper", "upper_color"), {("pattern", "pattern_color"): 0.94, ("inner_color",): 0.9}, 1.0),
    (("lower", "lower_color"), {}, 0.98),
    (("shoes", "shoes_color"), {}, 0.85),
    (("bag",), {("bag_color",): 0.96, ("bag_side",): 0.5}, 0.94),
    (("scarf_color",), {}, 0.92),
    (("eyewear",), {}, 0.85),
    (("mask_color",), {}, 0.9),
    (("held",), {("held_color",): 0.96, ("held_side",): 0.5}, 0.92),
)
CARE: Final = {1.0: 10, 0.7: 1, 0.25: 1}  # how much of a full caption an annotator writes, and how often
ADAPTATION: Final = 0.8  # how far the eye makes up for the light: 0 not at all, 1 wholly
DOUBT: Final = 32.0  # distance of two colours, of 256 levels, over which their names are sometimes mistaken


@dataclass(frozen=True)
class Scene:
    """What a caption says about the picture besides the person's attributes; None for what it leaves out."""

    view: str | None
    walking: bool | None


def choose_content(person: Appearance, shot: Shot, rng: random.Random) -> Said:
    """Returns the attributes that one annotator mentions, all of them visible, colours as they look in that light."""
    visible = visible_fields(person, shot)
    care = rng.choices(list(CARE), list(CARE.values()))[0]
    said: list[str] = []
    for part, details, share in PARTS:
        if part[0] in visible and rng.random() < (share if part[0] in ("gender", "upper") else share * care):
            said += part
            for detail, detail_share in details.items():
                if rng.random() < detail_share * care:
                    said += detail
    vague = rng.random() > care
    content: Said = {}
    for field in said:
        if field in visible and not (vague and field in ("pattern", "pattern_color")):
            value = getattr(person, field)
            if field == "hair_color":
                value = name_color(value, HAIR_COLORS, shot.light, rng)
            elif field.endswith("color"):
                value = name_color(value, COLORS, shot.light, rng)
                value = _vague(value) if vague and field in ("upper_color", "lower_color") else value
            content[field] = value
    return content


def choose_scene(shot: Shot, rng: random.Random) -> Scene:
    """Returns what one annotator says about view and movement."""
    return Scene(shot.view if rng.random() < 0.15 else None, shot.walking if rng.random() < 0.3 else None)


def name_color(color: str, palette: Mapping[str, RGB], light: Light, rng: random.Random) -> str:
    """Returns what an annotator calls `color` of the `palette` in this light: the nearer a colour, the likelier."""
    seen = [channel * gain for channel, gain in zip(palette[color], light, strict=True)]
    chances = []
    for other in palette.values():
        expected = [channel * gain**ADAPTATION for channel, gain in zip(other, light, strict=True)]
        chances.append(math.exp(-0.5 * (math.dist(seen, expected) / DOUBT) ** 2))
    return rng.choices(list(palette), chances)[0]


def _vague(color: str) -> str:
    bright = luminance(color)
    return "dark" if bright < 75 else "light" if bright > 170 else color
