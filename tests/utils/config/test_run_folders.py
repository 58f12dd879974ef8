"""Which run `last` means, where runs lie, and that no two share a folder."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from utils.config.resolvers import register_resolvers
from utils.config.run_folders import claim, find_checkpoint, remove_if_empty, run_dir, settle
from utils.errors import UserError

register_resolvers()
ROOT = Path(__file__).parents[3]
APP = """
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    time.sleep(0.5)
    with (folder / "rows.txt").open("a") as file:
        file.write(f"{cfg.seed}\\n")

main()
"""
CONFIG = """
task: train
seed: 1
ckpt_path: null
run_dir: runs/same_second
hydra:
  output_subdir: null
  run: {dir: "${run_dir}"}
  sweep: {dir: sweeps/same_second, subdir: "${hydra.job.num}"}
  job_logging: {disable_existing_loggers: false}
  callbacks: {folder: {_target_: utils.config.run_folders.ClaimFolder}}
"""


def leave_checkpoint(folder: Path, time: str) -> Path:
    path = folder / "name" / time / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_last_is_the_newest_run_of_the_name(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path, "2026-01-01_00-00-00")
    for number in (2, 9, 10):
        newest = leave_checkpoint(tmp_path, f"2026-01-02_00-00-00-{number}")
    assert find_checkpoint(str(tmp_path), "name", "last") == newest
    assert find_checkpoint(str(tmp_path), "name", None) is None
    named = leave_checkpoint(tmp_path, "my_run")
    os.utime(named.parents[1], (0, 0))
    assert find_checkpoint(str(tmp_path), "name", "last") == newest
    os.utime(named.parents[1])
    assert find_checkpoint(str(tmp_path), "name", "last") == named


def test_a_newest_run_without_a_checkpoint_is_named_with_the_one_before_it(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path, "2026-01-01_00-00-00")
    older = leave_checkpoint(tmp_path, "2026-01-02_00-00-00")
    newest = tmp_path / "name" / "2026-01-03_00-00-00"
    newest.mkdir()
    with pytest.raises(UserError, match=rf"the newest run, {newest}, has no checkpoint .* ckpt_path={older}$"):
        find_checkpoint(str(tmp_path), "name", "last")


def test_where_there_is_no_checkpoint_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ckpt_path=last: no run of other under .* has a checkpoint"):
        run_dir("train", str(tmp_path), "other", "last", "vn3k_vi")
    with pytest.raises(UserError, match=r"ckpt_path=nowhere\.ckpt: there is no such file"):
        run_dir("test", str(tmp_path), "other", "nowhere.ckpt", "vn3k_vi")


def test_a_continued_run_stays_in_its_folder(tmp_path: Path) -> None:
    checkpoint = leave_checkpoint(tmp_path, "2026-01-01_00-00-00")
    run = checkpoint.parent.parent
    assert run_dir("train", str(tmp_path), "name", "last", "vn3k_vi") == str(run)
    assert run_dir("train", str(tmp_path), "name", str(checkpoint), "vn3k_vi") == str(run)
    assert run_dir("test", str(tmp_path), "name", str(checkpoint), "vn3k_vi") == str(run / "test-vn3k_vi")
    assert run_dir("export", str(tmp_path), "name", str(checkpoint), "vn3k_vi") == str(run / "export")
    assert run_dir("plan", str(tmp_path), "name", None, "vn3k_vi") == str(tmp_path)
    assert run_dir("embed", str(tmp_path), "name", str(checkpoint), "vn3k_vi") == str(tmp_path)
    new = Path(run_dir("train", str(tmp_path), "name", None, "vn3k_vi"))
    assert new.parent == tmp_path / "name"
    assert not new.exists()


@pytest.mark.parametrize(("variable", "value"), [("LOCAL_RANK", "0"), ("SLURM_NTASKS", "2")])
def test_processes_of_one_run_are_not_named_by_the_time(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir.cache_clear()
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match="run_dir: processes started by torchrun or srun need the same folder"):
        run_dir("train", str(tmp_path), "name", None, "vn3k_vi")
    checkpoint = leave_checkpoint(tmp_path, "2026-01-01_00-00-00")
    assert run_dir("train", str(tmp_path), "name", "last", "vn3k_vi") == str(checkpoint.parent.parent)


def test_of_many_that_want_a_folder_at_once_each_gets_one_of_its_own(tmp_path: Path) -> None:
    wanted = tmp_path / "name" / "2026-01-01_00-00-00"
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(claim, [wanted] * 64))
    assert len(set(claimed)) == 64
    assert set(claimed) == set(wanted.parent.iterdir())
    assert {wanted, wanted.with_name(f"{wanted.name}-64")} <= set(claimed)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run cannot be created \(Not a directory\); .*output_dir="):
        claim(tmp_path / "file" / "run")


def test_code_that_names_no_folder_gets_one_of_its_own(tmp_path: Path) -> None:
    run_dir.cache_clear()
    text = f"${{run_dir:train,{tmp_path},name,null,dataset}}"
    first, second = (OmegaConf.create({"run_dir": text}) for _ in range(2))
    settle(first)
    settle(second)
    assert second.run_dir == f"{first.run_dir}-2"
    assert {Path(first.run_dir), Path(second.run_dir)} == set((tmp_path / "name").iterdir())


@pytest.mark.parametrize("left", ["config.yaml", "metrics.json", "checkpoints"])
def test_a_named_folder_is_not_that_of_another_run(left: str, tmp_path: Path) -> None:
    cfg = OmegaConf.create({"run_dir": str(tmp_path)})
    settle(cfg)
    (tmp_path / left).mkdir()
    with pytest.raises(UserError, match=rf"run_dir: {tmp_path} is the folder of another run, it has {left};"):
        settle(cfg)


def test_the_folder_of_a_refused_start_goes_and_any_other_stays(tmp_path: Path) -> None:
    refused, run = tmp_path / "refused", tmp_path / "run"
    for folder in (refused, run):
        folder.mkdir()
        (folder / "trainer.log").touch()
    (run / "config.yaml").touch()
    remove_if_empty(refused)
    remove_if_empty(run)
    remove_if_empty(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == [run]
    assert len(list(run.iterdir())) == 2


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    left = ("LOCAL_RANK", "SLURM_NTASKS")
    known = {name: value for name, value in os.environ.items() if name not in left}
    return subprocess.Popen(
        [sys.executable, "app.py", *arguments], cwd=folder, env=known | {"PYTHONPATH": str(ROOT)} | environment
    )


def rows(folder: Path) -> dict[str, list[str]]:
    files = folder.rglob("rows.txt")
    return {str(file.parent.relative_to(folder)): file.read_text().split() for file in files}


def test_runs_and_sweeps_of_the_same_second_have_folders_apart(app: Path) -> None:
    commands = [("seed=3",), ("seed=4",), ("-m", "seed=1,2"), ("-m", "seed=1,2"), ("seed=5", "run_dir=runs/named")]
    assert [process.wait() for process in [start(app, *command) for command in commands]] == [0] * 5
    found = rows(app)
    assert sorted(found["runs/same_second"] + found["runs/same_second-2"]) == ["3", "4"]
    for sweep in ("sweeps/same_second", "sweeps/same_second-2"):
        assert (found[f"{sweep}/0"], found[f"{sweep}/1"]) == (["1"], ["2"])
    assert found["runs/named"] == ["5"]
    assert len(found) == 7


def test_the_processes_that_lightning_starts_share_the_folder_of_the_first(app: Path) -> None:
    assert start(app, "seed=1").wait() == 0
    handed = 'hydra.run.dir="runs/same_second"'
    assert start(app, "seed=2", handed, "hydra.job.name=second", LOCAL_RANK="1").wait() == 0
    assert rows(app) == {"runs/same_second": ["1", "2"]}
