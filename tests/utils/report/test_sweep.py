"""The table at the end of a Hydra multirun, in an app as small as can be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wandb_files import of_kind, records

ROOT = Path(__file__).parents[3]
APP = """
import hydra
from hydra.core.hydra_config import HydraConfig
from tests.figures import figures
from utils.report.reports import save_metrics

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    if cfg.seed == cfg.crash:
        raise RuntimeError("the disk is full")
    if cfg.seed == cfg.give_up:
        return None
    metrics = {d: figures(10.0 * cfg.seed) for d in ("t2i", "i2t")}
    run = {"strategy": cfg.loss, "dataset": "d", "backbone": "b", "lora": "full", "seed": cfg.seed}
    run["val_protocol"] = "held_out"
    save_metrics(HydraConfig.get().runtime.output_dir, metrics, run)

main()
"""
CONFIG = """
loss: baseline
seed: 1
crash: 0
give_up: 0
hydra:
  output_subdir: null
  run: {dir: single}
  sweep: {dir: "sweep_${now:%H-%M-%S-%f}", subdir: "${hydra.job.num}-${loss}-s${seed}"}
  job_logging: {disable_existing_loggers: false}
  callbacks: {compare: {_target_: utils.report.sweep.CompareRuns}}
"""


def run_app(folder: Path, *arguments: str, app: str = APP) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(app, encoding="utf-8")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    environment.pop("WANDB_SERVICE", None)
    line = [sys.executable, "app.py", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_sweep_ends_in_one_table(tmp_path: Path) -> None:
    result = run_app(tmp_path, "-m", "loss=baseline,hybrid_circle", "seed=1,2,3")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("20.00 ± 10.00") == 20
    assert "difference to baseline (the default; --baseline names another)" in result.stdout
    assert "failed" not in result.stderr
    [sweep] = tmp_path.glob("sweep_*")
    assert (sweep / "comparison.txt").read_text(encoding="utf-8") in result.stdout
    assert len((sweep / "comparison.csv").read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize(("how", "why"), [("crash", "RuntimeError: the disk is full"), ("give_up", "see its")])
def test_failed_jobs_are_named_below_the_table(tmp_path: Path, how: str, why: str) -> None:
    result = run_app(tmp_path, "-m", "seed=1,2,3", f"{how}=2")
    assert result.returncode == 1
    assert result.stdout.count("20.00 ± 14.14") == 10
    [line] = [line for line in result.stderr.splitlines() if line.startswith("failed and missing from the table")]
    assert "1-baseline-s2" in line
    assert why in line


def test_a_page_that_fails_hides_no_failed_job(tmp_path: Path) -> None:
    broken = """
import utils.report.page.comparison_page as page

def broken(*_):
    raise RuntimeError("no page")

page.comparison_page = broken
main()
"""
    result = run_app(tmp_path, "-m", "seed=1,2", "give_up=2", app=APP.replace("\nmain()\n", broken))
    assert result.returncode == 1
    assert "10.00" in result.stdout
    assert "missing from the table" in result.stderr
    assert "comparison.html is not written: RuntimeError: no page" in result.stderr


def test_each_job_ends_its_own_wandb_run_as_failed_or_not(tmp_path: Path) -> None:
    starts = """
    if cfg.seed == 2:
        raise RuntimeError("before W&B started")
    wandb.init(name=f"s{cfg.seed}", settings=wandb.Settings(silent=True))
"""
    app = APP.replace("import hydra\n", "import hydra\nimport wandb\n", 1).replace("(cfg):\n", f"(cfg):{starts}", 1)
    assert run_app(tmp_path, "-m", "seed=1,2,3,4", "crash=4", app=app).returncode == 1
    ends = {}
    for file in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        [run], [end] = (of_kind(kind, records(file)) for kind in ("run", "exit"))
        ends[run.display_name] = end.exit_code
    assert ends == {"s1": 0, "s3": 0, "s4": 1}


def test_nothing_happens_in_a_single_run_or_before_the_first_job(tmp_path: Path) -> None:
    assert run_app(tmp_path, "seed=4").stdout == ""
    crashed = run_app(tmp_path, "crash=1")
    assert crashed.returncode == 1
    assert not (tmp_path / "single" / "error.txt").exists()
    misspelt = run_app(tmp_path, "-m", "sede=1,2")
    assert misspelt.returncode != 0
    assert "FileNotFoundError" not in misspelt.stderr
    assert "R1" not in misspelt.stdout
