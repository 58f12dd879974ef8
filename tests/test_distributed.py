"""Two processes against one: the same losses, gradients and metrics; a sweep of two such jobs."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir

import trainer
from data.synthetic import SyntheticSpec, generate
from prepare_checkpoints import prepare

ROOT = Path(__file__).parents[1]
# One job has every loss that the batch of the default can feed; the other reads no temperature.
TERMS = ("ritc", "itc", "in_modal_circle", "nc_itc", "cmpm", "sdm", "a_sdm", "efa", "id", "mlm")
EVERY_TERM = [f"+loss/term@loss.terms.{term}={term}" for term in TERMS]
SMALL = (
    "backbone=tiny_clip",
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "dataset.num_workers=0",
    "loss.terms.simclr.hidden_dim=16",
    "shown_queries=1",
    "logger=csv",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.limit_train_batches=2",
    "+callbacks.gradients._target_=keep_gradients.KeepGradients",
    "+callbacks.gradients.folder=${run_dir}",
)
KEEP_GRADIENTS = """
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback


class KeepGradients(Callback):
    def __init__(self, folder):
        self.folder = Path(folder)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 0:
            found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
            torch.save(found, self.folder / f"gradients-{trainer.global_rank}.pt")
"""


class Runs(NamedTuple):
    """Folders: with data and backbone, of the run of one process, of the sweep's two jobs."""

    root: Path
    alone: Path
    jobs: list[Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root, alone, sweep = (tmp_path_factory.mktemp(name) for name in ("root", "alone", "sweep"))
    spec = SyntheticSpec(train=12, val=4, test=5, images_per_identity=2, height=64, width=32)
    generate(root, spec, workers=1)
    prepare("tiny_clip", root, steps=1)
    (root / "keep_gradients.py").write_text(KEEP_GRADIENTS, encoding="utf-8")

    overrides = [*SMALL, *EVERY_TERM, f"dataset_root_dir={root}"]
    several = ["trainer.devices=2", "trainer.strategy=ddp", "seed=1,2", f"hydra.sweep.dir={sweep}"]
    left_out = (
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "PL_GLOBAL_SEED",
        "WANDB_SERVICE",
    )
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    line = [sys.executable, str(ROOT / "trainer.py"), "-m", *overrides, *several]
    environment |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("method  hybrid_circle") == 2, "the first process of each job speaks, and no other"

    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        patch.syspath_prepend(root)
        trainer.train(compose("demo", overrides=[*overrides, "seed=1", f"run_dir={alone}"]))
    return Runs(root, alone, sorted(path for path in sweep.iterdir() if path.is_dir()))


def test_a_sweep_of_two_jobs_runs_two_jobs(runs: Runs) -> None:
    assert [re.sub("-.*", "", job.name) for job in runs.jobs] == ["0", "1"]
    for seed, job in enumerate(runs.jobs, start=1):
        assert json.loads((job / "metrics.json").read_text())["run"]["seed"] == seed
        assert len(list((job / "checkpoints").glob("best-*.ckpt"))) == 1
        assert {path.name for path in job.glob("gradients-*")} == {"gradients-0.pt", "gradients-1.pt"}
    comparison = (runs.jobs[0].parent / "comparison.csv").read_text().splitlines()
    assert len(comparison) == 3


def first_losses(run: Path) -> dict[str, float]:
    """Name -> value of all losses and statistics of the first step."""
    with (run / "logs" / "steps.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {
        key: float(rows[0][key]) for key in rows[0] if key.startswith(("train/loss", "train/weighted", "train/stat"))
    }


def test_losses_are_those_of_one_process(runs: Runs) -> None:
    expected, found = first_losses(runs.alone), first_losses(runs.jobs[0])
    assert {key.removeprefix("train/loss/") for key in expected} >= set(TERMS)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_gradients_are_those_of_one_process(runs: Runs) -> None:
    expected = torch.load(runs.alone / "gradients-0.pt", weights_only=True)
    for rank in range(2):
        found = torch.load(runs.jobs[0] / f"gradients-{rank}.pt", weights_only=True)
        assert set(found) == set(expected)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_metrics_are_those_of_one_process(runs: Runs) -> None:
    best = next((runs.jobs[1] / "checkpoints").glob("best-*.ckpt"))
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        overrides = [*SMALL, f"dataset_root_dir={runs.root}", "task=test", f"ckpt_path={best}", f"run_dir={runs.alone}"]
        alone = trainer.test(compose("demo", overrides=overrides))
    metrics = json.loads((runs.jobs[1] / "metrics.json").read_text())["metrics"]
    for direction, figures in metrics.items():
        for name in ("R1", "R5", "R10", "mAP", "mINP"):
            assert alone[f"test/{direction}/{name}"] == figures[name]
