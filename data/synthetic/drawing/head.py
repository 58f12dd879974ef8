"""Draws the head of a figure: face, hair, headwear, sunglasses, face mask."""

from data.synthetic.drawing.canvas import Fabric, Point, shade
from data.synthetic.drawing.figure import Figure, dark, lit
from data.synthetic.drawing.outlines import (
    BACK_HAIR,
    BEANIE,
    CAP,
    CONE,
    FRONT_HAIR,
    FRONT_MASK,
    HAT_CROWN,
    HELMET,
    PROFILE,
    PROFILE_MASK,
    SIDE_HAIR,
)

BEHIND, HEAD, HAT, BRIM = 80, 158, 163, 166
INK = Fabric((24, 24, 28))
LIPS = (158, 66, 62)
STRAW = Fabric((226, 196, 130))
TIE = Fabric((150, 40, 60))


def draw_hair_behind(figure: Figure) -> None:
    """Draws the long hair of a figure seen from the front that falls behind the shoulders."""
    if figure.pose.view == "front" and figure.person.hair in ("long", "bob"):
        figure.canvas.shape(FRONT_HAIR[f"behind {figure.person.hair}"], figure.hair, BEHIND)


def draw_head(figure: Figure) -> None:
    """Draws the head over the torso."""
    {"front": _draw_front, "back": _draw_back, "side": _draw_side}[figure.pose.view](figure)


def _draw_front(figure: Figure) -> None:
    canvas, person, x = figure.canvas, figure.person, figure.pose.turn
    _draw_skull(figure)
    for sign in (-1, 1):
        eye = x + sign * 0.023
        canvas.line(((eye - 0.011, 0.931), (eye + 0.011, 0.931)), shade(figure.skin.color, 0.45), 0.007)
        canvas.ellipse((eye, 0.912), (0.008, 0.006), INK, HEAD)
    canvas.line(((x, 0.905), (x + 0.004, 0.884)), shade(figure.skin.color, 0.72), 0.007)
    canvas.line(((x - 0.017, 0.862), (x + 0.017, 0.862)), LIPS, 0.009)
    if person.mask_color:
        mask = figure.cloth(person.mask_color)
        canvas.line(((-0.056, 0.9), (0.056, 0.9)), mask.color, 0.006)
        canvas.shape(FRONT_MASK, mask, HEAD, shift=x)
    if person.hair != "shaved":
        canvas.shape(FRONT_HAIR["short" if person.hair == "short" else "fringe"], figure.hair, HEAD)
    if person.hair in ("long", "bob"):
        end = 0.70 if person.hair == "long" else 0.825
        for sign in (-1, 1):
            lock = ((sign * 0.062, 0.95), (sign * 0.068, 0.88), (sign * 0.07, end))
            canvas.limb(lock, (0.012, 0.018, 0.018), figure.hair, HEAD)
    elif person.hair == "ponytail":
        canvas.limb(((0.05, 0.9), (0.078, 0.83), (0.07, 0.715)), (0.016, 0.024, 0.012), figure.hair, HEAD)
        canvas.ellipse((0.068, 0.862), (0.02, 0.011), TIE, HEAD)
    if person.eyewear:
        canvas.line(((-0.055, 0.916), (0.055, 0.916)), INK.color, 0.009)
        for sign in (-1, 1):
            canvas.ellipse((x + sign * 0.026, 0.91), (0.022, 0.017), INK, HEAD)
    _draw_headwear(figure, visor=(x * 2, 0.944))


def _draw_back(figure: Figure) -> None:
    canvas, person = figure.canvas, figure.person
    _draw_skull(figure)
    if person.hair != "shaved":
        canvas.shape(BACK_HAIR.get(person.hair, BACK_HAIR["short"]), figure.hair, HEAD)
    if person.hair == "ponytail":
        tail = ((0.0, 0.925), (0.004, 0.83), (0.008, 0.71))
        canvas.limb(tail, (0.022, 0.028, 0.012), lit(figure.hair, 1.12), BRIM)
        canvas.ellipse((0, 0.935), (0.02, 0.011), TIE, BRIM)
    _draw_headwear(figure, visor=None)


def _draw_skull(figure: Figure) -> None:
    """Draws a head without a face, and a bun on it."""
    canvas = figure.canvas
    if figure.person.hair == "bun":
        canvas.ellipse((0, 1.012), (0.034, 0.03), figure.hair, HEAD)
    for sign in (-1, 1):
        canvas.ellipse((sign * 0.056, 0.9), (0.01, 0.018), figure.skin, HEAD)
    canvas.ellipse((0, 0.908), (0.056, 0.078), figure.skin, HEAD)


def _draw_side(figure: Figure) -> None:
    canvas, person = figure.canvas, figure.person
    if person.hair == "bun":
        canvas.ellipse((-0.03, 1.008), (0.034, 0.03), figure.hair, HEAD)
    canvas.shape(PROFILE, figure.skin, HEAD)
    canvas.ellipse((0.04, 0.913), (0.007, 0.007), INK, HEAD)
    canvas.line(((0.026, 0.932), (0.052, 0.932)), shade(figure.skin.color, 0.45), 0.007)
    canvas.line(((0.04, 0.86), (0.056, 0.86)), LIPS, 0.009)
    canvas.ellipse((-0.008, 0.902), (0.011, 0.017), figure.skin, HEAD)
    if person.mask_color:
        mask = figure.cloth(person.mask_color)
        canvas.line(((-0.008, 0.905), (0.04, 0.895)), mask.color, 0.006)
        canvas.shape(PROFILE_MASK, mask, HEAD)
    if person.hair != "shaved":
        canvas.shape(SIDE_HAIR.get(person.hair, SIDE_HAIR["short"]), figure.hair, HEAD)
    if person.hair == "ponytail":
        canvas.limb(((-0.066, 0.95), (-0.1, 0.87), (-0.095, 0.74)), (0.016, 0.028, 0.012), figure.hair, HEAD)
        canvas.ellipse((-0.07, 0.95), (0.012, 0.014), TIE, HEAD)
    if person.eyewear:
        canvas.line(((-0.01, 0.918), (0.045, 0.916)), INK.color, 0.009)
        canvas.ellipse((0.047, 0.91), (0.017, 0.017), INK, HEAD)
    _draw_headwear(figure, visor=(0.062, 0.944))


def _draw_headwear(figure: Figure, visor: Point | None) -> None:
    """Draws the headwear; `visor` is the centre of a cap's, None where the head hides it."""
    canvas, person = figure.canvas, figure.person
    cloth = STRAW if person.headwear == "conical hat" else figure.cloth(person.headwear_color)
    shadow = dark(cloth, 0.68)
    match person.headwear:
        case "cap":
            canvas.shape(CAP, cloth, HAT)
            if visor:
                canvas.ellipse(visor, (0.062, 0.016), shadow, BRIM)
        case "beanie":
            canvas.ellipse((0, 1.045), (0.024, 0.022), shadow, HAT)
            canvas.shape(BEANIE, cloth, HAT)
            canvas.limb(((-0.06, 0.951), (0.06, 0.951)), (0.017, 0.017), shadow, BRIM)
        case "wide hat":
            canvas.shape(HAT_CROWN, cloth, HAT)
            canvas.line(((-0.06, 0.975), (0.06, 0.975)), shadow.color, 0.014)
            canvas.ellipse((0, 0.958), (0.132, 0.02), cloth, BRIM)
        case "helmet":
            straps = ((0.03, 0.02),) if figure.pose.view == "side" else ((-0.054, -0.027), (0.054, 0.027))
            for ear, chin in straps:
                canvas.line(((ear, 0.92), (chin, 0.836)), INK.color, 0.008)
            canvas.shape(HELMET[figure.pose.view], cloth, HAT)
            canvas.line(((-0.05, 1.015), (0.0, 1.026)), shade(cloth.color, 1.6), 0.014)
        case "conical hat":
            canvas.shape(CONE, cloth, BRIM, smooth=False)
            for x in (-0.07, 0.0, 0.07):
                canvas.line(((0.0, 1.04), (x, 0.922)), shadow.color, 0.004)
