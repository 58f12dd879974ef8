"""Jobs of several processes in a multirun, in an app that starts its second process as Lightning does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
APP = """
import os
import subprocess
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

from utils.config.multirun_subprocess import needs_own_command, run_own_command

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    if needs_own_command(cfg.trainer):
        returned = run_own_command(Path(__file__))
        print(f"job {cfg.seed} returned {returned}", flush=True)
        return returned
    if cfg.seed == cfg.crash:
        sys.exit("seed is not to my taste")
    folder = Path(HydraConfig.get().runtime.output_dir)
    rank = os.environ.get("LOCAL_RANK", "0")
    with (folder / "processes.txt").open("a") as file:
        file.write(f"{cfg.seed} {rank} {HydraConfig.get().mode.name}\\n")
    if cfg.trainer.devices == 2 and rank == "0":
        os.environ["LOCAL_RANK"] = rank
        again = [*sys.argv, f'hydra.run.dir="{HydraConfig.get().run.dir}"', "hydra.job.name=other"]
        subprocess.run([sys.executable, *again], env=os.environ | {"LOCAL_RANK": "1"}, check=True)
    return 10.0 * cfg.seed

main()
"""
CONFIG = """
seed: 1
crash: 0
trainer: {devices: 1, num_nodes: 1}
hydra:
  output_subdir: null
  run: {dir: single}
  sweep: {dir: a sweep, subdir: "${hydra.job.num}-seed=${seed}"}
"""


def run_app(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(APP, encoding="utf-8")
    (folder / "other.yaml").write_text(CONFIG, encoding="utf-8")
    line = [sys.executable, "app.py", "--config-name", "other", *arguments]
    known = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "SLURM_NTASKS")}
    environment = known | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def processes(folder: Path) -> dict[str, list[str]]:
    """Job folder -> its processes: seed, rank and mode of each."""
    return {file.parent.name: file.read_text().splitlines() for file in folder.glob("*/*/processes.txt")}


def test_a_sweep_of_two_jobs_of_two_processes_runs_two_jobs(tmp_path: Path) -> None:
    result = run_app(tmp_path, "-m", "trainer.devices=2", "seed=1,2", "hydra.sweep.dir='some, sweeps'")
    assert result.returncode == 0, result.stderr
    assert processes(tmp_path) == {
        "0-seed=1": ["1 0 RUN", "1 1 RUN"],
        "1-seed=2": ["2 0 RUN", "2 1 RUN"],
    }
    assert not (tmp_path / "single").exists()
    assert "job 1 returned 10.0" in result.stdout
    assert "job 2 returned 20.0" in result.stdout


def test_a_job_that_fails_says_so_and_the_others_run(tmp_path: Path) -> None:
    result = run_app(tmp_path, "-m", "trainer.devices=2", "seed=1,2", "crash=1")
    assert result.returncode == 1
    assert "seed is not to my taste" in result.stderr
    assert "the command of this job ended with status 1; its own message stands above" in result.stderr
    assert processes(tmp_path) == {"1-seed=2": ["2 0 RUN", "2 1 RUN"]}


def test_jobs_of_one_process_and_jobs_that_others_start_run_where_they_are(tmp_path: Path) -> None:
    assert run_app(tmp_path, "-m", "seed=1").returncode == 0
    assert processes(tmp_path) == {"0-seed=1": ["1 0 MULTIRUN"]}
    assert run_app(tmp_path, "-m", "seed=3", "trainer.devices=4", SLURM_NTASKS="4").returncode == 0
    assert processes(tmp_path)["0-seed=3"] == ["3 0 MULTIRUN"]
