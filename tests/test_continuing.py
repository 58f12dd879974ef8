"""Runs that are continued under other options, as commands do it: what is trained, what is said, what is refused."""

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import trainer
from solver.schedules import build_schedule
from tests.small_run import SMALL, command
from utils.checkpoints.weights import read_checkpoint
from utils.errors import UserError

BEGUN_WITH = (*SMALL, "logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=2", "loss.terms.citc.weight=0.2")
BEGUN_WITH += ("loss.terms.citc.ramp={first:0,last:3}", "optimizer.algorithm=adamw")
BEGUN_WITH += ("~optimizer.param_groups.layers", "~optimizer.param_groups.token_table")
BEGUN_WITH += ("optimizer.param_groups.default.lr=1e-4", "optimizer.param_groups.default.lr_start=1e-6")
STEPS = 6  # of an epoch
LR = {"lr": 5e-5, "lr_start": 1e-6, "lr_end": 2e-6}


def run(root: Path, out: Path, *overrides: str) -> dict[str, float]:
    """Does what ``trainer.py OVERRIDES`` does in this process."""
    with command(*overrides, f"dataset_root_dir={root}", f"output_dir={out}") as cfg:
        task = trainer.train if cfg.task == "train" else trainer.test
        return task(cfg)


def steps(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "steps.csv").open() as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def begun(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two epochs, its learning rate all the way down."""
    out = tmp_path_factory.mktemp("out")
    run(small_root, out, *BEGUN_WITH)
    [folder] = out.glob("*/*")
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(begun, tmp_path / begun.parent.name / begun.name))


def scheduled(rates: dict[str, float], length: int, wanted: range) -> list[float]:
    """The rate of each wanted step of a run that has had these rates and this length from its first step on."""
    sgd = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], **rates}])
    schedule = build_schedule(sgd, name="cosine", warmup_epochs=0.5, steps_per_epoch=STEPS, max_epochs=length)
    found = []
    for _ in range(wanted.stop):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return [found[step] for step in wanted]


def test_a_longer_run_with_another_rate_trains_and_records_what_was_asked(
    folder: Path, small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    given = [f"optimizer.param_groups.default.{key}={value}" for key, value in LR.items()]
    last = folder / "checkpoints" / "last.ckpt"
    run(small_root, folder.parents[1], f"ckpt_path={last}", "trainer.max_epochs=4", *given)

    rows = [row for row in steps(folder) if row["lr/default"]]
    assert [int(row["step"]) for row in rows] == [*range(4 * STEPS)]
    rates = [float(row["lr/default"]) for row in rows[2 * STEPS :]]
    assert rates == pytest.approx(scheduled(LR, 4, range(2 * STEPS, 4 * STEPS)), rel=1e-6)
    weights = [float(row["train/weight/citc"]) for row in rows]
    assert weights == pytest.approx([0.2 * epoch / 3 for epoch in range(4) for _ in range(STEPS)]), "the ramp goes on"
    assert all(0 < float(row["train/gradient/nitc"]) <= 1 for row in rows)
    after = read_checkpoint(last)
    assert after["optimizer_states"][0]["state"][0]["step"] == 4 * STEPS, "moments go on"
    assert after["global_step"] == before["global_step"] + 2 * STEPS

    config: Any = OmegaConf.load(folder / "config.yaml")
    assert after["config"]["optimizer"]["param_groups"]["default"]["lr"] == 5e-5
    assert (config.optimizer.param_groups.default.lr, config.trainer.max_epochs) == (5e-5, 4)
    assert (config.loss.terms.citc.weight, config.dataset.batch_size) == (0.2, 8), "not given, so the checkpoint's"
    assert "loss.terms.citc.weight=0.2" in config.composed.overrides
    report = json.loads((folder / "metrics.json").read_text())
    done, continued = report["provenance"]["training"], report["provenance"]["continued"]
    assert (done["epochs"], done["steps"], done["images"]) == (4, 4 * STEPS, 4 * STEPS * 8)
    assert done["learning_rates"]["default"] == pytest.approx(2e-6)
    assert (continued["step"], continued["path"]) == (2 * STEPS, str(last))
    assert "optimizer.param_groups.default.lr=5e-05" in report["run"]["variant"]
    assert "loss.terms.citc.weight=0.2" in report["run"]["variant"]

    said = capsys.readouterr().out.splitlines()
    assert f"from    {last}: 2 of 4 epochs done, goes on at step 12" in said
    assert [line for line in said if line.startswith("differs ")] == [
        "differs trainer.max_epochs=4, the checkpoint has 2",
        "differs optimizer.param_groups.default.lr=5e-05, the checkpoint has 0.0001",
        "differs optimizer.param_groups.default.lr_end=2e-06, the checkpoint has 1e-06",
    ]
    [was_and_is] = [line for line in said if line.startswith("rates ")]
    assert was_and_is == "rates   were default 1e-06 at step 12; this run goes on at default 2.98e-05"


def test_decay_that_is_switched_off_and_on_keeps_every_parameters_moments(folder: Path, small_root: Path) -> None:
    last = folder / "checkpoints" / "last.ckpt"
    off = ("trainer.max_epochs=3", "optimizer.param_groups.default.weight_decay=0")
    run(small_root, folder.parents[1], f"ckpt_path={last}", *off)
    [state] = read_checkpoint(last)["optimizer_states"]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.0]
    on = ("trainer.max_epochs=4", "optimizer.param_groups.default.weight_decay=0.3")
    run(small_root, folder.parents[1], f"ckpt_path={last}", *on)
    checkpoint = read_checkpoint(last)
    [state] = checkpoint["optimizer_states"]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.0, 0.3]
    for group in state["param_groups"]:
        for name, number in zip(group["names"], group["params"], strict=True):
            assert state["state"][number]["exp_avg"].shape == checkpoint["state_dict"][name].shape
            assert state["state"][number]["step"] == 4 * STEPS


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (),
            r"nothing is left to train of .*last\.ckpt: its 2 epochs are done; train longer with trainer\.max_epochs=4",
        ),
        (BEGUN_WITH, r"nothing is left to train"),
        (("trainer.max_epochs=1",), r"nothing is left to train"),
        (
            ("trainer.max_epochs=4", "loss=hybrid_circle", "loss.terms.citc.weight=0.3"),
            r"^loss\.terms\.citc\.weight=0\.3: .* with 0\.2,",
        ),
        (("trainer.max_epochs=4", "dataset.language=vi"), r"^dataset\.language=vi: .* was trained with en"),
        (("trainer.max_epochs=4", "optimizer.param_groups.default.lr=0"), r"its learning rate is 0"),
        (("task=test", "backbone=tiny_clip"), r"^backbone=tiny_clip: .* was trained with backbone=tiny_siglip"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else "",
)
def test_a_start_that_is_refused_leaves_the_run_as_it_was(
    overrides: tuple[str, ...], message: str, begun: Path, small_root: Path
) -> None:
    before = content(begun)
    last = begun / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=message):
        run(small_root, begun.parents[1], f"ckpt_path={last}", *overrides)
    assert content(begun) == before


def test_other_annotations_than_before_are_refused(folder: Path, small_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(small_root, root)
    [file] = root.glob("DRAWN-PEDES/*captions.json")
    file.write_text(file.read_text() + "\n")
    before = content(folder)
    with pytest.raises(UserError, match=rf"the annotations of drawn have changed .*: restore the old {file.name}"):
        run(root, tmp_path, f"ckpt_path={folder}/checkpoints/last.ckpt", "trainer.max_epochs=4")
    assert content(folder) == before


def test_a_run_that_ended_before_its_test_is_tested_and_one_that_a_callback_stopped_is_done(
    folder: Path, small_root: Path
) -> None:
    expected = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    run(small_root, folder.parents[1], f"ckpt_path={last}")
    report = json.loads((folder / "metrics.json").read_text())
    assert report["metrics"] == expected["metrics"]
    steady = ("epochs", "steps", "images", "seconds", "learning_rates")
    assert all(report["provenance"]["training"][k] == expected["provenance"]["training"][k] for k in steady)

    checkpoint = read_checkpoint(last)  # as if early stopping had ended it after two epochs of five
    checkpoint["config"]["trainer"]["max_epochs"] = 5
    torch.save(checkpoint, last)
    with pytest.raises(UserError, match="nothing is left to train"):
        run(small_root, folder.parents[1], f"ckpt_path={last}")


def test_last_names_the_run_and_tests_keep_their_records_apart(
    folder: Path, small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parents[1]
    with pytest.raises(UserError, match=rf"nothing is left to train of {folder}"):
        run(small_root, out, *BEGUN_WITH, "ckpt_path=last")
    tests = [run(small_root, out, *BEGUN_WITH, "task=test", "ckpt_path=last") for _ in range(2)]
    assert tests[0] == tests[1]
    first, second = (json.loads((folder / f"test-drawn_en{n}" / "metrics.json").read_text()) for n in ("", "-2"))
    trained = json.loads((folder / "metrics.json").read_text())
    for report in (first, second):
        assert report["run"].items() <= trained["run"].items()
        tested = report["provenance"]["tested"]
        assert (tested["path"], tested["step"]) == (str(folder / "checkpoints" / "last.ckpt"), 2 * STEPS)
        assert tested["sha256"] == hashlib.sha256(Path(tested["path"]).read_bytes()).hexdigest()
        for key in ("code", "data", "options", "versions", "seed"):
            assert report["provenance"][key] == trained["provenance"][key]
        assert report["provenance"]["training"] == read_checkpoint(tested["path"])["provenance"]["training"]


def test_metrics_and_checkpoints_say_what_the_run_was_made_with(begun: Path, small_root: Path) -> None:
    report = json.loads((begun / "metrics.json").read_text())
    record = report["provenance"]
    [file] = small_root.glob("DRAWN-PEDES/*captions.json")
    assert record["data"]["annotations"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["data"]["splits"]["train"] == {"identities": 12, "images": 24, "captions": 48, "cut": 15}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (record["seed"], record["device"], record["continued"]) == (42, "cpu", None)
    assert record["tested"]["path"].startswith(str(begun / "checkpoints" / "best-"))
    assert record["training"]["images_per_s"] == pytest.approx(96 / record["training"]["seconds"], rel=0.01)
    assert 0 < record["training"]["seconds"] < record["wall_seconds"]
    best = read_checkpoint(record["tested"]["path"])
    epochs = int(Path(record["tested"]["path"]).stem.removeprefix("best-")) + 1
    assert best["provenance"]["training"]["epochs"] == record["tested"]["epochs"] == epochs
    assert best["provenance"]["training"]["steps"] == record["tested"]["step"] == best["global_step"]
    assert best["provenance"]["code"] == record["code"]
