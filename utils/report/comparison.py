"""Comparison of finished runs over seeds, from their metrics.json files."""

import csv
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

from prettytable import PrettyTable

from utils.errors import UserError
from utils.ranking.metrics import DIRECTIONS, METRICS

METRICS_FILE = "metrics.json"
CHOSEN_ON_TEST = "checkpoint chosen on the test split (val_protocol=paper)"
SHOWN = {
    "strategy": "Strategy",
    "dataset": "Dataset",
    "backbone": "Backbone",
    "lora": "LoRA",
    "variant": "Variant",
}
INFO = (*SHOWN, "split", "val_protocol", "skipped_test", "limited")
SOURCES = {"code": "the code", "data": "the annotations", "options": "options that the variant does not show"}

NOT_METRICS = ("queries", "skipped")  # keys of a direction's row that are counts

Metrics = dict[str, dict[str, float]]


class Spread(NamedTuple):
    """Mean and sample standard deviation of a metric over seeds; the deviation is None for a single seed."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed: their `INFO`, `SOURCES`, seeds, and direction -> metric -> spread.

    It has only the metrics that all of its runs have.

    sources: the runs' code, data and options as recorded; texts are empty if unknown or if runs are mixed.
    mark: a letter, if another group has the same info but other sources.
    """

    info: dict[str, str]
    sources: dict[str, str]
    seeds: list[int]
    spreads: dict[str, dict[str, Spread]]
    mark: str = ""


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, sorted by dataset, backbone and LoRA, then the best t2i R@1 first. As a string: one table.

    older: the number of runs left out because a newer run has the same info and seed.
    """

    groups: list[Group]
    older: int

    def __str__(self) -> str:
        limits, metrics = self._limits(), self._metrics()
        columns = [name for name in SHOWN if name == "strategy" or len(self._values(name)) > 1]
        table = PrettyTable([*(SHOWN[name] for name in columns), "n", "Task", *metrics], align="r")
        table.align.update({SHOWN[name]: "l" for name in columns})
        for direction in DIRECTIONS:
            for group in self.groups:
                names = [group.info[name] for name in columns]
                names[0] += f" [{group.mark}]" if group.mark else ""
                names[0] += " *" if group.info["val_protocol"] == "paper" else ""
                names[0] += " †" if group.info["skipped_test"] else ""
                names[0] += f" [{limits.index(group.info['limited']) + 1}]" if group.info["limited"] else ""
                cells = [str(group.spreads[direction].get(metric, "-")) for metric in metrics]
                table.add_row([*names, len(group.seeds), direction, *cells], divider=group is self.groups[-1])
        common = [self.groups[0].info[name] for name in SHOWN if name not in columns]
        title = ", ".join([*filter(None, common), f"{' and '.join(self._values('split'))} split"])
        return "\n".join([title, str(table), *self._notes()])

    def csv(self) -> str:
        """Returns the table as CSV in full precision, with a line for each group and direction."""
        metrics = self._metrics()
        blank = dict.fromkeys([*metrics, *(f"{metric}_std" for metric in metrics)])
        return as_csv(
            [
                group.info
                | {"task": direction, "n": len(group.seeds), "seeds": " ".join(map(str, group.seeds))}
                | blank
                | {metric: spread.mean for metric, spread in group.spreads[direction].items()}
                | {f"{metric}_std": spread.deviation for metric, spread in group.spreads[direction].items()}
                | group.sources
                for direction in DIRECTIONS
                for group in self.groups
            ]
        )

    def _metrics(self) -> list[str]:
        """Returns the metrics that any group has: first `METRICS`, then others in the order of the groups."""
        found = {metric: None for group in self.groups for own in group.spreads.values() for metric in own}
        return [*(metric for metric in METRICS if metric in found), *(m for m in found if m not in METRICS)]

    def _values(self, name: str) -> list[str]:
        return sorted({group.info[name] for group in self.groups})

    def _limits(self) -> list[str]:
        """Returns the texts that say how runs were limited, in the order of their marks [1], [2], ..."""
        return [text for text in self._values("limited") if text]

    def _notes(self) -> list[str]:
        notes = []
        if any(len(group.seeds) > 1 for group in self.groups):
            notes.append("mean ± sample standard deviation over n seeds")
        if "paper" in self._values("val_protocol"):
            notes.append(f"* {CHOSEN_ON_TEST}")
        if skipped := " or ".join(filter(None, self._values("skipped_test"))):
            notes.append(f"† test images left out because they cannot be read: {skipped}")
        notes += [f"[{number}] {text}" for number, text in enumerate(self._limits(), 1)]
        notes += [_not_averaged(alike) for alike in _alike(self.groups) if len(alike) > 1]
        if self.older:
            notes.append(f"runs left out because a newer run has the same settings and seed: {self.older}")
        return notes


def compare_runs(files: Iterable[str | Path], *, mixed: bool = False) -> Comparison:
    """Returns the comparison of the runs with these metrics.json files; its `str()` is the table.

    Args:
        mixed: whether to average runs with different code, data or options; else they form separate groups.

    Raises:
        UserError: if there is no file, or one is not a metrics.json.
    """
    runs = sorted((_read(Path(file)) for file in files), key=lambda run: run.finished)
    if not runs:
        raise UserError("there is no metrics.json to compare: train or test something first")
    newest: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[int, Metrics]] = defaultdict(dict)
    for run in runs:
        newest[run.info, ("",) * len(SOURCES) if mixed else run.sources][run.seed] = run.metrics
    groups = _marked([_group(*key, by_seed) for key, by_seed in newest.items()])
    groups.sort(
        key=lambda group: (
            *(group.info[name] for name in ("dataset", "backbone", "lora")),
            -(group.spreads["t2i"]["R1"].mean if "R1" in group.spreads["t2i"] else 0),
        )
    )
    return Comparison(groups, older=len(runs) - sum(len(group.seeds) for group in groups))


def find_metrics(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the metrics.json files among `paths` and, at any depth, in the folders among them.

    Raises:
        UserError: if a path does not exist.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: name a folder of runs or a metrics.json")
        found += sorted(path.rglob(METRICS_FILE)) if path.is_dir() else [path]
    return found


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows with equal keys as CSV text, with the columns in the order of the keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class _Run(NamedTuple):
    info: tuple[str, ...]
    sources: tuple[str, ...]
    seed: int
    finished: str
    metrics: Metrics


def _read(file: Path) -> _Run:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        info = report["run"] | {"split": report["split"]}
        return _Run(
            info=tuple(str(info.get(name) or "") for name in INFO),
            sources=_sources(report.get("provenance")),
            seed=int(info["seed"]),
            finished=report["finished"],
            metrics={direction: _percentages(report["metrics"][direction]) for direction in DIRECTIONS},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a metrics.json that this framework wrote ({type(error).__name__}: {error}):"
            " delete it or leave its folder out"
        ) from error


def _percentages(row: Any) -> dict[str, float]:
    """Returns all metrics in a direction's row.

    Raises:
        ValueError: if it has none.
    """
    metrics = {str(name): float(value) for name, value in dict(row).items() if name not in NOT_METRICS}
    if not metrics:
        raise ValueError("no metrics")
    return metrics


def _sources(provenance: Any) -> tuple[str, ...]:
    """Returns short texts for a run's code, data and options, in the order of `SOURCES`; empty for older records."""
    if provenance is None:
        return ("",) * len(SOURCES)
    code = provenance["code"]
    changed = "" if code["clean"] else "+" if code["clean"] is not None else "no git"
    commit = f"{(code['commit'] or '')[:12]}{changed} {code['sources'][:12]}".strip()
    return commit, str(provenance["data"]["annotations"])[:12], str(provenance["options"])[:12]


def _alike(groups: Iterable[Group]) -> list[list[Group]]:
    """Returns lists of the groups that have the same info."""
    alike: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in groups:
        alike[tuple(group.info.values())].append(group)
    return list(alike.values())


def _marked(groups: Sequence[Group]) -> list[Group]:
    """Returns the groups; those that share their info with another group get a mark."""
    letters = (letter for length in count(1) for letter in map("".join, product(ascii_lowercase, repeat=length)))
    alike = _alike(groups)
    return [replace(g, mark=next(letters)) if len(same) > 1 else g for same in alike for g in same]


def _not_averaged(groups: Sequence[Group]) -> str:
    """Returns the note on groups with the same info: their marks, and the sources in which they differ."""
    groups = sorted(groups, key=lambda group: (len(group.mark), group.mark))
    marks = ", ".join(f"[{group.mark}] (seed {' '.join(map(str, group.seeds))})" for group in groups)
    differ = [
        f"{name} ({', '.join(group.sources[source] or 'not recorded' for group in groups)})"
        for source, name in SOURCES.items()
        if len({group.sources[source] for group in groups}) > 1
    ]
    return f"{marks} are not averaged, differing in {' and '.join(differ)}; python -m utils.report --mixed does"


def _group(info: tuple[str, ...], sources: tuple[str, ...], by_seed: dict[int, Metrics]) -> Group:
    def spread(values: list[float]) -> Spread:
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    runs = list(by_seed.values())
    common = {d: [metric for metric in runs[0][d] if all(metric in run[d] for run in runs)] for d in DIRECTIONS}
    spreads = {d: {metric: spread([run[d][metric] for run in runs]) for metric in common[d]} for d in DIRECTIONS}
    named = dict(zip(INFO, info, strict=True)), dict(zip(SOURCES, sources, strict=True))
    return Group(*named, sorted(by_seed), spreads)
