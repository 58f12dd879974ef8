"""Pre-trains on shards of drawn strangers, then fine-tunes with experiment=irra on the drawn data, with several seeds.

    uv run benchmarks/pretrain.py --seeds 1 2 3                      all rows, two runs at a time
    uv run benchmarks/pretrain.py --rows start noise_aware --seeds 1
    uv run benchmarks/pretrain.py --table                            the table of the runs that are there

The strangers are another drawn population (another seed) without identities; they are written into shards by `python -m
data.shards`. Each row is pre-trained and fine-tuned with the same seed, so its spread is that of both. Checkpoints of
both are chosen on the validation split of the drawn dataset. A run that has ended is not done again.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.methods import ROOT, Expectation, Row, Study, print_tables, train
from data.synthetic import SyntheticSpec, generate

SEED: Final = 1  # of the population of strangers; that of the drawn dataset is 0
PRETRAINED: Final = {  # row -> the words of the table, and the arguments of the pre-training
    "plain": ("SDM on whole captions", "loss=sdm masking=uniform"),
    "uniform": ("SDM on masked captions, 15 % of the words", "masking=uniform"),
    "noise_aware": ("SDM on masked captions, NAM", ""),
}
EXPECTED: Final = (
    Expectation("plain", "start"),
    Expectation("noise_aware", "start"),
    Expectation("noise_aware", "uniform"),
)


def study(more: str) -> Study:
    """Returns the rows of the table; `more` are further arguments of each fine-tuning."""
    rows = {"start": Row("IRRA, not pre-trained", f"experiment=irra {more}")}
    rows |= {name: Row(f"pre-trained: {words}", f"experiment=irra {more}") for name, (words, _) in PRETRAINED.items()}
    return Study(rows, EXPECTED)


def write_shards(out: Path, persons: int) -> Path:
    """Returns the folder of the shards with `persons` strangers, after writing them unless it is there."""
    root, shards = out / "strangers", out / "shards"
    folder = generate(root, SyntheticSpec(train=persons, val=1, test=1, pretrain=1, seed=SEED))
    described = ["dataset=custom", f"dataset.annotations={folder}/data_captions.json", f"dataset.images={folder}/imgs"]
    columns = ["dataset.columns.captions=en_captions", "dataset.columns.identity=none"]
    if not shards.exists():
        line = [sys.executable, "-m", "data.shards", str(shards), *described, *columns]
        subprocess.run(line, cwd=ROOT, check=True)
    return shards


def run(name: str, row: Row, out: Path, seed: int, pretraining: str) -> int:
    """Pre-trains a row, unless it is `start`, and fine-tunes it. Returns the exit status."""
    if name == "start":
        return train(row, out / name / str(seed), seed)
    words, overrides = PRETRAINED[name]
    before = out / "pretrained" / name / str(seed)
    status = train(Row(f"{words}, pre-training", f"experiment=pretrain {overrides} {pretraining}"), before, seed)
    if status:
        return status
    return train(Row(row.losses, f"{row.command} backbone.folder={before}/hub"), out / name / str(seed), seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=["start", *PRETRAINED], help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--persons", type=int, default=3200, help="strangers in the shards, 3 pictures of each")
    parser.add_argument("--more", default="", help="further arguments of all trainings")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "pretrain_study")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    out, made = options.out.absolute(), study(options.more)
    failed = []
    if not options.table:
        shards = write_shards(out, options.persons)
        pretraining = f"dataset.shards={shards} dataset.sampler=random {options.more}"
        jobs = [(name, seed) for seed in options.seeds for name in options.rows or made.rows]
        with ThreadPoolExecutor(options.jobs) as pool:
            done = pool.map(lambda job: run(job[0], made.rows[job[0]], out, job[1], pretraining), jobs)
            failed = [status for status in done if status]
    print_tables(made, out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
