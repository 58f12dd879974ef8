"""Two processes against one: losses, gradients, pseudo labels, metrics, checkpoints; a sweep of two such jobs."""

import csv
import json
import os
import re
import socket
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import trainer
from data.annotations import read_dataset
from data.shards.writer import ShardWriter
from data.synthetic import SyntheticSpec, generate
from prepare_checkpoints import prepare
from tests.forked import end_of, print_to, run_python, start_fork
from tests.two_processes import ROOT, composed, found_of, two_steps

pytestmark = pytest.mark.timeout(900)
SMALL = (
    "backbone=tiny_clip",
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "dataset.num_workers=0",
    "dataset.eval_batch_size=4",
    "shown_queries=1",
    "~evaluation.plots.tsne",  # takes as long as a run
    "logger=csv",
    "trainer=cpu",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.limit_train_batches=2",
)
TWO_STEPS = ("+trainer.max_steps=2", "trainer.limit_val_batches=0")
TWO = ("trainer.devices=2", "trainer.strategy=ddp")
NARROW = "loss.terms.simclr.hidden_dim=16"
OF_PRESET = {
    "cpcl": ["experiment=cpcl"],
    "hybrid_circle": [NARROW],
    "itc": ["+loss/term@loss.terms.cmpm=cmpm"],  # in no preset
    "part_cmr": ["experiment=part_cmr"],
    "rde": ["experiment=rde", "dataset.noise_rate=0.3"],
    "tbps_clip": [NARROW],
}
PRESETS = sorted(file.stem for file in (ROOT / "config" / "loss").glob("[!_]*.yaml"))
STEPS = {preset: [f"loss={preset}", *OF_PRESET.get(preset, ())] for preset in PRESETS}
STEPS["dora"] = ["loss=itc", "lora=dora", "lora.dropout=0"]
STEPS["noise_aware"] = ["loss=sdm_masked", "masking=noise_aware", "dataset.overfit_pairs=8"]  # two epochs of a batch
STEPS["shards"] = ["loss=itc", "dataset.shards=${dataset_root_dir}/shards", "dataset.sampler=random"]
STEPS["grad_cache"] = ["loss=tbps_clip", NARROW, "grad_cache.micro_batch=2"]
EXACT = "trainer.precision=64-true"  # in fp32 gradients differ by the rounding of another order of summing


class Found(NamedTuple):
    """What processes found: by rank, "steps" and "runs" by name; what they printed; the folder of their runs."""

    ranks: list[dict[str, Any]]
    printed: str
    folder: Path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, of which two processes cannot share the 15 test images evenly, and a backbone."""
    folder = tmp_path_factory.mktemp("root")
    spec = SyntheticSpec(train=12, val=4, test=5, images_per_identity=3, height=64, width=32)
    generate(folder, spec, workers=1)
    prepare("tiny_clip", folder, steps=1)
    ShardWriter(folder / "shards", {}, shard_bytes=5_000).write(read_dataset("drawn", folder).train)
    return folder


def environment() -> dict[str, str]:
    """The environment without what Lightning leaves in it of a test before."""
    left = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "PL_GLOBAL_SEED", "WANDB_SERVICE")
    return {k: v for k, v in os.environ.items() if k not in left} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def two(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Two processes as torchrun starts them, for all steps and runs."""
    folder = tmp_path_factory.mktemp("two")
    common = [*SMALL, *TWO, f"dataset_root_dir={root}"]
    runs = {
        "whole": ["trainer.max_epochs=2", f"run_dir={folder}/whole"],
        "stopped": ["trainer.max_epochs=2", "+trainer.max_steps=2", f"run_dir={folder}/cut"],
        "continued": ["trainer.max_epochs=2", f"run_dir={folder}/cut", f"ckpt_path={folder}/cut/checkpoints/last.ckpt"],
    }
    jobs = {
        "steps": {
            name: [
                EXACT,
                *steps,
                *common,
                f"run_dir={folder}/{name}",
                *TWO_STEPS,
            ]
            for name, steps in STEPS.items()
        },
        "runs": {name: ["loss=itc", *run, *common] for name, run in runs.items()},
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "printed.txt").open("w+", encoding="utf-8") as printed:

        def work(rank: int) -> None:
            print_to(printed, printed)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
            torch.save(found_of(jobs), folder / f"found-{rank}.pt")

        both = [start_fork(partial(work, rank)) for rank in range(2)]
        statuses = [end_of(child) for child in both]
    text = (folder / "printed.txt").read_text(encoding="utf-8")
    assert statuses == [0, 0], text
    return Found([torch.load(folder / f"found-{rank}.pt") for rank in range(2)], text, folder)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_one_process(name: str, two: Found, root: Path, tmp_path: Path) -> None:
    overrides = [EXACT, *STEPS[name], *SMALL, f"dataset_root_dir={root}", f"run_dir={tmp_path}", *TWO_STEPS]
    expected = two_steps(composed(overrides))
    largest = max(float(gradient.abs().max()) for gradient in expected["gradients"].values())
    for found in (rank["steps"][name] for rank in two.ranks):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5, abs=1e-6)
        for parameter, gradient in expected["gradients"].items():
            # Biases of attention keys, or before batch norm, have a gradient of zero but for rounding.
            bound = 1e-5 * float(gradient.abs().max()) + 1e-10 * largest
            difference = (found["gradients"][parameter] - gradient).abs().max()
            assert difference <= bound, f"{parameter}: {difference} above {bound}"
        for buffer, value in expected["buffers"].items():  # pseudo labels and memories among them
            torch.testing.assert_close(found["buffers"][buffer], value, rtol=1e-4, atol=1e-5)
            assert value.is_floating_point() or found["buffers"][buffer].equal(value), "the same labels"
    first, second = (rank["steps"][name] for rank in two.ranks)
    for kind in ("gradients", "buffers", "weights"):
        assert all(value.equal(second[kind][key]) for key, value in first[kind].items()), "the same on both"


def test_every_term_is_among_the_steps(two: Found) -> None:
    files = (ROOT / "config" / "loss" / "term").glob("*.yaml")
    terms = {file.stem for file in files if "_target_" in file.read_text()}  # others are settings of one of these
    losses = {key for step in two.ranks[0]["steps"].values() for key in step["losses"]}
    assert losses >= {f"train/loss/{term}" for term in terms}


def test_the_pseudo_labels_that_agree_are_of_several_clusters(two: Found) -> None:
    buffers = two.ranks[0]["steps"]["cpcl"]["buffers"]
    assert min(buffers[f"labeler.{modality}_labels"].max() for modality in ("image", "text")) >= 3


def test_the_weights_of_pairs_that_agree_leave_some_pairs_out(two: Found) -> None:
    weights = two.ranks[0]["steps"]["rde"]["buffers"]["labeler.pair_weights"]
    assert 0 < weights.mean() < 1


def test_metrics_are_those_of_one_process(two: Found, root: Path, tmp_path: Path) -> None:
    best = next((two.folder / "whole" / "checkpoints").glob("best-*.ckpt"))
    overrides = [*SMALL, f"dataset_root_dir={root}", "task=test", f"ckpt_path={best}", f"run_dir={tmp_path}"]
    alone = trainer.test(composed(overrides))
    for rank in two.ranks:
        assert {key: rank["runs"]["whole"][key] for key in alone} == pytest.approx(alone, abs=1e-4)


def test_a_continued_run_of_two_is_the_uninterrupted_one(two: Found) -> None:
    whole, cut = (
        torch.load(two.folder / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "cut")
    )
    assert set(whole) == set(cut)
    assert all(value.equal(cut[name]) for name, value in whole.items())


def test_one_of_two_writes_and_speaks(two: Found) -> None:
    assert two.printed.count("method  itc") == 3, "once a run"
    names = sorted(re.sub(r"\d+", "N", file.name) for file in (two.folder / "whole" / "checkpoints").iterdir())
    assert names == ["best-N.ckpt", "last.ckpt"]
    with (two.folder / "whole" / "logs" / "steps.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss"]]
    assert len(steps) == len(set(steps)) == 4


def test_a_sweep_of_two_jobs_of_two_processes_runs_two_jobs(root: Path, tmp_path: Path) -> None:
    short = ["loss=itc", f"dataset_root_dir={root}", "seed=1,2", "shown_queries=0"]
    line = [str(ROOT / "trainer.py"), "-m", *SMALL, *TWO, *short, f"hydra.sweep.dir={tmp_path}"]
    done = run_python(*line, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("method  itc") == 2, "the first process of each job speaks, and no other"
    jobs = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [json.loads((job / "metrics.json").read_text())["run"]["seed"] for job in jobs] == [1, 2]
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 3
