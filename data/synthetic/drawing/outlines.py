"""The shapes of parts, in body units. A frontal shape is given by its right half, from the top down."""

from typing import Final

from data.synthetic.drawing.canvas import Point

Outline = tuple[Point, ...]


def mirrored(*right: Point) -> Outline:
    """Returns the outline whose half right of the axis is `right`."""
    return right + tuple((-x, y) for x, y in reversed(right))


# fmt: off
# Head, seen from the front (or back).
FRONT_HAIR: Final = {
    "short": mirrored((0.03, 1.01), (0.066, 0.97), (0.062, 0.915), (0.046, 0.95), (0.0, 0.957)),
    "behind long": mirrored((0.06, 0.98), (0.078, 0.88), (0.082, 0.69)),
    "behind bob": mirrored((0.06, 0.98), (0.078, 0.88), (0.082, 0.815)),
    "fringe": mirrored((0.0, 1.016), (0.04, 1.012), (0.07, 0.975), (0.064, 0.9), (0.046, 0.942), (0.006, 0.975)),
}
BACK_HAIR: Final = {
    "short": mirrored((0.03, 1.012), (0.066, 0.975), (0.064, 0.9), (0.05, 0.876), (0.04, 0.856)),
    "long": mirrored((0.03, 1.012), (0.066, 0.975), (0.064, 0.9), (0.082, 0.70), (0.066, 0.68)),
    "bob": mirrored((0.03, 1.012), (0.066, 0.975), (0.064, 0.9), (0.082, 0.83), (0.066, 0.812)),
}
FRONT_MASK: Final = mirrored((0.048, 0.9), (0.044, 0.85), (0.0, 0.818))
CAP: Final = mirrored((0.03, 1.032), (0.07, 0.995), (0.074, 0.935))
BEANIE: Final = mirrored((0.025, 1.045), (0.072, 1.0), (0.075, 0.94))
HAT_CROWN: Final = mirrored((0.058, 1.03), (0.066, 0.95))
CONE: Final = ((-0.15, 0.925), (0.0, 1.05), (0.15, 0.925), (0.0, 0.912))
HELMET: Final = {
    "front": mirrored((0.04, 1.045), (0.092, 0.985), (0.086, 0.905), (0.06, 0.938)),
    "back": mirrored((0.04, 1.045), (0.092, 0.985), (0.086, 0.905), (0.0, 0.9)),
    "side": ((-0.088, 0.905), (-0.092, 0.985), (-0.04, 1.045), (0.04, 1.045), (0.09, 0.985),
             (0.084, 0.945), (0.03, 0.905)),
}
# Head, looking towards positive x.
PROFILE: Final = (
    (-0.05, 0.86), (-0.068, 0.93), (-0.045, 0.985), (0.02, 0.99), (0.056, 0.955), (0.056, 0.925),
    (0.076, 0.888), (0.056, 0.882), (0.056, 0.842), (0.025, 0.826), (-0.01, 0.845),
)
PROFILE_MASK: Final = ((0.03, 0.902), (0.078, 0.898), (0.074, 0.85), (0.045, 0.818), (0.008, 0.84))
SIDE_CROWN: Final = ((0.02, 0.945), (0.056, 0.95), (0.05, 0.99), (0.0, 1.014), (-0.055, 0.99), (-0.078, 0.94))
SIDE_HAIR: Final = {
    "short": (*SIDE_CROWN, (-0.076, 0.895), (-0.066, 0.865), (-0.05, 0.865), (-0.022, 0.9)),
    "long": (*SIDE_CROWN, (-0.076, 0.72), (-0.066, 0.69), (-0.008, 0.69), (0.022, 0.9)),
    "bob": (*SIDE_CROWN, (-0.076, 0.855), (-0.066, 0.825), (-0.008, 0.825), (0.022, 0.9)),
}
# Clothes.
SEAT: Final = ((-1.0, 0.53), (1.0, 0.53), (1.0, 0.44), (0.0, 0.425), (-1.0, 0.44))  # x in half widths of the hip
ROUND_NECK: Final = mirrored((0.045, 0.835), (0.034, 0.79), (0.0, 0.77))
LOW_NECK: Final = mirrored((0.045, 0.835), (0.034, 0.79), (0.0, 0.745))
COLLAR_RIGHT: Final = ((0.0, 0.795), (0.045, 0.84), (0.052, 0.785), (0.022, 0.76))
LAPEL_RIGHT: Final = ((0.018, 0.84), (0.06, 0.82), (0.056, 0.735))
COAT_LAPEL_RIGHT: Final = ((0.0, 0.72), (0.03, 0.835), (0.068, 0.80), (0.05, 0.75))
INNER: Final = mirrored((0.03, 0.822), (0.05, 0.46))
HOOD: Final = {
    "front": mirrored((0.07, 0.835), (0.05, 0.785), (0.0, 0.772)),
    "back": mirrored((0.075, 0.835), (0.07, 0.75), (0.0, 0.715)),
    "side": ((-0.02, 0.83), (-0.075, 0.82), (-0.08, 0.755), (-0.03, 0.77)),
}
POUCH: Final = mirrored((0.045, 0.575), (0.068, 0.49))
SCARF_END: Final = {
    "front": ((0.008, 0.80), (0.06, 0.80), (0.064, 0.64), (0.01, 0.64)),
    "back": ((-0.056, 0.80), (-0.004, 0.80), (0.0, 0.70), (-0.054, 0.70)),
}
# Bags.
BACKPACK: Final = {
    "front": mirrored((0.085, 0.845), (0.134, 0.78), (0.124, 0.54)),
    "back": mirrored((0.07, 0.835), (0.1, 0.77), (0.1, 0.53), (0.08, 0.505)),
    "side": ((-0.055, 0.80), (-0.13, 0.79), (-0.165, 0.72), (-0.17, 0.55), (-0.06, 0.535)),
}
BACKPACK_POCKET: Final = {
    "back": mirrored((0.075, 0.64), (0.075, 0.53)),
    "side": ((-0.115, 0.66), (-0.185, 0.65), (-0.188, 0.56), (-0.115, 0.555)),
}
HANDBAG: Final = mirrored((0.05, 0.0), (0.068, -0.11))  # from the top of the bag
SUITCASE: Final = mirrored((0.072, 0.295), (0.072, 0.022))
# fmt: on
