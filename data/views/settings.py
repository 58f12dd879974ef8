"""Checks of the settings of transforms: wrong ones would spoil images without a word."""

from collections.abc import Sequence
from typing import Final

SMALLEST: Final = 1e-6  # for numbers that have to be above 0
LARGEST: Final = 1e4  # for numbers without a natural bound


def checked(name: str, value: float, least: float, most: float) -> float:
    """Returns a number that lies in [least, most].

    Raises:
        ValueError: it is no number, or lies elsewhere.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name}: {value} given, expected a number from {least:g} to {most:g}")
    return value


def checked_range(name: str, value: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """Returns the two ends of a range that lies in [least, most].

    Raises:
        ValueError: it is no range, or lies elsewhere.
    """
    if isinstance(value, Sequence) and len(value) == 2:
        low, high = (checked(name, end, least, most) for end in value)
        if low <= high:
            return low, high
    raise ValueError(f"{name}: {value} given, expected a range such as [{least:g}, {most:g}]")
