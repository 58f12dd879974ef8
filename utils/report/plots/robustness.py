"""Curves of a test with changed captions and images, beside the plain test."""

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from utils.ranking.metrics import DIRECTIONS
from utils.report.plots.figure import FAINT, INK, RIGHT, WRONG, new_figure, styled
from utils.report.plots.pictures import Picture

if TYPE_CHECKING:
    from utils.report.tested import Tested

COLUMNS, ROW = 2, 1.0  # panels in a row, and height of a row in inches
LINES = dict(zip(DIRECTIONS, ((RIGHT, "-"), (WRONG, "--")), strict=True))


def robustness(tested: "Tested") -> Picture | None:
    """Returns the first metric at each level of each change, or None if nothing was changed."""
    return Picture(robustness_figure(tested)) if tested.changed else None


@styled
def robustness_figure(tested: "Tested") -> Figure:
    """Returns a figure with a panel for each change; thin lines are the plain test."""
    names = list(dict.fromkeys(found.change for found in tested.changed))
    metric = next(iter(tested.metrics["t2i"].values))
    rows = -(-len(names) // COLUMNS)
    figure = new_figure(ROW * rows + 0.4)
    panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for place in panels.flat[len(names) :]:
        place.set_axis_off()
    for place, name in zip(panels.flat, names, strict=False):
        levels = [found for found in tested.changed if found.change == name]
        for direction, (color, line) in LINES.items():
            values = [found.metrics[direction].values[metric] for found in levels if direction in found.metrics]
            if values:
                place.axhline(tested.metrics[direction].values[metric], color=color, linestyle=line, linewidth=0.5)
                place.plot(range(len(values)), values, line, color=color, marker="o", label=direction)
        shown = [found.level.removesuffix(" words").replace(" to ", "-") for found in levels]
        place.set_xticks(range(len(levels)), shown)
        place.set_xlim(-0.3, len(levels) - 0.7)
        place.set_ylim(bottom=0)
        place.set_title(name.replace("_", " "), color=INK, loc="left")
        place.spines[["top", "right"]].set_visible(False)
    figure.supylabel(f"{metric}, %", color=FAINT, fontsize="medium")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure
