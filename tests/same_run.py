"""Whether a run that was killed and continued ended as one that was left alone."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import torch

COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "checkpoints", "loops", "global_step")
UNSTEADY = re.compile(r"throughput/|memory/")  # columns that depend on time


def differences(expected: Path, found: Path) -> list[str]:
    """Returns what of the run in the folder `found` is not as in the run `expected`: nothing, if they are the same."""
    names = [sorted(file.name for file in (run / "checkpoints").iterdir()) for run in (expected, found)]
    if names[0] != names[1]:
        return [f"files {names[1]} instead of {names[0]}"]
    told = []
    for name in names[0]:
        saved = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (expected, found)]
        told += [f"{name}: {key}" for key in COMPARED if not equal(saved[0][key], saved[1][key])]
    reports = [json.loads((run / "metrics.json").read_text()) for run in (expected, found)]
    told += [f"metrics.json: {key}" for key in ("metrics", "similarity") if reports[0][key] != reports[1][key]]
    rows = [steady_rows(run / "logs" / "steps.csv") for run in (expected, found)]
    return told + ([] if rows[0] == rows[1] else [f"steps.csv: {len(rows[1])} rows, {len(rows[0])} expected"])


def steady_rows(file: Path) -> list[dict[str, str]]:
    """Returns the rows of steps.csv without what depends on time."""
    with file.open(newline="") as lines:
        return [{k: v for k, v in row.items() if not UNSTEADY.match(k)} for row in csv.DictReader(lines)]


def equal(a: Any, b: Any) -> bool:
    """Whether two contents of checkpoints are the same to the last bit; NaN is NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)
