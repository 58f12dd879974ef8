"""Draws what a figure carries: bags, suitcase, phone, umbrella."""

import math

from data.synthetic.drawing.canvas import RGB, Fabric, Point, between, shade
from data.synthetic.drawing.figure import Figure, dark
from data.synthetic.drawing.outlines import BACKPACK, BACKPACK_POCKET, HANDBAG, SUITCASE

BEHIND, BAG, HAND = 84, 168, 190
METAL: RGB = (92, 94, 100)
BRASS = Fabric((214, 190, 110))
INK = Fabric((24, 24, 28))


def draw_behind(figure: Figure) -> None:
    """Draws what lies behind the torso: the canopy of an umbrella, a backpack seen from the front."""
    if figure.person.held == "umbrella":
        _draw_canopy(figure)
    if figure.person.bag == "backpack" and figure.pose.view == "front":
        figure.canvas.shape(BACKPACK["front"], figure.cloth(figure.person.bag_color), BEHIND)


def draw_on_torso(figure: Figure) -> None:
    """Draws what lies on the torso, over the arms unless one of them is near: straps, bags."""
    person, pose, canvas = figure.person, figure.pose, figure.canvas
    cloth = figure.cloth(person.bag_color)
    if person.bag == "shoulder bag":
        _draw_shoulder_bag(figure, cloth)
    elif person.bag == "backpack" and pose.view == "front":
        for sign in (-1, 1):
            x = pose.shoulder - 0.042
            strap = ((sign * x, 0.805), (sign * (x + 0.006), 0.70), (sign * (x + 0.03), 0.61))
            canvas.limb(strap, (0.015, 0.015, 0.012), cloth, BAG)
    elif person.bag == "backpack":
        canvas.shape(BACKPACK[pose.view], cloth, BAG)
        canvas.shape(BACKPACK_POCKET[pose.view], dark(cloth), BAG + 6)
        if pose.view == "back":
            canvas.line(((-0.08, 0.735), (0.08, 0.735)), shade(cloth.color, 0.62), 0.008)
        else:
            one_strap = ((-0.06, 0.785), (-0.02, 0.808), (0.025, 0.775), (0.02, 0.68), (-0.05, 0.60))
            canvas.line(one_strap, cloth.color, 0.02)


def draw_in_hand(figure: Figure, side: str) -> None:
    """Draws what the hand of `side` holds, over the hand."""
    person = figure.person
    wrist = figure.pose.arms[side][2]
    if person.bag_side == side and person.bag == "handbag":
        _draw_handbag(figure, wrist)
    elif person.bag_side == side and person.bag == "suitcase":
        _draw_suitcase(figure, side, wrist)
    if person.held_side == side and person.held == "phone":
        x, y = wrist[0] + (0.012 if figure.pose.view == "side" else 0.0), wrist[1] + 0.03
        figure.canvas.limb(((x, y - 0.03), (x, y + 0.04)), (0.017, 0.017), INK, HAND, cut=True)
    elif person.held_side == side and person.held == "umbrella":
        x = wrist[0] + 0.004
        figure.canvas.line(((x, wrist[1] - 0.03), (x, 1.02)), METAL, 0.012)
        figure.canvas.ellipse((wrist[0], wrist[1] + 0.008), (0.023, 0.024), figure.skin, HAND)


def _draw_shoulder_bag(figure: Figure, cloth: Fabric) -> None:
    pose, canvas, side = figure.pose, figure.canvas, figure.person.bag_side
    strap = shade(cloth.color, 0.8)
    if pose.view != "side":
        axis = pose.axis["left" if side == "left" else "right"]
        x = axis * (pose.hip + 0.03)
        canvas.line(((-axis * (pose.shoulder - 0.05), 0.81), (x - axis * 0.03, 0.52)), strap, 0.02)
    elif side != pose.near:
        canvas.line(((0.0, 0.81), (0.05, 0.74)), strap, 0.018)
        return
    else:
        x = 0.0
        canvas.line(((-0.005, 0.812), (0.022, 0.68), (0.0, 0.53)), strap, 0.018)
    corners = [(x - 0.062, 0.53), (x + 0.062, 0.53), (x + 0.066, 0.415), (x - 0.066, 0.415)]
    canvas.shape(corners, cloth, HAND, smooth=False)
    flap = [
        corners[0],
        corners[1],
        between(corners[1], corners[2], 0.5),
        between(corners[0], corners[3], 0.5),
    ]
    canvas.shape(flap, dark(cloth, 0.85), HAND + 4, smooth=False)


def _draw_handbag(figure: Figure, wrist: Point) -> None:
    canvas, cloth = figure.canvas, figure.cloth(figure.person.bag_color)
    x, y = wrist[0], wrist[1] - 0.07
    handle = ((x - 0.035, y - 0.01), (x - 0.012, y + 0.05), (x + 0.012, y + 0.05), (x + 0.035, y - 0.01))
    canvas.line(handle, shade(cloth.color, 0.7), 0.012)
    canvas.shape([(x + dx, y + dy) for dx, dy in HANDBAG], cloth, HAND, smooth=False)
    canvas.line(((x - 0.052, y - 0.028), (x + 0.052, y - 0.028)), shade(cloth.color, 0.72), 0.01)
    canvas.ellipse((x, y - 0.04), (0.01, 0.01), BRASS, HAND)


def _draw_suitcase(figure: Figure, side: str, wrist: Point) -> None:
    canvas, cloth = figure.canvas, figure.cloth(figure.person.bag_color)
    x = -0.2 if figure.pose.view == "side" else figure.pose.axis[side] * 0.2
    canvas.line((wrist, (x, 0.29)), METAL, 0.014)
    for wheel in (-0.045, 0.045):
        canvas.ellipse((x + wheel, 0.012), (0.014, 0.014), INK, BAG)
    canvas.shape(SUITCASE, cloth, BAG, shift=x, smooth=False)
    for rib in (-0.03, 0.0, 0.03):
        canvas.line(((x + rib, 0.275), (x + rib, 0.04)), shade(cloth.color, 0.78), 0.009)


def _draw_canopy(figure: Figure) -> None:
    canvas, cloth = figure.canvas, figure.cloth(figure.person.held_color)
    hand = figure.pose.arms["left" if figure.person.held_side == "left" else "right"][2]
    x, rim, top, half = hand[0] * 0.6, 0.985, 1.1, 0.25
    arc = [math.pi * step / 12 for step in range(13)]
    dome = [(x + half * math.cos(angle), rim + (top - rim) * math.sin(angle)) for angle in arc]
    scallops = [(x - half + half * step / 4, rim + 0.022 * (step % 2)) for step in range(1, 8)]
    canvas.shape([*dome, *scallops], cloth, BEHIND, smooth=False)
    for rib in (-0.5, 0.0, 0.5):
        canvas.line(((x, top), (x + half * rib, rim + 0.005)), shade(cloth.color, 0.72), 0.008)
