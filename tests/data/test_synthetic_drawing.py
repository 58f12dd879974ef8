import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.synthetic.attributes import COLORS, Appearance, is_valid
from data.synthetic.drawing.picture import draw_picture
from data.synthetic.population import PEDESTRIANS, STRANGERS
from data.synthetic.shot import VIEWS, Shot, sample_shot

PERSON = Appearance(
    gender="man", headwear=None, headwear_color=None, hair="short", hair_color="black",
    upper="t-shirt", upper_color="white", pattern="plain", pattern_color=None, inner_color=None,
    lower="trousers", lower_color="grey", shoes="trainers", shoes_color="black",
    bag=None, bag_color=None, bag_side=None, scarf_color=None, eyewear=None, mask_color=None,
    held=None, held_color=None, held_side=None,
)  # fmt: skip
STANDING = Shot("front", False, 0.1, 0.0, 0.87, 0.5, 0.97, None, (1.0, 1.0, 1.0), "street")


def draw(person: Appearance, shot: Shot, size: tuple[int, int] = (64, 128), seed: int = 0) -> Image.Image:
    assert is_valid(person)
    return draw_picture(person, shot, size, random.Random(1), random.Random(seed))


def changed(person: Appearance, shot: Shot) -> NDArray[np.bool_]:
    """Returns ``(H, W)``: where the picture of `person` differs from that of the plain person."""
    pixels = [np.asarray(draw(one, shot), np.int32) for one in (PERSON, person)]
    return np.abs(pixels[0] - pixels[1]).sum(axis=2) > 60


def test_the_same_randomness_gives_the_same_picture() -> None:
    assert draw(PERSON, STANDING).tobytes() == draw(PERSON, STANDING).tobytes()
    assert draw(PERSON, STANDING).tobytes() != draw(PERSON, STANDING, seed=1).tobytes()


@pytest.mark.parametrize("size", [(16, 32), (48, 96), (64, 128), (128, 384)])
@pytest.mark.parametrize("view", VIEWS)
def test_any_size_and_view_can_be_drawn(size: tuple[int, int], view: str) -> None:
    picture = draw(PERSON, replace(STANDING, view=view), size)
    assert picture.size == size
    assert picture.mode == "RGB"
    assert np.asarray(picture).std() > 10


@pytest.mark.parametrize("color", ["black", "white", "red", "yellow", "green", "blue", "pink"])
@pytest.mark.parametrize(("field", "rows"), [("upper_color", slice(48, 68)), ("lower_color", slice(76, 100))])
def test_garments_have_the_color_that_they_are_called(color: str, field: str, rows: slice) -> None:
    person = replace(PERSON, **{field: color})
    region = np.mean([np.asarray(draw(person, STANDING, seed=seed))[rows, 26:38] for seed in range(6)], axis=(0, 1, 2))
    nearest = min(COLORS, key=lambda name: float(np.abs(region - np.array(COLORS[name])).sum()))
    assert nearest == color


@pytest.mark.parametrize("bag", ["handbag", "shoulder bag", "suitcase"])
@pytest.mark.parametrize(("view", "side", "right_half"), [
    ("front", "left", True), ("front", "right", False), ("back", "left", False), ("back", "right", True),
])  # fmt: skip
def test_left_and_right_are_the_persons_own(bag: str, view: str, side: str, right_half: bool) -> None:
    person = replace(PERSON, bag=bag, bag_color="red", bag_side=side)
    columns = np.nonzero(changed(person, replace(STANDING, view=view))[64:])[1]
    assert columns.size > 20
    assert (columns.mean() > 32) == right_half


@pytest.mark.parametrize(("side", "view", "shown"), [("left", "left", True), ("right", "left", False)])
def test_the_near_side_hides_a_far_shoulder_bag(side: str, view: str, shown: bool) -> None:
    person = replace(PERSON, bag="shoulder bag", bag_color="red", bag_side=side)
    below_the_chest = changed(person, replace(STANDING, view=view))[60:]
    assert (below_the_chest.sum() > 20) == shown


@pytest.mark.parametrize("change", [
    {"headwear": "cap", "headwear_color": "red"}, {"headwear": "conical hat"}, {"scarf_color": "red"},
    {"eyewear": "sunglasses"}, {"mask_color": "blue"}, {"upper_color": "red"}, {"lower": "shorts"},
    {"shoes": "boots", "shoes_color": "red"}, {"bag": "backpack", "bag_color": "red"},
    {"held": "umbrella", "held_color": "red", "held_side": "left"}, {"held": "phone", "held_side": "right"},
    {"upper": "jacket", "inner_color": "red"}, {"pattern": "striped", "pattern_color": "black"},
    {"pattern": "print", "pattern_color": "red"}, {"hair_color": "blond"},
])  # fmt: skip
def test_every_attribute_shows_in_a_front_view(change: dict[str, str]) -> None:
    base = replace(PERSON, upper="shirt") if "scarf_color" in change else PERSON
    pixels = [np.asarray(draw(person, STANDING), np.int32) for person in (base, replace(base, **change))]
    assert (np.abs(pixels[0] - pixels[1]).sum(axis=2) > 60).sum() >= 10


@pytest.mark.parametrize("cut", ["waist", "counter", "shins", "bush", "crate", "board", "pole"])
def test_what_is_cut_off_does_not_show(cut: str) -> None:
    framed = {"waist": (1.4, 1.644), "shins": (1.1, 1.22)}
    shot = replace(STANDING, cut=cut)
    if cut in framed:
        shot = replace(shot, height=framed[cut][0], ground=framed[cut][1])
    pair = [np.asarray(draw(replace(PERSON, shoes_color=shoes), shot), np.int32) for shoes in ("black", "red")]
    assert ((np.abs(pair[0] - pair[1]).sum(axis=2) > 60).sum() > 10) == (cut == "pole")


def test_light_and_scene_change_the_picture() -> None:
    plain = np.asarray(draw(PERSON, STANDING), np.float32)
    dark = np.asarray(draw(PERSON, replace(STANDING, light=(0.5, 0.5, 0.5))), np.float32)
    assert dark.mean() < 0.65 * plain.mean()
    for scene in ("park", "hall"):
        assert draw(PERSON, replace(STANDING, scene=scene)).tobytes() != draw(PERSON, STANDING).tobytes()


def test_shots_keep_the_head_in_the_frame() -> None:
    tall = replace(PERSON, held="umbrella", held_color="red", held_side="left")
    for seed in range(200):
        for camera in (*PEDESTRIANS.cameras, *STRANGERS.cameras):
            for person, top in ((PERSON, 1.02), (tall, 1.1)):
                shot = sample_shot(person, camera, random.Random(seed))
                assert shot.ground - shot.height * top > -0.01
                assert abs(shot.center - 0.5) <= 0.06
