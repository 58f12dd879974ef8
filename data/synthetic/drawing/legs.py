"""Draws what is below the waist: legs, trousers or skirt, shoes."""

from data.synthetic.attributes import COLORS
from data.synthetic.drawing.canvas import Fabric, Point, between, shade
from data.synthetic.drawing.figure import Figure, lit
from data.synthetic.drawing.outlines import SEAT

FAR_LEG, NEAR_LEG, HIPS = 96, 112, 124
SKIRTS = {"skirt": (0.30, 0.122), "long skirt": (0.095, 0.128)}  # height and half width of the hem


def draw_leg(figure: Figure, side: str) -> None:
    """Draws the leg of `side` with what it wears."""
    canvas, person = figure.canvas, figure.person
    hip, knee, ankle = figure.pose.legs[side]
    depth = FAR_LEG if side == figure.pose.far else NEAR_LEG
    canvas.limb((hip, knee, ankle), (0.05, 0.037, 0.025), figure.skin, depth)
    _draw_foot(figure, side, depth)
    cloth = figure.cloth(person.lower_color)
    cuff = between(ankle, knee, 0.3 if person.shoes == "boots" else 0.05)
    if person.lower == "trousers":
        canvas.limb((hip, knee, cuff), (0.057, 0.048, 0.043), cloth, depth, cut=True)
    elif person.lower == "jeans":
        canvas.limb((hip, knee, cuff), (0.054, 0.042, 0.035), cloth, depth, cut=True)
        canvas.line((between(hip, knee, 0.25), between(hip, knee, 0.95)), shade(cloth.color, 1.35), 0.024)
        canvas.limb((between(cuff, knee, 0.07), cuff), (0.036, 0.036), lit(cloth), depth, cut=True)
    elif person.lower == "shorts":
        canvas.limb((hip, between(hip, knee, 0.78)), (0.057, 0.062), cloth, depth, cut=True)
    if person.shoes == "boots":
        canvas.limb(
            (ankle, between(ankle, knee, 0.52)),
            (0.036, 0.047),
            figure.cloth(person.shoes_color),
            depth,
            cut=True,
        )


def draw_hips(figure: Figure) -> None:
    """Draws what joins the legs: the seat of trousers, or a skirt."""
    person, pose, canvas = figure.person, figure.pose, figure.canvas
    if person.lower is None:
        return
    cloth = figure.cloth(person.lower_color)
    half = 0.066 if pose.view == "side" else pose.hip
    if person.lower not in SKIRTS:
        canvas.shape([(x * half, y) for x, y in SEAT], cloth, HIPS)
        return
    hem, wide = SKIRTS[person.lower]
    sides = ((half, 0.52), (half * 1.08, 0.46), (wide, hem))
    canvas.shape([*sides, *((-x, y) for x, y in reversed(sides))], cloth, HIPS, smooth=False)
    for x in (-0.5, 0.0, 0.5):
        canvas.line(((x * half, 0.44), (x * wide, hem + 0.01)), shade(cloth.color, 0.78), 0.008)


def _draw_foot(figure: Figure, side: str, depth: int) -> None:
    person, canvas = figure.person, figure.canvas
    shoe = figure.cloth(person.shoes_color)
    foot, sole = _foot(figure, side)
    if person.shoes == "sandals":
        canvas.shape(foot, figure.skin, depth)
        canvas.shape(sole, shoe, depth, smooth=False)
        for share in (0.25, 0.7):
            canvas.line((between(foot[0], foot[3], share), between(foot[1], foot[2], share)), shoe.color, 0.02)
    else:
        rubber = COLORS["white"] if person.shoes == "trainers" else shade(shoe.color, 0.6)
        canvas.shape(foot, shoe, depth)
        canvas.shape(sole, Fabric(rubber), depth, smooth=False)


def _foot(figure: Figure, side: str) -> tuple[list[Point], list[Point]]:
    """Returns the outlines of a foot (top left, top right, toe, heel) and of the sole under it."""
    knee, (x, y) = figure.pose.legs[side][1:]
    if figure.pose.view != "side":
        toe = x + figure.pose.axis[side] * 0.008
        foot = [
            (x - 0.034, y + 0.016),
            (x + 0.034, y + 0.016),
            (toe + 0.042, y - 0.044),
            (toe - 0.042, y - 0.044),
        ]
        return foot, [
            (toe - 0.042, y - 0.036),
            (toe + 0.042, y - 0.036),
            (toe + 0.042, y - 0.048),
            (toe - 0.042, y - 0.048),
        ]
    tip = y - max(0.0, (knee[0] - x) * 0.35)
    foot = [(x - 0.036, y + 0.018), (x + 0.03, y + 0.014), (x + 0.096, tip - 0.044), (x - 0.038, y - 0.04)]
    return foot, [
        (x - 0.04, y - 0.034),
        (x + 0.094, tip - 0.038),
        (x + 0.094, tip - 0.049),
        (x - 0.04, y - 0.047),
    ]
