"""Trains every method of docs/expectations.md with several seeds on the drawn dataset, and tests what was expected.

    uv run benchmarks/methods.py                               all rows, 5 seeds, two runs at a time
    uv run benchmarks/methods.py --rows itc sdm --seeds 1 2    some of them
    uv run benchmarks/methods.py --table                       the table of the runs that are there

A run that has ended is not done again. The table has mean and standard deviation over the seeds, and for each
expectation the difference of the per-query means over the seeds, with its 95 % interval and p, corrected by Holm's
method for the number of expectations. Metrics are those of captions that look for images in the test split.
"""

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from prettytable import PrettyTable, TableStyle

from utils.ranking.positives import RANKS_FILE
from utils.ranking.significance import SIGNIFICANT, PairedTest, corrected
from utils.report.comparison.differences import Measured, compare_means, mean_over_seeds, measure_queries
from utils.report.comparison.groups import Spread

ROOT: Final = Path(__file__).parents[1]
SHOWN: Final = ("R1", "R5", "mAP")


class Row(NamedTuple):
    """A row of the table: its losses in words, and the arguments of trainer.py."""

    losses: str
    command: str


ONE_VIEW: Final = "'~loss.terms.citc' '~loss.terms.simclr'"
HYBRID: Final = (
    "experiment=irra loss=hybrid_circle loss.terms.nitc.views=[image] loss.terms.cross_modal_circle.views=[image] "
    + ONE_VIEW
)
NITC: Final = f"experiment=irra loss=baseline loss.terms.nitc.views=[image] {ONE_VIEW}"
THREE_IMAGES: Final = "dataset.num_instance=3 dataset.batch_size=24"
ROWS: Final[dict[str, "Row"]] = {
    "itc": Row("ITC", "experiment=irra loss=itc"),
    "nitc": Row("N-ITC", NITC),
    "sdm": Row("SDM, scale 50", "experiment=irra loss=sdm"),
    "sdm_14": Row("SDM, scale 14.3", "experiment=irra loss=sdm loss.terms.sdm.logit_scale=14.3"),
    "itc_24": Row("ITC, 8 persons x 3 images", f"experiment=irra loss=itc {THREE_IMAGES}"),
    "nitc_24": Row("N-ITC, 8 persons x 3 images", f"{NITC} {THREE_IMAGES}"),
    "irra": Row("SDM, ID, MLM (IRRA)", "experiment=irra"),
    "fmfa": Row("A-SDM, ID, MLM, EFA (FMFA)", "experiment=fmfa"),
    "in_modal": Row(
        "N-ITC, in-modal Circle",
        "experiment=irra loss=in_modal_circle loss.terms.nitc.views=[image] "
        f"loss.terms.in_modal_circle.views=[image] {ONE_VIEW}",
    ),
    "nc_itc": Row("NC-ITC", f"experiment=irra loss=nc_itc loss.terms.nc_itc.views=[image] {ONE_VIEW}"),
    "pure": Row(
        "cross-modal Circle over the batch",
        f"experiment=irra loss=pure_circle loss.terms.cross_modal_circle.views=[image] {ONE_VIEW}",
    ),
    "hybrid": Row("N-ITC, cross-modal Circle over the batch", HYBRID),
    "anchor": Row("N-ITC, cross-modal Circle per anchor, gamma 32", "experiment=irra loss=hybrid_circle_one_view"),
    "nitc_3": Row("N-ITC, 3 epochs", f"{NITC} trainer.max_epochs=3"),
    "hybrid_3": Row("as hybrid, 3 epochs", f"{HYBRID} trainer.max_epochs=3"),
    "curriculum_3": Row(
        "as hybrid_3, with a ramp",
        f"{HYBRID} trainer.max_epochs=3 loss.terms.cross_modal_circle.ramp={{first:0,last:2}}",
    ),
    "cpcl": Row("PCM, ICPM, OPLM (CPCL), no identities, batches of 16", "experiment=cpcl"),
    "itc_alone": Row("ITC, batches of 16", "experiment=cpcl loss=itc pseudo_label=none"),
    "cmr": Row("ranking, CMR, ID with parts", "experiment=part_cmr"),
    "ranking": Row("ranking, ID with parts", "experiment=part_cmr '~loss.terms.cmr'"),
    "lora": Row("SDM, scale 50, LoRA of rank 32", "experiment=irra loss=sdm lora=default"),
}


class Expectation(NamedTuple):
    """That `better` has the higher `metric`, for a reason that docs/expectations.md gives."""

    better: str
    worse: str
    metric: str = "R1"


EXPECTED: Final = (
    Expectation("nitc", "itc"),
    Expectation("sdm", "itc"),
    Expectation("nitc", "itc", "mAP"),
    Expectation("nitc_24", "itc_24", "mAP"),
    Expectation("sdm_14", "itc", "mAP"),
    Expectation("irra", "sdm"),
    Expectation("fmfa", "irra"),
    Expectation("in_modal", "nitc"),
    Expectation("nc_itc", "nitc"),
    Expectation("nitc", "pure"),
    Expectation("hybrid", "nitc"),
    Expectation("curriculum_3", "hybrid_3"),
    Expectation("curriculum_3", "nitc_3"),
    Expectation("anchor", "nitc"),
    Expectation("cpcl", "itc_alone"),
    Expectation("cmr", "ranking"),
    Expectation("sdm", "lora"),
)


NOISY: Final = "dataset.proportion=0.5 trainer.max_epochs=8"  # so many epochs that a method can learn noise by heart
NOISE_ROWS: Final[dict[str, "Row"]] = {
    "sdm_0": Row("SDM", f"experiment=irra loss=sdm {NOISY}"),
    "rde_0": Row("RDE", f"experiment=rde {NOISY}"),
    "rde_20": Row("RDE, 20 % noise", f"experiment=rde {NOISY} dataset.noise_rate=0.2"),
    "sdm_50": Row("SDM, 50 % noise", f"experiment=irra loss=sdm {NOISY} dataset.noise_rate=0.5"),
    "rde_50": Row("RDE, 50 % noise", f"experiment=rde {NOISY} dataset.noise_rate=0.5"),
}
NOISE_EXPECTED: Final = (Expectation("rde_50", "sdm_50"), Expectation("rde_0", "sdm_0"))


class Study(NamedTuple):
    """Rows that are compared with each other, and what is expected of them."""

    rows: dict[str, Row]
    expected: tuple[Expectation, ...]


STUDIES: Final = {"methods": Study(ROWS, EXPECTED), "noise": Study(NOISE_ROWS, NOISE_EXPECTED)}


def train(row: Row, folder: Path, seed: int) -> int:
    """Trains and tests a row with a seed, unless `folder` has the result; returns the exit status."""
    if (folder / RANKS_FILE).is_file():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *shlex.split(row.command),
        f"seed={seed}",
        f"hydra.run.dir={folder}",
        "logger=csv",
        "shown_queries=0",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "screen.txt").open("w") as screen:
        line = [sys.executable, "trainer.py", *command]
        status = subprocess.run(line, cwd=ROOT, env=environment, stdout=screen, stderr=screen, check=False).returncode
    told = "done" if status == 0 else f"status {status}, see {folder}/screen.txt"
    print(f"{row.losses}, seed {seed}: {told}", flush=True)
    return status


def found(row: str, out: Path, metric: str) -> list[Measured]:
    """Returns the metric of every query for each run of a row."""
    return [measure_queries(file, metric)["t2i"] for file in sorted((out / row).glob(f"*/{RANKS_FILE}"))]


def compared(expected: Expectation, out: Path) -> PairedTest:
    """Returns how much better the row that should be better is, by its means over seeds."""
    worse, better = (mean_over_seeds(found(row, out, expected.metric)) for row in (expected.worse, expected.better))
    return compare_means(worse, better)


def print_tables(study: Study, out: Path) -> None:
    """Prints the table of the rows and that of the expectations, of what is there."""
    runs = {row: [found(row, out, metric) for metric in SHOWN] for row in study.rows}
    rows = PrettyTable(["row", "losses", "n", *SHOWN], align="l")
    for row, own in runs.items():
        if own[0]:
            spreads = [Spread.of([float(run.values.mean()) for run in measured]) for measured in own]
            rows.add_row([row, study.rows[row].losses, len(own[0]), *spreads])
    judged = [expected for expected in study.expected if runs[expected.better][0] and runs[expected.worse][0]]
    tests = corrected([compared(expected, out) for expected in judged])
    expectations = PrettyTable(["expected", "metric", "difference [95 %], p (Holm)", "shown"], align="l")
    for expected, test in zip(judged, tests, strict=True):
        shown = test.p_value < SIGNIFICANT
        verdict = "no difference shown" if not shown else "yes" if test.difference > 0 else "the opposite"
        expectations.add_row([f"{expected.better} > {expected.worse}", expected.metric, test, verdict])
    for table in (rows, expectations):
        table.set_style(TableStyle.MARKDOWN)
        print(f"\n{table}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--rows", nargs="+", help="of the study; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--out", type=Path, help="outputs/STUDY by default")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    study = STUDIES[options.study]
    out = (options.out or ROOT / "outputs" / options.study).absolute()
    chosen = {name: row for name, row in study.rows.items() if name in (options.rows or study.rows)}
    jobs = (
        [] if options.table else [(row, out / name / str(s), s) for s in options.seeds for name, row in chosen.items()]
    )
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [status for status in pool.map(lambda job: train(*job), jobs) if status]
    print_tables(study, out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
