"""Turns a drawn figure and a backdrop into a photograph: light, shadow, blur, noise."""

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.synthetic.population import Light

FRAME = 128  # picture height in pixels at which lengths below are given


def light_figure(figure: Image.Image, relief: Image.Image, rng: random.Random) -> Image.Image:
    """Returns the RGBA `figure` as if its `relief` (L, same size) with folds of cloth were lit from one side."""
    width, height = figure.size
    unit = height / FRAME
    folds = np.random.default_rng(rng.getrandbits(64)).normal(0, 13, (max(2, height // 6), max(2, width // 3)))
    wrinkles = Image.fromarray(folds.astype(np.float32)).resize(figure.size, Image.Resampling.BICUBIC)
    near = np.asarray(relief.filter(ImageFilter.GaussianBlur(1.6 * unit)), np.float32)
    down, across = np.gradient(near + np.asarray(wrinkles, np.float32))
    side = rng.choice((-1, 1)) * rng.uniform(0.5, 1)
    light = 1 + np.clip((side * across + 0.7 * down) * unit * -0.011, -0.3, 0.22)
    pixels = np.asarray(figure, np.float32) * np.dstack((light, light, light, np.ones_like(light)))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def cast_shadow(scene: Image.Image, feet: tuple[float, float], body: float, rng: random.Random) -> None:
    """Darkens the RGB `scene` in place around the `feet` of a figure of `body` pixels height."""
    shadow = Image.new("L", scene.size, 0)
    x, y = feet[0] + rng.uniform(-0.08, 0.08) * body, feet[1]
    ImageDraw.Draw(shadow).ellipse((x - 0.17 * body, y - 0.028 * body, x + 0.17 * body, y + 0.03 * body), fill=80)
    scene.paste((20, 20, 26), mask=shadow.filter(ImageFilter.GaussianBlur(0.012 * body)))


def photograph(scene: Image.Image, light: Light, rng: random.Random) -> Image.Image:
    """Returns the RGB `scene` as a camera sees it in that light: soft or coarse, noisy."""
    if rng.random() < 0.3:
        share = rng.uniform(0.65, 0.9)
        coarse = scene.resize((round(scene.width * share), round(scene.height * share)), Image.Resampling.BILINEAR)
        scene = coarse.resize(scene.size, Image.Resampling.BILINEAR)
    else:
        scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6) * scene.height / FRAME))
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal((scene.height, scene.width, 3), np.float32)
    pixels = np.asarray(scene, np.float32) * np.array(light, np.float32) + rng.uniform(0, 8) + noise * rng.uniform(2, 7)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
