"""The skeleton of a figure in body units (x to the right of the picture, y up from the ground)."""

import math
from dataclasses import dataclass
from typing import Final

from data.synthetic.attributes import HAND_CARRIED, Appearance
from data.synthetic.drawing.canvas import Point
from data.synthetic.shot import Shot

Joints = tuple[Point, Point, Point]
SIDES: Final = ("left", "right")
SHOULDER_Y: Final = 0.782
HIP_Y: Final = 0.485
ANKLE_Y: Final = 0.045
BONE: Final = 0.222  # thigh and shin


@dataclass(frozen=True)
class Pose:
    """Where the joints are.

    Attributes:
        view: front, back or side; a side view looks towards positive x.
        far, near: the person's own sides; far is drawn first.
        axis: sign of x on which each of the person's own sides lies (0 in a side view).
        arms: shoulder, elbow and wrist of each side.
        legs: hip, knee and ankle of each side.
        shoulder, waist, hip: half widths of the torso.
        turn: x shift of what lies on the front or back of the body.
    """

    view: str
    far: str
    near: str
    axis: dict[str, int]
    arms: dict[str, Joints]
    legs: dict[str, Joints]
    shoulder: float
    waist: float
    hip: float
    turn: float


def pose_of(person: Appearance, shot: Shot) -> Pose:
    """Returns the pose of `person` in `shot`."""
    man = person.gender == "man"
    shoulder, waist, hip = (0.112, 0.088, 0.083) if man else (0.097, 0.071, 0.09)
    if shot.sideways:
        near, far = shot.view, _other(shot.view)
        axis = {near: 0, far: 0}
        legs = _side_legs(shot.stride, near, far)
        arms = {side: _side_arm(person, side, shot.stride if side == near else -shot.stride) for side in SIDES}
    else:
        axis = {"left": 1, "right": -1} if shot.view == "front" else {"left": -1, "right": 1}
        near, far = SIDES if shot.stride > 0 else reversed(SIDES)
        legs = {side: _frontal_leg(axis[side], shot.stride if side == near else -shot.stride) for side in SIDES}
        arms = {
            side: _frontal_arm(person, side, axis[side], shoulder, shot.stride if side == far else -shot.stride)
            for side in SIDES
        }
    view = "side" if shot.sideways else shot.view
    return Pose(view, far, near, axis, arms, legs, shoulder, waist, hip, 0.0 if shot.sideways else shot.turn * 0.014)


def _other(side: str) -> str:
    return "right" if side == "left" else "left"


def _frontal_leg(axis: int, forward: float) -> Joints:
    back = max(0.0, -forward)
    hip = (axis * 0.043, HIP_Y)
    knee = (axis * 0.05, 0.265 + 0.01 * back)
    return hip, knee, (axis * (0.05 - 0.008 * back), ANKLE_Y + 0.035 * back)


def _frontal_arm(person: Appearance, side: str, axis: int, shoulder: float, forward: float) -> Joints:
    start = (axis * (shoulder - 0.014), SHOULDER_Y)
    if person.held_side == side:
        elbow = (axis * (shoulder + 0.045), 0.655)
        return start, elbow, (axis * 0.078, 0.86) if person.held == "phone" else (axis * 0.125, 0.735)
    swing = 0.0 if person.bag in HAND_CARRIED and person.bag_side == side else forward
    elbow = (axis * (shoulder + 0.022), 0.635 + 0.006 * swing)
    return start, elbow, (axis * (shoulder + 0.028 - 0.018 * max(0.0, swing)), 0.49 + 0.025 * abs(swing))


def _side_legs(stride: float, near: str, far: str) -> dict[str, Joints]:
    swings = {near: stride, far: -stride}
    raw: dict[str, tuple[Point, Point]] = {}
    for side, swing in swings.items():
        thigh = math.radians(27 * swing)
        shin = thigh - math.radians(6 + 26 * max(0.0, -swing))
        knee = (BONE * math.sin(thigh), -BONE * math.cos(thigh))
        raw[side] = knee, (knee[0] + BONE * math.sin(shin), knee[1] - BONE * math.cos(shin))
    hip_y = ANKLE_Y - min(ankle[1] for _, ankle in raw.values())
    return {
        side: ((0.0, hip_y), (knee[0], hip_y + knee[1]), (ankle[0], hip_y + ankle[1]))
        for side, (knee, ankle) in raw.items()
    }


def _side_arm(person: Appearance, side: str, backward: float) -> Joints:
    start = (-0.006, SHOULDER_Y - 0.008)
    if person.held_side == side:
        elbow = (0.035, 0.645)
        return start, elbow, (0.055, 0.86) if person.held == "phone" else (0.12, 0.735)
    swing = 0.15 if person.bag in HAND_CARRIED and person.bag_side == side else -backward
    upper, lower = math.radians(26 * swing - 4), math.radians(26 * swing + 14)
    elbow = (start[0] + 0.148 * math.sin(upper), start[1] - 0.148 * math.cos(upper))
    return start, elbow, (elbow[0] + 0.14 * math.sin(lower), elbow[1] - 0.14 * math.cos(lower))
