"""Draws what is above the waist: upper garment, arms with sleeves and hands, scarf."""

from data.synthetic.attributes import Appearance
from data.synthetic.drawing.canvas import Point, between, shade
from data.synthetic.drawing.figure import Figure, dark, lit
from data.synthetic.drawing.outlines import (
    COAT_LAPEL_RIGHT,
    COLLAR_RIGHT,
    HOOD,
    INNER,
    LAPEL_RIGHT,
    LOW_NECK,
    POUCH,
    ROUND_NECK,
    SCARF_END,
    Outline,
    mirrored,
)

HEM = {
    "t-shirt": 0.462,
    "shirt": 0.448,
    "sweater": 0.455,
    "hoodie": 0.45,
    "jacket": 0.445,
    "tank top": 0.47,
    "coat": 0.285,
    "dress": 0.27,
}
LONG = ("coat", "dress")
BULKY = ("jacket", "coat", "hoodie")
FAR_ARM, TORSO, DETAIL, NEAR_ARM = 92, 140, 150, 180


def draw_torso(figure: Figure) -> None:
    """Draws the upper garment without its sleeves."""
    person, pose, canvas = figure.person, figure.pose, figure.canvas
    sideways = pose.view == "side"
    canvas.limb(((0.0, 0.79), (0.0, 0.86)), (0.034, 0.03), figure.skin, TORSO)
    if person.upper == "tank top":
        reach = 0.01 if sideways else pose.shoulder - 0.025
        canvas.limb(((-reach, 0.775), (reach, 0.775)), (0.035, 0.035), figure.skin, TORSO)
    canvas.shape(_side_torso(person) if sideways else _frontal_torso(figure), figure.upper, TORSO)
    if person.upper == "hoodie":
        canvas.shape(HOOD[pose.view], dark(figure.upper), DETAIL)
    if pose.view == "front":
        _draw_front(figure)
    elif pose.view == "back":
        _draw_back(figure)
    if person.upper in ("sweater", "hoodie"):
        half, rib = (0.06 if sideways else pose.hip - 0.004), HEM[person.upper] + 0.016
        canvas.line(((-half, rib), (half, rib)), shade(figure.upper.color, 0.72), 0.026)


def draw_arm(figure: Figure, side: str) -> None:
    """Draws the arm of `side` with its sleeve and hand."""
    person, pose, canvas = figure.person, figure.pose, figure.canvas
    shoulder, elbow, wrist = pose.arms[side]
    depth = FAR_ARM if pose.view == "side" and side == pose.far else NEAR_ARM
    canvas.limb((wrist, between(elbow, wrist, 1.18)), (0.021, 0.022), figure.skin, depth)
    canvas.limb((shoulder, elbow, wrist), (0.031, 0.026, 0.021), figure.skin, depth)
    if person.upper in ("t-shirt", "dress"):
        canvas.limb((shoulder, between(shoulder, elbow, 0.8)), (0.036, 0.04), figure.upper, depth, cut=True)
    elif person.upper != "tank top":
        thick = 0.006 if person.upper in BULKY else 0.0
        radii = (0.037 + thick, 0.032 + thick, 0.026 + thick)
        canvas.limb((shoulder, elbow, wrist), radii, figure.upper, depth, cut=True)
        if person.upper in ("shirt", "sweater", "hoodie"):
            canvas.limb((between(wrist, elbow, 0.12), wrist), (0.028, 0.028), dark(figure.upper), depth, cut=True)


def draw_scarf(figure: Figure) -> None:
    """Draws the scarf, with its loose end down the chest or the back."""
    canvas, view = figure.canvas, figure.pose.view
    if figure.person.scarf_color is None:
        return
    cloth = figure.cloth(figure.person.scarf_color)
    if view in SCARF_END:
        canvas.shape(SCARF_END[view], cloth, DETAIL, smooth=False)
    canvas.ellipse((0.002, 0.815), (0.066, 0.031), cloth, DETAIL)
    canvas.line(((-0.045, 0.808), (0.05, 0.815)), shade(cloth.color, 0.72), 0.009)


def _frontal_torso(figure: Figure) -> Outline:
    person, pose = figure.person, figure.pose
    shoulder = pose.shoulder - (0.03 if person.upper == "tank top" else 0.0)
    bulk = 0.008 if person.upper in BULKY else 0.0
    hip, hem = pose.hip + bulk, HEM[person.upper]
    flare = 0.034 if person.upper in LONG else -0.002
    return mirrored(
        (0.04, 0.825),
        (shoulder - 0.02, 0.81),
        (shoulder + bulk, 0.775),
        (pose.waist + 0.014 + bulk, 0.69),
        (pose.waist + bulk, 0.60),
        (hip, 0.505),
        (hip + flare, hem),
        (hip + flare - 0.004, hem),
    )


def _side_torso(person: Appearance) -> list[Point]:
    chest = 0.068 if person.gender == "woman" else 0.06
    bulk = 0.008 if person.upper in BULKY else 0.0
    flare, hem = (0.05 if person.upper in LONG else 0.0), HEM[person.upper]
    front = [(0.025, 0.822), (0.045, 0.80), (chest + bulk, 0.72), (0.055 + bulk, 0.60), (0.06 + bulk, 0.50)]
    bottom = [
        (0.06 + flare + bulk, hem),
        (0.055 + flare, hem),
        (-0.055 - flare, hem),
        (-0.06 - flare - bulk, hem),
    ]
    back = [
        (-0.068 - bulk, 0.50),
        (-0.05 - bulk, 0.61),
        (-0.066 - bulk, 0.73),
        (-0.045, 0.80),
        (-0.03, 0.822),
    ]
    return front + bottom + back


def _draw_front(figure: Figure) -> None:
    person, canvas, cloth = figure.person, figure.canvas, figure.upper
    x, hem, seam = figure.pose.turn, HEM[person.upper], shade(cloth.color, 0.6)
    match person.upper:
        case "t-shirt":
            canvas.shape(ROUND_NECK, figure.skin, TORSO)
        case "tank top" | "dress":
            canvas.shape(LOW_NECK, figure.skin, TORSO)
        case "shirt":
            canvas.line(((x, 0.80), (x, hem + 0.01)), seam, 0.01)
            _draw_pair(figure, COLLAR_RIGHT)
        case "hoodie":
            canvas.shape(POUCH, dark(cloth, 0.86), TORSO, shift=x, smooth=False)
        case "sweater":
            canvas.limb(((-0.032, 0.818), (0, 0.805), (0.032, 0.818)), (0.012, 0.012, 0.012), dark(cloth), DETAIL)
        case "jacket":
            canvas.shape(INNER, figure.cloth(person.inner_color), TORSO, shift=x, smooth=False)
            for sign in (-1, 1):
                canvas.line(((x + sign * 0.032, 0.815), (x + sign * 0.052, hem + 0.01)), seam, 0.012)
            _draw_pair(figure, LAPEL_RIGHT, shift=x)
        case "coat":
            canvas.line(((x, 0.73), (x, hem + 0.01)), seam, 0.01)
            canvas.line(((-figure.pose.waist, 0.60), (figure.pose.waist, 0.60)), seam, 0.018)
            _draw_pair(figure, COAT_LAPEL_RIGHT)
    if person.pattern == "print":
        canvas.ellipse((x, 0.685), (0.05, 0.046), figure.cloth(person.pattern_color), TORSO)
        canvas.line(((x - 0.03, 0.685), (x + 0.03, 0.685)), cloth.color, 0.016)


def _draw_pair(figure: Figure, right: Outline, shift: float = 0.0) -> None:
    """Draws a lapel or collar and its mirror image."""
    for sign in (-1, 1):
        flap = [(sign * x, y) for x, y in right]
        figure.canvas.shape(flap, lit(figure.upper), DETAIL, shift=shift, smooth=False)


def _draw_back(figure: Figure) -> None:
    person, canvas, seam = figure.person, figure.canvas, shade(figure.upper.color, 0.6)
    if person.upper == "coat":
        canvas.line(((0, 0.45), (0, HEM["coat"])), seam, 0.01)
        canvas.line(((-figure.pose.waist, 0.60), (figure.pose.waist, 0.60)), seam, 0.018)
    elif person.upper in ("shirt", "jacket"):
        canvas.line(((-0.045, 0.822), (0.045, 0.822)), shade(figure.upper.color, 0.75), 0.022)
