"""Loggers keep what earlier starts of a run wrote, and W&B starts quietly in the mode that fits."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.wandb_files import of_kind, records
from utils.errors import UserError
from utils.report.loggers import AppendingCSVLogger, build_loggers, log_comparison, log_page, log_picture
from utils.report.plots.pictures import RankedImage, RankedQuery

CONFIG_DIR = Path(__file__).parents[3] / "config" / "logger"
RUN = {"strategy": "baseline", "dataset": "drawn", "backbone": "tiny", "lora": "full", "seed": 3, "variant": ""}
CONFIG = {"task": "train", "loss": {"terms": {"nitc": {"weight": 1.0}}}, "seed": 3}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_SERVICE", "WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


def options(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def build(name: str, run_dir: Path, *overrides: str) -> list[Any]:
    return list(build_loggers(options(name, *overrides), run_dir, RUN, CONFIG))


def steps(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "logs" / "steps.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def ranked(tmp_path: Path) -> list[RankedQuery]:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 40), "blue").save(photo)
    images = tuple(RankedImage(photo, 0.5, hit) for hit in (True, False, True))
    return [RankedQuery("áo đỏ", images, 2), RankedQuery("a coat", images[:2], 5)]


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_choice_builds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    expected = {
        "default": [AppendingCSVLogger],
        "csv": [AppendingCSVLogger],
        "tensorboard": [TensorBoardLogger],
    }
    assert options(path.stem).name == path.stem
    assert [type(logger) for logger in build(path.stem, tmp_path)] == expected.get(path.stem, [])


def test_csv_keeps_the_rows_of_earlier_starts(tmp_path: Path) -> None:
    [first] = build("csv", tmp_path)
    first.log_metrics({"train/loss": 2.0}, step=9)
    first.log_metrics({"train/loss": 1.5}, step=19)
    [second] = build("csv", tmp_path)
    second.log_metrics({"train/loss": 1.4}, step=19)
    second.log_metrics({"val/t2i/R1": 50.0}, step=29)
    second.finalize("success")
    [third] = build("csv", tmp_path)
    third.log_metrics({"train/loss": 1.0, "val/t2i/R1": 60.0}, step=39)
    assert [(row["step"], row["train/loss"], row["val/t2i/R1"]) for row in steps(tmp_path)] == [
        ("9", "2.0", ""),
        ("19", "1.5", ""),
        ("19", "1.4", ""),
        ("29", "", "50.0"),
        ("39", "1.0", "60.0"),
    ]


def test_tensorboard_continues_and_shows_the_picture(tmp_path: Path, ranked: list[RankedQuery]) -> None:
    for step in (1, 2):
        [logger] = build("tensorboard", tmp_path)
        logger.log_metrics({"train/loss": 0.5 * step}, step=step)
        log_picture([logger], Image.new("RGB", (8, 9)), key="test/t2i/ranked", step=step, queries=ranked)
        log_picture([logger], Image.new("RGB", (6, 4)), key="test/similarities", step=step)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]
    assert [event.step for event in events.Images("test/t2i/ranked")] == [1, 2]
    shown = events.Images("test/similarities")
    assert [(event.step, event.width, event.height) for event in shown] == [(1, 6, 4), (2, 6, 4)]


def test_wandb_run(
    tmp_path: Path, ranked: list[RankedQuery], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("wandb.project=persons", "wandb.entity=us", "wandb.notes='a try'", "wandb.tags=[thesis]")
    [logger] = build("wandb", tmp_path, *chosen)
    output = capfd.readouterr()
    assert output.out.splitlines() == [
        "W&B: nobody is logged in, so this run is recorded offline; `wandb sync` uploads it later"
    ]
    assert output.err == ""
    assert isinstance(logger, WandbLogger)
    run = logger.experiment
    assert (run.settings.mode, run.project, run.entity, run.notes) == ("offline", "persons", "us", "a try")
    assert (run.name, run.group) == ("baseline-drawn-tiny-full-s3", "baseline-drawn-tiny-full")
    assert run.job_type == "train"
    assert set(run.tags) == {"thesis", *(f"{fact}:{value}" for fact, value in RUN.items() if fact != "variant")}
    assert run.config["run"] == RUN
    assert run.config["loss"]["terms"]["nitc"]["weight"] == 1.0

    for step, percent in ((1, 10.0), (2, 30.0), (3, 20.0)):
        logger.log_metrics({"val/t2i/R1": percent, "val/i2t/mINP": -percent, "train/loss": percent}, step=step)
    monkeypatch.delenv("WANDB_DATA_DIR")
    log_picture([logger], Image.new("RGB", (8, 9)), key="test/t2i/ranked", step=3, queries=ranked)
    assert "WANDB_DATA_DIR" not in os.environ
    staged = (tmp_path / "wandb" / "artifacts" / "staging").iterdir()
    assert sum(path.read_bytes().startswith(b"\x89PNG") for path in staged) == 5
    assert dict(run.summary["val/t2i/R1"]) == {"max": 30, "last": 20}
    assert dict(run.summary["val/i2t/mINP"]) == {"max": -10, "last": -20}
    assert (run.summary["train/loss"], run.summary["trainer/global_step"]) == (20, 3)
    table = run.summary["test/t2i/ranked"]
    assert (table["nrows"], table["ncols"]) == (2, 6)
    log_picture([logger], Image.new("RGB", (6, 4)), key="test/similarities", step=3)
    shown = run.summary["test/similarities"]
    assert (shown["count"], shown["width"], shown["height"]) == (1, 6, 4)
    [file] = (tmp_path / "wandb").glob("offline-run-*/files/media/images/test/similarities*.png")
    assert Image.open(file).size == (6, 4)
    page = tmp_path / "report.html"
    page.write_text("<p>áo</p>", encoding="utf-8")
    log_page([logger], page, key="test/report", step=3)
    [file] = (tmp_path / "wandb").glob("offline-run-*/files/media/html/test/report*.html")
    assert "<p>áo</p>" in file.read_text(encoding="utf-8")

    [again] = build("wandb", tmp_path)
    assert again.version == run.id
    assert again.experiment is not run
    assert wandb.run is again.experiment
    assert "wandb.login()" not in capfd.readouterr().err  # asked while another run was open, it says no
    [other] = build("wandb", tmp_path / "another", "wandb.group=ablation")
    assert other.version != run.id
    assert other.experiment.group == "ablation"


def test_a_comparison_is_a_run_of_its_own(tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    page.write_text("<p>table</p>", encoding="utf-8")
    rows = [{"strategy": "sdm", "R1": "2"}, {"strategy": "itc", "R1": "1"}]
    log_comparison({"wandb": {**options("csv").wandb}}, tmp_path, rows, page)
    assert not (tmp_path / "wandb").exists()
    log_comparison({"wandb": {**options("wandb").wandb}}, tmp_path, rows, page)
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    [run] = of_kind("run", records(file))
    assert (run.display_name, run.job_type) == (f"comparison {tmp_path.name}", "comparison")
    [table] = tmp_path.glob("wandb/offline-run-*/files/media/table/comparison*.json")
    assert json.loads(table.read_text())["data"] == [["sdm", "2"], ["itc", "1"]]
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/html/comparison/page*.html"))


def test_another_logger_of_lightning_is_a_target(tmp_path: Path) -> None:
    target = f"{{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {tmp_path}, name: plain}}"
    csv_logger, other = build("csv", tmp_path, f"+others.plain={target}")
    assert isinstance(csv_logger, AppendingCSVLogger)
    assert (type(other), other.name) == (CSVLogger, "plain")


def test_runs_of_a_group_differ_by_seed_alone(tmp_path: Path) -> None:
    seen = set()
    for variant in ("", "optimizer=tiny loss.terms.nitc.weight=0.5", *("x" * 200 + end for end in "ab")):
        for seed in (1, 2):
            facts = RUN | {"variant": variant, "seed": seed}
            [logger] = build_loggers(options("wandb"), tmp_path / f"{variant[-1:]}{seed}", facts, CONFIG)
            assert isinstance(logger, WandbLogger)
            run = logger.experiment
            assert max(len(run.name), len(run.group)) <= 128
            assert f"-s{seed}" in run.name
            seen.add((variant, run.group))
    assert len(seen) == len({group for _, group in seen}) == 4
    assert ("", "baseline-drawn-tiny-full") in seen


@pytest.mark.parametrize("token", ["3-1-unix-/nowhere/socket", "of another version"])
def test_the_service_of_the_calling_process_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("WANDB_SERVICE", token)
    [logger] = build("wandb", tmp_path, "wandb.mode=offline")
    assert logger.experiment.settings.mode == "offline"
    assert os.environ["WANDB_SERVICE"] != token


def test_an_empty_run_id_of_a_killed_start_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "wandb_run_id").write_text("")
    [logger] = build("wandb", tmp_path)
    assert logger.version == (tmp_path / "wandb_run_id").read_text(encoding="utf-8") != ""


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("")
    with pytest.raises(UserError, match=r"W&B did not start \(.*\): see that \S+ can be written"):
        build("wandb", tmp_path)


@pytest.mark.parametrize(
    ("configured", "environment", "message"),
    [
        ("ofline", None, r"logger.wandb.mode=ofline: no such mode. Did you mean 'offline'\?"),
        ("auto", "of", "WANDB_MODE=of: no such mode"),
        ("auto", "", "WANDB_MODE=: no such mode. Choose online, offline, disabled"),
        ("online", None, "W&B mode is online, but nobody is logged in"),
        ("offline", "online", "W&B mode is online, but nobody is logged in"),
    ],
)
def test_a_mode_that_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str, environment: str | None, message: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    with pytest.raises(UserError, match=message):
        build("wandb", tmp_path, f"wandb.mode={configured}")


def test_a_malformed_key_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    with pytest.raises(UserError, match="W&B credentials: WANDB_API_KEY invalid"):
        build("wandb", tmp_path)


def test_wandb_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def refuse(**arguments: Any) -> None:
        asked.update(arguments)
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="W&B did not start"):
        build("wandb", tmp_path)
    assert (asked["mode"], asked["resume"]) == ("online", "allow")
    assert asked["id"] == (tmp_path / "wandb_run_id").read_text(encoding="utf-8")


def test_only_rank_zero_starts_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("rank 1 started a run"))
    [logger] = build("wandb", tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    assert list(tmp_path.iterdir()) == []
