"""Draws one picture of one person."""

import random
from typing import Final

from PIL import Image

from data.synthetic.attributes import COLORS, RGB, Appearance
from data.synthetic.drawing.backdrop import draw_backdrop, draw_occluder
from data.synthetic.drawing.camera import cast_shadow, light_figure, photograph
from data.synthetic.drawing.canvas import Canvas, Fabric
from data.synthetic.drawing.carried import draw_behind, draw_in_hand, draw_on_torso
from data.synthetic.drawing.figure import Figure
from data.synthetic.drawing.head import draw_hair_behind, draw_head
from data.synthetic.drawing.legs import draw_hips, draw_leg
from data.synthetic.drawing.pose import SIDES, pose_of
from data.synthetic.drawing.torso import draw_arm, draw_scarf, draw_torso
from data.synthetic.shot import CUTS, FRAMED, Shot

SUPERSAMPLING: Final = 3
SKINS: Final[tuple[RGB, ...]] = (
    (236, 196, 164),
    (222, 176, 140),
    (204, 152, 114),
    (168, 116, 82),
    (128, 84, 58),
)


def draw_picture(
    person: Appearance, shot: Shot, size: tuple[int, int], looks: random.Random, rng: random.Random
) -> Image.Image:
    """Returns an RGB picture of `size` (width, height) pixels.

    Args:
        looks: randomness that stays with the person: skin and the exact tints of their clothes.
        rng: randomness of this picture.
    """
    width, height = size
    x, y = shot.center * width, shot.ground * height
    body = shot.height * height
    sheet = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    ground = (x * SUPERSAMPLING, y * SUPERSAMPLING)
    canvas = Canvas(sheet, body * SUPERSAMPLING, ground, flip=shot.view == "left")
    _draw_figure(Figure(canvas, person, pose_of(person, shot), Fabric(looks.choice(SKINS)), _tints(looks)))
    drawn, relief = (layer.resize(size, Image.Resampling.BOX) for layer in (canvas.image, canvas.relief))
    figure = light_figure(drawn, relief, rng)
    scene = draw_backdrop(size, shot.scene, rng)
    cast_shadow(scene, (x, y), body, rng)
    scene.paste(figure, mask=figure)
    if shot.cut not in FRAMED:
        draw_occluder(scene, shot.cut, y - CUTS[shot.cut] * body, rng)
    return photograph(scene, shot.light, rng)


def _draw_figure(figure: Figure) -> None:
    """Draws all parts, the farthest first."""
    far, near = figure.pose.far, figure.pose.near
    draw_behind(figure)
    draw_hair_behind(figure)
    sideways = figure.pose.view == "side"
    if sideways:
        draw_arm(figure, far)
        draw_in_hand(figure, far)
    draw_leg(figure, far)
    draw_leg(figure, near)
    draw_hips(figure)
    draw_torso(figure)
    if not sideways:
        for side in SIDES:
            draw_arm(figure, side)
    draw_on_torso(figure)
    draw_scarf(figure)
    draw_head(figure)
    if sideways:
        draw_arm(figure, near)
    for side in (near,) if sideways else SIDES:
        draw_in_hand(figure, side)


def _tints(looks: random.Random) -> dict[str, RGB]:
    """Returns a slightly different version of every named colour of cloth."""
    tints: dict[str, RGB] = {}
    for name, color in COLORS.items():
        bright = looks.uniform(0.93, 1.06)
        red, green, blue = (max(0, min(255, round(c * bright + looks.uniform(-7, 7)))) for c in color)
        tints[name] = (red, green, blue)
    return tints
