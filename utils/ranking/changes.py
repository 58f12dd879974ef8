"""The metrics of changed captions and images, and of captions of different lengths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prettytable import PrettyTable

from utils.errors import UserError, check_choice
from utils.ranking.metrics import DIRECTIONS, Metric, RetrievalMetrics, measure
from utils.ranking.positives import Ranks

SIDES: Final = ("captions", "images")
GROUPS: Final = 4  # of captions by their length


class Change(NamedTuple):
    """A change of the test captions or images, at several levels.

    of: "captions" or "images".
    levels: shares, from 0 to 1.
    apply: function of a text or of uint8 pixels ``(3, H, W)``, and `level`.
    """

    name: str
    of: str
    levels: Sequence[float]
    apply: Callable[..., Any]

    def checked(self) -> "Change":
        """Returns itself.

        Raises:
            UserError: `of` is neither captions nor images, or `levels` are not a list of numbers from 0 to 1.
        """
        check_choice(f"evaluation.changes.{self.name}.of", self.of, SIDES)
        levels = self.levels if isinstance(self.levels, Sequence) and not isinstance(self.levels, str) else ()
        if not levels or not all(type(level) in (int, float) and 0 <= level <= 1 for level in levels):
            raise UserError(
                f"evaluation.changes.{self.name}.levels: {self.levels} given, expected a list of numbers from 0 to 1, "
                "such as [0.5, 1.0]"
            )
        return self


class Changed(NamedTuple):
    """The metrics of a change at a level, or of captions of some lengths ("caption length")."""

    change: str
    level: str
    metrics: Mapping[str, RetrievalMetrics]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain containers, for metrics.json."""
        rows = {direction: found.as_row() for direction, found in self.metrics.items()}
        return {"change": self.change, "level": self.level, "metrics": rows}


def by_length(captions: Sequence[str], ranks: Ranks, measures: Mapping[str, Metric]) -> list[Changed]:
    """Returns the metrics of captions from short to long, in about `GROUPS` groups of equal size."""
    words = np.array([len(caption.split()) for caption in captions])
    edges = np.unique(np.quantile(words, np.linspace(0, 1, GROUPS + 1)[1:]).astype(int))
    found, shortest = [], words.min()
    for longest in edges:
        own: NDArray[Any] = np.flatnonzero((words >= shortest) & (words <= longest))
        if len(own):
            figures = {"t2i": measure(ranks.take(own), measures)}
            found.append(Changed("caption length", f"{shortest} to {longest} words", figures))
        shortest = longest + 1
    return found


def changes_table(plain: Mapping[str, RetrievalMetrics], found: Sequence[Changed], metric: str) -> str:
    """Returns the table of changed tests, with differences in points to the plain one."""
    table = PrettyTable(["change", "level", *(f"{d} {metric}" for d in DIRECTIONS)], align="r")
    table.align["change"] = "l"
    table.add_row(["none", "", *(f"{plain[direction].values[metric]:.2f}" for direction in DIRECTIONS)])
    for changed in found:
        cells = []
        for direction in DIRECTIONS:
            own = changed.metrics.get(direction)
            value = 0.0 if own is None else own.values[metric]
            cells.append("" if own is None else f"{value:.2f} ({value - plain[direction].values[metric]:+.2f})")
        table.add_row([changed.change, changed.level, *cells])
    return str(table)
