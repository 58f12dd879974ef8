"""Curves of the training, from the run's logs/steps.csv."""

import csv
import math
from pathlib import Path
from typing import Final, NamedTuple

POINTS: Final = 400  # of a curve, at most
STEPS_FILE: Final = Path("logs", "steps.csv")
CHARTS: Final = {  # title -> beginnings of the names of its curves
    "loss": ("train/loss/", "train/loss"),
    "weighted loss of each term": ("train/weighted/",),
    "share of each term in the gradient": ("train/gradient/",),
    "weight of each term": ("train/weight/",),
    "validation, text to image, %": ("val/t2i/",),
    "validation, image to text, %": ("val/i2t/",),
    "learning rate": ("lr/",),
    "images per second": ("throughput/images_per_s",),
}


class Chart(NamedTuple):
    """Curves in one chart: name -> its points (step, value)."""

    title: str
    curves: dict[str, list[tuple[float, float]]]


def read_charts(folder: Path) -> list[Chart]:
    """Returns the charts of the run in `folder` that have a curve of two points; none without a CSV log."""
    file = folder / STEPS_FILE
    if not file.exists():
        return []
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("step")]
    charts = []
    for title, beginnings in CHARTS.items():
        names = [name for name in (rows[0] if rows else []) if name and name.startswith(beginnings)]
        curves = {_short(name, beginnings): _points(rows, name) for name in names}
        if shown := {name: points for name, points in curves.items() if len(points) > 1}:
            charts.append(Chart(title, shown))
    return charts


def _short(name: str, beginnings: tuple[str, ...]) -> str:
    """Returns the name without what all curves of a chart have in common."""
    if len(beginnings) > 1:
        return name.removeprefix("train/").removeprefix("val/")
    return name.removeprefix(beginnings[0]) or name.rpartition("/")[2]


def _points(rows: list[dict[str, str]], name: str) -> list[tuple[float, float]]:
    """Returns the finite values of a curve, at most about `POINTS` of them, the last one included."""
    found = [(_number(row["step"]), _number(row.get(name))) for row in rows]
    found = [(step, value) for step, value in found if math.isfinite(step) and math.isfinite(value)]
    every = max(1, -(-len(found) // POINTS))
    return found[(len(found) - 1) % every :: every]


def _number(text: str | None) -> float:
    """Returns the number in a cell, with seven digits; NaN if there is none."""
    try:
        return float(f"{float(text or 'nan'):.7g}")
    except ValueError:
        return math.nan
