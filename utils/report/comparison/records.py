"""The records of finished runs, read from their metrics.json files."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.dataset_name import recorded_name
from utils.errors import UserError, one_line
from utils.ranking.metrics import DIRECTIONS

METRICS_FILE = "metrics.json"
SHOWN = {
    "strategy": "Strategy",
    "dataset": "Dataset",
    "backbone": "Backbone",
    "lora": "LoRA",
    "variant": "Variant",
    "trained_on": "Trained on",
}
SHARES = " °"  # behind the dataset of a training that shares a collection of images with the test
INFO = (*SHOWN, "split", "val_protocol", "skipped_test", "limited", "noise", "identities")
SOURCES = {"code": "the code", "data": "the annotations", "options": "options that the variant does not show"}

NOT_METRICS = ("queries", "skipped")  # keys of a direction's row that are counts


class Run(NamedTuple):
    """A run as recorded: texts in the order of `INFO` and `SOURCES`, and direction -> metric -> percent."""

    file: Path
    info: tuple[str, ...]
    sources: tuple[str, ...]
    seed: int
    finished: str
    metrics: dict[str, dict[str, float]]


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


def read_runs(files: Iterable[str | Path]) -> list[Run]:
    """Returns the runs with these metrics.json files, the first finished first.

    Raises:
        UserError: if there is no file, or one is not a metrics.json.
    """
    runs = sorted((_read(Path(file)) for file in files), key=lambda run: run.finished)
    if not runs:
        raise UserError("there is no metrics.json to compare: train or test something first")
    return runs


def _read(file: Path) -> Run:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        info = report["run"] | {"split": report["split"]}
        provenance = _optional_mapping(report.get("provenance"))
        info["dataset"] = recorded_name(str(info.get("dataset") or ""))
        info["trained_on"] = _trained_on(provenance, info["dataset"])
        return Run(
            file=file,
            info=tuple(one_line(str(info.get(name) or "")) for name in INFO),
            sources=_sources(provenance),
            seed=int(info["seed"]),
            finished=str(report["finished"]),
            metrics={direction: _percentages(report["metrics"][direction]) for direction in DIRECTIONS},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"{file} is not a metrics.json that this framework wrote ({type(error).__name__}: {error}):"
            " delete it or leave its folder out"
        ) from error


def _optional_mapping(value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{one_line(repr(value))} where a mapping is expected")
    return value


def _trained_on(provenance: dict[str, Any] | None, dataset: str) -> str:
    """Returns the dataset of the training if it is not that of the test, with `SHARES` if images may be shared."""
    tested = _optional_mapping((provenance or {}).get("tested")) or {}
    name = one_line(str(tested.get("trained_on") or ""))
    return "" if name in ("", dataset) else name + (SHARES if tested.get("shares_images") else "")


def _percentages(row: Any) -> dict[str, float]:
    """Returns all metrics in a direction's row.

    Raises:
        ValueError: if it has none.
    """
    metrics = {str(name): float(value) for name, value in dict(row).items() if name not in NOT_METRICS}
    if not metrics or not all(map(math.isfinite, metrics.values())):
        raise ValueError("no metrics, or one that is no number")
    return metrics


def _sources(provenance: Any) -> tuple[str, ...]:
    """Returns short texts for a run's code, data and options, in the order of `SOURCES`; empty for older records."""
    if provenance is None:
        return ("",) * len(SOURCES)
    code = provenance["code"]
    changed = "" if code["clean"] else "+" if code["clean"] is not None else "no git"
    commit = f"{(code['commit'] or '')[:12]}{changed} {code['sources'][:12]}".strip()
    return commit, str(provenance["data"]["annotations"])[:12], str(provenance["options"])[:12]
