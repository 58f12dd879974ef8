"""A run that is killed or stopped, wherever that may be, and continued ends as one that was left alone."""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

import data.loading.chosen
import trainer
from lightning_models import LitTBPS
from lightning_ranker import LitRanker
from model.prototypes import Labeler
from tests.forked import die, forked
from tests.same_run import differences
from tests.small_run import ANY_METHOD, CONFIG_DIR
from utils.checkpoints.callback import Checkpoints
from utils.checkpoints.weights import AtomicCheckpointIO, read_checkpoint

ROOT = Path(__file__).parents[1]
SHORT = (
    *ANY_METHOD,
    "loss=baseline",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "logger=csv",
    "shown_queries=0",
    "callbacks.last.every_n_steps=3",  # of 6 in an epoch: the last step too
    "callbacks.last.mode=max",  # R@1 rises in the second epoch, and the best file is to be replaced
)
STEPS = 6
pytestmark = pytest.mark.usefixtures("fit_to_fork")
Patch = Callable[[pytest.MonkeyPatch], None]


def train(root: Path, out: Path, *overrides: str) -> dict[str, float]:
    places = (f"dataset_root_dir={root}", f"run_dir={out}")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return trainer.train(compose("demo", overrides=[*SHORT, *places, *overrides]))


@pytest.fixture(scope="module")
def straight(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("straight")
    train(small_root, out)
    return out


def last(out: Path) -> Path:
    return out / "checkpoints" / "last.ckpt"


def batches_done(out: Path) -> tuple[int, int]:
    """Returns the epochs that last.ckpt says are done, and the batches of the next one."""
    loops: Any = read_checkpoint(last(out))["loops"]["fit_loop"]
    return loops["epoch_progress"]["current"]["completed"], loops["epoch_loop.batch_progress"]["current"]["completed"]


def when(
    function: Callable[..., Any], then: Callable[[], object], condition: Callable[..., bool]
) -> Callable[..., Any]:
    """Returns `function`, but `then` comes before it when `condition` holds for its arguments."""

    def conditional(*args: Any, **kwargs: Any) -> Any:
        if condition(*args):
            then()
        return function(*args, **kwargs)

    return conditional


def in_second_epoch(module: LitRanker, *_: Any) -> bool:
    return module.current_epoch == 1


def in_step(number: int, module: LitTBPS, *_: Any) -> bool:
    return module.global_step == number


def dies_in(owner: type, name: str, condition: Callable[..., bool]) -> Patch:
    return lambda patch: patch.setattr(owner, name, when(getattr(owner, name), die, condition))


def dies_half_way_through(name: str, epoch: int) -> Patch:
    def replace(patch: pytest.MonkeyPatch) -> None:
        save = torch.save

        def half(content: dict[str, Any], file: Any) -> None:
            if content["epoch"] == epoch and name in os.readlink(f"/proc/self/fd/{file.fileno()}"):
                file.write(b"PK\3\4 half")
                file.flush()
                die()
            save(content, file)

        patch.setattr("utils.checkpoints.weights.torch.save", half)

    return replace


def is_last_of_epoch_2(_: Any, content: dict[str, Any], path: Any, *__: Any) -> bool:
    return Path(path).name == "last.ckpt" and content["epoch"] == 2


KILLS = {
    "in a step after a save": dies_in(LitTBPS, "training_step", partial(in_step, STEPS + 4)),
    "in the validation after a save": dies_in(LitTBPS, "validation_step", in_second_epoch),
    "half way through best": dies_half_way_through("best-001", 2),
    "between best and last": dies_in(AtomicCheckpointIO, "save_checkpoint", is_last_of_epoch_2),
    "half way through last": dies_half_way_through("last", 2),
    "before the old best is removed": dies_in(
        Checkpoints, "_remove_other_best", lambda callback: callback.best_model_path.endswith("1.ckpt")
    ),
    "in the test": dies_in(LitTBPS, "test_step", lambda *_: True),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_continues_as_if_nothing_had_happened(
    kill: str, straight: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        KILLS[kill](patch)
        assert forked(lambda: train(small_root, tmp_path)) == -signal.SIGKILL
    with (tmp_path / "logs" / "steps.csv").open("a") as file:
        file.write("1,0.0,half of a line")
    train(small_root, tmp_path, f"ckpt_path={last(tmp_path)}")
    assert differences(straight, tmp_path) == []


def run(root: Path, folder: Path, *overrides: str, **environment: str) -> tuple[int, str]:
    """Returns the status of trainer.py in a fork, started in `folder`, and what it printed."""
    log = folder / "log.txt"
    log.unlink(missing_ok=True)

    def work() -> None:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
        os.chdir(folder)
        os.environ |= environment
        sys.argv = ["trainer.py", *SHORT, f"dataset_root_dir={root}", f"output_dir={folder}", *overrides]
        runpy.run_path(str(ROOT / "trainer.py"), run_name="__main__")

    return forked(work), log.read_text()


def run_folder(folder: Path) -> Path:
    """Returns the one run below `folder`."""
    (run,) = folder.glob("*/*/")
    return run


def receives(*signals: int) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), signum) for signum in signals]  # type: ignore[func-returns-value,return-value]


@pytest.mark.parametrize(
    ("signum", "name", "where", "condition", "done"),
    [
        (signal.SIGTERM, "SIGTERM", "training_step", partial(in_step, STEPS + 1), (1, 2)),
        (signal.SIGINT, "Ctrl-C", "validation_step", in_second_epoch, (1, STEPS)),
    ],
)
def test_a_signal_saves_says_how_to_continue_and_nothing_is_lost(
    signum: int,
    name: str,
    where: str,
    condition: Callable[..., bool],
    done: tuple[int, int],
    straight: Path,
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LitTBPS, where, when(getattr(LitTBPS, where), receives(signum), condition))
        status, printed = run(small_root, tmp_path)
    assert status == 128 + signum
    out = run_folder(tmp_path)
    told = f"stopped by {name}: {last(out)} is saved; continue with the same command and ckpt_path=last"
    assert printed.splitlines()[-1] == told
    assert "Traceback" not in printed
    assert batches_done(out) == done
    assert run(small_root, tmp_path, "ckpt_path=last")[0] == 0
    assert differences(straight, out) == []


def test_a_signal_before_the_first_step_ends_at_once(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = when(data.loading.chosen.read_dataset, receives(signal.SIGTERM), lambda *_: True)
    monkeypatch.setattr(data.loading.chosen, "read_dataset", reading)
    status, printed = run(small_root, tmp_path)
    assert status == 128 + signal.SIGTERM
    assert printed.splitlines()[-1] == "stopped by SIGTERM: nothing was saved; start again with the same command"
    assert "Traceback" not in printed


def test_a_second_ctrl_c_ends_at_once(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = receives(signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(LitTBPS, "training_step", when(LitTBPS.training_step, twice, partial(in_step, 1)))
    status, printed = run(small_root, tmp_path)
    assert status == 128 + signal.SIGINT
    assert printed.splitlines()[-1] == "ended at once by the second Ctrl-C"
    assert not last(run_folder(tmp_path)).exists()


def test_slurm_queues_a_job_again_which_then_goes_on(
    straight: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked.txt\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    warned = when(LitTBPS.training_step, receives(signal.SIGUSR1), partial(in_step, STEPS + 1))
    with monkeypatch.context() as patch:
        patch.setattr(LitTBPS, "training_step", warned)
        status, printed = run(small_root, tmp_path, **slurm)
    assert status == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1: " in printed
    assert (tmp_path / "asked.txt").read_text() == "requeue 77\n"
    assert run(small_root, tmp_path, **slurm, SLURM_RESTART_COUNT="1")[0] == 0
    assert differences(straight, run_folder(tmp_path)) == []
    assert not (tmp_path / ".slurm-77").exists()


def test_clusters_are_found_again_by_a_run_that_was_killed_while_it_looked_for_them(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("experiment=cpcl", "backbone=tiny_clip", "loss=cpcl", "callbacks.last.every_n_steps=3")
    train(small_root, tmp_path / "straight", *overrides)
    with monkeypatch.context() as patch:
        dies_in(Labeler, "find", lambda labeler, *_: len(labeler.history) == 1)(patch)
        assert forked(lambda: train(small_root, tmp_path / "killed", *overrides)) == -signal.SIGKILL
    train(small_root, tmp_path / "killed", *overrides, f"ckpt_path={last(tmp_path / 'killed')}")
    assert differences(tmp_path / "straight", tmp_path / "killed") == []
