"""The table of one run, and the files that store its results.

python -m utils.report FOLDER_OR_FILE...      compares the runs in the folders, over seeds
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from utils.checkpoints.disk import write_whole
from utils.errors import UserError
from utils.ranking.metrics import DIRECTIONS, RetrievalMetrics
from utils.report.comparison import (
    CHOSEN_ON_TEST,
    FORMATS,
    METRICS_FILE,
    as_csv,
    compare_runs,
    find_metrics,
    with_differences,
)


def metrics_table(metrics: Mapping[str, RetrievalMetrics], run: Mapping[str, Any], *, split: str = "test") -> str:
    """Returns a title line and the usual table: t2i and i2t in percent, two decimals.

    Args:
        metrics: "t2i" and "i2t" -> metrics; further rankings get rows below.
        run: see `save_metrics`; the table uses `dataset`, `val_protocol`, `skipped_<split>`, `limited`, `noise`,
            and `identities`.
        split: the split that was ranked.
    """
    table = PrettyTable(["Task", *metrics["t2i"].values])
    for task, own in metrics.items():
        table.add_row([task, *(f"{value:.2f}" for value in own.values.values())])
    title = f"{run['dataset']}, {split} split"
    if run["val_protocol"] == "paper":
        title += f"; {CHOSEN_ON_TEST}"
    title += "".join(f"; {run[key]}" for key in ("limited", "noise", "identities") if run.get(key))
    lost = [
        f"{direction}: {metrics[direction].skipped} queries without a positive were left out"
        for direction in DIRECTIONS
        if metrics[direction].skipped
    ]
    if images := run.get(f"skipped_{split}"):
        lost.append(f"images left out with their captions because they cannot be read: {images:,}")
    return "\n".join([title, str(table), *lost])


def save_metrics(
    folder: str | Path,
    metrics: Mapping[str, RetrievalMetrics],
    run: Mapping[str, Any],
    *,
    split: str = "test",
    similarity: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    reranked: Mapping[str, Any] | None = None,
    changed: Sequence[Mapping[str, Any]] = (),
    efficiency: Mapping[str, Any] | None = None,
) -> Path:
    """Writes metrics.json and metrics.csv, in full precision, into `folder` and returns the path of metrics.json.

    Args:
        metrics: "t2i" and "i2t" -> metrics, and those of each language of the queries.
        run: the settings that distinguish the run from others: strategy, dataset, backbone, lora, seed; val_protocol
            ("paper" if the checkpoint was chosen on the test split); skipped_<split> (the number of its images that
            were left out because they cannot be read); variant (all other overrides as text); limited (a text that
            says how the run was limited); noise (a text that says which training captions were moved); identities (a
            text that says that the data has none).
        split: the split that was ranked.
        similarity: statistics of the pairs' similarities, for metrics.json, where NaN becomes null.
        provenance: the run's record, for metrics.json; see `utils.report.run_record`.
        reranked, changed, efficiency: the result of the re-ranker, those of changed captions and images, and what the
            encoder costs, for metrics.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {ranking: own.as_row() for ranking, own in metrics.items()}
    finished = datetime.now(UTC).isoformat(timespec="microseconds")
    report: dict[str, Any] = {"run": dict(run), "split": split, "finished": finished, "metrics": rows}
    if similarity is not None:
        report["similarity"] = {name: None if math.isnan(value) else value for name, value in similarity.items()}
    if reranked is not None:
        report["reranked"] = dict(reranked)
    if changed:
        report["changed"] = list(changed)
    if efficiency is not None:
        report["efficiency"] = dict(efficiency)
    if provenance is not None:
        report["provenance"] = dict(provenance)
    table = [{**run, "split": split, "task": direction, **row} for direction, row in rows.items()]
    write_whole(folder / "metrics.csv", as_csv(table))
    write_whole(folder / METRICS_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return folder / METRICS_FILE


def main() -> None:
    """Prints or writes the comparison of the runs given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.report", description="Compares runs over seeds.")
    parser.add_argument("paths", nargs="+", metavar="FOLDER_OR_FILE", help="folders of runs or metrics.json")
    parser.add_argument(
        "--baseline",
        metavar="STRATEGY",
        help="the row to which differences are tested, such as itc or 'itc gamma=64'; default: baseline or itc, if "
        "there is one such row",
    )
    parser.add_argument("--metric", default="R1", help="the metric whose differences are tested (R1)")
    parser.add_argument(
        "--mixed", action="store_true", help="average runs over seeds also where code, data or options differ"
    )
    parser.add_argument("--format", choices=[*FORMATS, "html"], default="table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the comparison to FILE, print nothing")
    options = parser.parse_args()
    comparison = compare_runs(find_metrics(options.paths), mixed=options.mixed)
    comparison = with_differences(comparison, options.baseline, options.metric)
    if options.format == "html":
        from utils.report.page.comparison_page import comparison_page

        text = comparison_page(comparison, None if options.out is None else options.out.parent)
    else:
        text = FORMATS[options.format](comparison).removesuffix("\n")
    if options.out is None:
        print(text)
        return
    try:
        write_whole(options.out, f"{text}\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out {options.out} cannot be written ({reason}): name another file") from error
