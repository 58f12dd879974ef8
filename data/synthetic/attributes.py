"""Who can be drawn: the attributes of a person, the combinations that make sense, identities and near-twins."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

RGB = tuple[int, int, int]
Weights = dict[Any, float]

COLORS: Final[dict[str, RGB]] = {
    "black": (30, 30, 34),
    "white": (240, 240, 238),
    "grey": (138, 140, 144),
    "red": (204, 28, 36),
    "orange": (240, 122, 20),
    "yellow": (246, 212, 40),
    "green": (36, 132, 58),
    "blue": (30, 66, 178),
    "purple": (120, 50, 152),
    "pink": (246, 138, 178),
    "brown": (118, 72, 38),
}
HAIR_COLORS: Final[dict[str, RGB]] = {
    "black": (28, 24, 26),
    "brown": (112, 66, 34),
    "blond": (222, 182, 92),
    "grey": (176, 176, 178),
    "red": (166, 44, 26),
}
USUAL: Final[Weights] = {}
PATTERN_COLORS: Final = ("white", "black", "yellow", "red", "blue")
HAND_CARRIED: Final = ("handbag", "suitcase")
PATTERNS: Final[dict[str, Weights]] = {
    "t-shirt": {"plain": 3, "striped": 2, "print": 2, "dotted": 1},
    "shirt": {"plain": 2, "checked": 3, "pinstriped": 2},
    "sweater": {"plain": 2, "striped": 3},
    "hoodie": {"plain": 2, "print": 2},
    "jacket": {"plain": 1},
    "coat": {"plain": 2, "checked": 1},
    "tank top": {"plain": 2, "striped": 1},
    "dress": {"plain": 2, "dotted": 2, "striped": 1, "checked": 1},
}


@dataclass(frozen=True)
class Appearance:
    """What a caption can say about a person. A part that the person lacks is None, and so are its details.

    Sides are the person's own left and right. Field order is the order of sampling: what a field may be
    depends on the fields above it only (`options`).
    """

    gender: str
    headwear: str | None
    headwear_color: str | None
    hair: str
    hair_color: str | None
    upper: str
    upper_color: str
    pattern: str
    pattern_color: str | None
    inner_color: str | None
    lower: str | None
    lower_color: str | None
    shoes: str
    shoes_color: str
    bag: str | None
    bag_color: str | None
    bag_side: str | None
    scarf_color: str | None
    eyewear: str | None
    mask_color: str | None
    held: str | None
    held_color: str | None
    held_side: str | None


FIELDS: Final = tuple(field.name for field in fields(Appearance))


@dataclass(frozen=True)
class Identity:
    """A person of the dataset. `twin` is the id of the person who differs in exactly one attribute, if any."""

    pid: int
    split: str
    appearance: Appearance
    twin: int | None


def options(field: str, person: Mapping[str, Any]) -> Weights:
    """Returns the values that `field` may take, with weights, given the fields of `person` above it."""
    match field:
        case "gender":
            return {"man": 1, "woman": 1}
        case "headwear":
            return {None: 10, "cap": 3, "beanie": 2, "wide hat": 2, "helmet": 2, "conical hat": 1}
        case "headwear_color":
            return _any_color() if person["headwear"] not in (None, "conical hat") else {None: 1}
        case "hair":
            if person["gender"] == "man":
                return {"short": 8.0, "shaved": 1.0}
            return {"long": 4.0, "ponytail": 3.0, "bob": 2.0} | ({} if person["headwear"] else {"bun": 2.0})
        case "hair_color":
            return dict.fromkeys(HAIR_COLORS, 1.0) if person["hair"] != "shaved" else {None: 1}
        case "upper":
            both = {"t-shirt": 4, "shirt": 4, "sweater": 3, "hoodie": 3, "jacket": 4, "coat": 2, "tank top": 1.5}
            return both | ({"dress": 5} if person["gender"] == "woman" else {})
        case "upper_color" | "shoes_color":
            return _any_color()
        case "pattern":
            return PATTERNS[person["upper"]]
        case "pattern_color":
            return _contrasting(person["upper_color"]) if person["pattern"] != "plain" else {None: 1}
        case "inner_color":
            return _other_colors(person["upper_color"]) if person["upper"] == "jacket" else {None: 1}
        case "lower":
            return _lower_garments(person)
        case "lower_color":
            if person["lower"] == "jeans":
                return {"blue": 3, "black": 2, "grey": 2}
            return _any_color() if person["lower"] else {None: 1}
        case "shoes":
            return {"trainers": 5, "sandals": 1.5} | ({} if person["lower"] == "long skirt" else {"boots": 2.5})
        case "bag":
            return {None: 5, "backpack": 4, "shoulder bag": 3, "handbag": 2.5, "suitcase": 1.5}
        case "bag_color":
            return _any_color() if person["bag"] else {None: 1}
        case "bag_side":
            return {"left": 1, "right": 1} if person["bag"] not in (None, "backpack") else {None: 1}
        case "scarf_color":
            bare = person["upper"] in ("hoodie", "tank top", "t-shirt")
            return {None: 1} if bare else {None: 30} | _other_colors(person["upper_color"])
        case "eyewear":
            return {None: 5, "sunglasses": 1}
        case "mask_color":
            return {None: 20, "white": 1, "blue": 1, "black": 1, "pink": 1}
        case "held":
            shelter: Weights = {} if person["headwear"] else {"umbrella": 2}
            return {None: 10, "phone": 2} | shelter
        case "held_color":
            return _any_color() if person["held"] == "umbrella" else {None: 1}
        case "held_side":
            if person["held"] is None:
                return {None: 1}
            busy = person["bag_side"] if person["bag"] in HAND_CARRIED else None
            return {side: 1 for side in ("left", "right") if side != busy}
    raise KeyError(field)


def is_valid(person: Appearance) -> bool:
    """Returns whether every field of `person` is one that its other fields allow."""
    values = vars(person)
    return all(values[field] in options(field, values) for field in FIELDS)


def sample_appearance(rng: random.Random, habits: Weights) -> Appearance:
    """Returns a random person; `habits` has how much oftener than usual a value is chosen (1 where it is missing)."""
    chosen: dict[str, Any] = {}
    for field in FIELDS:
        weights = options(field, chosen)
        chosen[field] = rng.choices(list(weights), [w * habits.get(value, 1) for value, w in weights.items()])[0]
    return Appearance(**chosen)


def sample_twin(person: Appearance, rng: random.Random) -> Appearance:
    """Returns a valid person who differs from `person` in exactly one field."""
    values: dict[str, Any] = vars(person)
    for field in rng.sample(FIELDS, len(FIELDS)):
        twins = [replace(person, **{field: value}) for value in options(field, values) if value != values[field]]
        valid = [twin for twin in twins if is_valid(twin)]
        if valid:
            return rng.choice(valid)
    raise AssertionError("every appearance has a colour that can change")


def sample_identities(
    sizes: Mapping[str, int], twin_share: float, rng: random.Random, habits: Weights = USUAL
) -> list[Identity]:
    """Returns the people of all splits with ids from 1, pairwise different in appearance.

    Args:
        sizes: number of identities per split name, in the order of the ids.
        twin_share: share of each split's identities that belong to a pair of near-twins.
        habits: how much oftener than usual a value is chosen.
    """
    taken: set[Appearance] = set()
    identities: list[Identity] = []
    for split, size in sizes.items():
        pairs = round(size * twin_share / 2)
        groups = [1] * (size - 2 * pairs) + [2] * pairs
        rng.shuffle(groups)
        for members in groups:
            first = len(identities) + 1
            people = _new_people(members, taken, rng, habits)
            for pid, person in enumerate(people, start=first):
                twin = first + members - 1 - (pid - first) if members == 2 else None
                identities.append(Identity(pid, split, person, twin))
    return identities


def _new_people(members: int, taken: set[Appearance], rng: random.Random, habits: Weights) -> Iterable[Appearance]:
    while True:
        person = sample_appearance(rng, habits)
        people = (person,) if members == 1 else (person, sample_twin(person, rng))
        if taken.isdisjoint(people):
            taken.update(people)
            return people


def _any_color() -> Weights:
    return dict.fromkeys(COLORS, 1)


def _other_colors(color: str) -> Weights:
    return {name: 1 for name in COLORS if name != color}


def _contrasting(color: str) -> Weights:
    light = luminance(color)
    return {name: 1 for name in PATTERN_COLORS if abs(luminance(name) - light) > 80}


def luminance(color: str) -> float:
    """Returns how bright a colour is, from 0 to 255."""
    red, green, blue = COLORS[color]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _lower_garments(person: Mapping[str, Any]) -> Weights:
    if person["upper"] == "dress":
        return {None: 1}
    short: Weights = {} if person["upper"] == "coat" else {"shorts": 3}
    if person["gender"] == "man":
        return {"trousers": 5, "jeans": 4} | short
    if short:
        short |= {"skirt": 4}
    return {"trousers": 3, "jeans": 3, "long skirt": 2} | short
