"""Groups of runs that differ only in the seed: the rows of a comparison."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from string import ascii_lowercase
from typing import NamedTuple

from utils.ranking.metrics import DIRECTIONS
from utils.ranking.significance import PairedTest
from utils.report.comparison.records import INFO, SHOWN, SOURCES, Run

QUERIES = {
    "dataset": "another dataset",
    "split": "another split",
    "limited": "limited otherwise",
    "skipped_test": "other images left out",
}


class Spread(NamedTuple):
    """Mean and sample standard deviation of a metric over seeds; the deviation is None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of the values of all seeds."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed: their `INFO`, `SOURCES`, and direction -> metric -> spread.

    It has only the metrics that all of its runs have.

    sources: the runs' code, data and options as recorded; texts are empty if unknown or if runs are mixed.
    runs: in the order of their seeds.
    mark: a letter, if another group has the same info but other sources.
    differences: direction -> the test against the baseline, with the corrected p, or why there is none.
    """

    info: dict[str, str]
    sources: dict[str, str]
    runs: list[Run]
    spreads: dict[str, dict[str, Spread]]
    mark: str = ""
    differences: dict[str, PairedTest | str] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [run.seed for run in self.runs]

    @property
    def strategy(self) -> str:
        """The strategy with what sets it apart from that of groups with the same info or another protocol."""
        mark = f" [{self.mark}]" if self.mark else ""
        return self.info["strategy"] + mark + (" *" if self.info["val_protocol"] == "paper" else "")

    @property
    def queries(self) -> tuple[str, ...]:
        """The texts of `QUERIES`; only groups that have the same can have the same queries."""
        return tuple(self.info[name] for name in QUERIES)


def group_runs(runs: Iterable[Run], *, mixed: bool = False) -> list[Group]:
    """Returns the groups of `runs`, sorted by dataset, backbone and LoRA, then the best t2i R@1 first.

    Args:
        runs: the first finished first; of those with the same info and seed, the last one counts.
        mixed: whether runs with different sources form one group.
    """
    newest: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        newest[run.info, ("",) * len(SOURCES) if mixed else run.sources][run.seed] = run
    groups = _marked([_group(*key, by_seed) for key, by_seed in newest.items()])
    return sorted(
        groups,
        key=lambda group: (
            *(group.info[name] for name in ("dataset", "backbone", "lora")),
            -(group.spreads["t2i"]["R1"].mean if "R1" in group.spreads["t2i"] else 0),
        ),
    )


def alike(groups: Iterable[Group]) -> list[list[Group]]:
    """Returns lists of the groups that have the same info."""
    found: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in groups:
        found[tuple(group.info.values())].append(group)
    return list(found.values())


def columns(groups: Sequence[Group]) -> list[str]:
    """Returns the keys of `SHOWN` that tell the groups apart, the strategy always."""
    return [name for name in SHOWN if name == "strategy" or len({group.info[name] for group in groups}) > 1]


def _marked(groups: Sequence[Group]) -> list[Group]:
    """Returns the groups; those that share their info with another group get a mark."""
    letters = (letter for length in count(1) for letter in map("".join, product(ascii_lowercase, repeat=length)))
    return [replace(g, mark=next(letters)) if len(same) > 1 else g for same in alike(groups) for g in same]


def _group(info: tuple[str, ...], sources: tuple[str, ...], by_seed: dict[int, Run]) -> Group:
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    metrics = [run.metrics for run in by_seed.values()]
    common = {d: [name for name in metrics[0][d] if all(name in own[d] for own in metrics)] for d in DIRECTIONS}
    spreads = {d: {name: Spread.of([own[d][name] for own in metrics]) for name in common[d]} for d in DIRECTIONS}
    named = dict(zip(INFO, info, strict=True)), dict(zip(SOURCES, sources, strict=True))
    return Group(*named, runs, spreads)
