"""RDE through the whole path: the division in records and pictures, continued within an epoch, other backbones."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import trainer
from lightning_models import LitTBPS
from model.consensus import Consensus, Division
from tests.same_run import differences
from utils.checkpoints.weights import read_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
SMALL = (
    "experiment=rde",
    "dataset.noise_rate=0.4",
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "shown_queries=0",
    "evaluation.page=false",
    "logger=csv",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
)


def config(small_root: Path, out: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        width = () if "head=global" in overrides else ("head.width=16",)
        return compose(
            "demo", overrides=[*SMALL, *width, f"dataset_root_dir={small_root}", f"run_dir={out}", *overrides]
        )


def last(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def trained(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs, saved every two steps."""
    out = tmp_path_factory.mktemp("run")
    trainer.train(config(small_root, out, "callbacks.last.every_n_steps=2", "shown_queries=1"))
    return out


def test_the_division_is_logged_drawn_and_kept(trained: Path) -> None:
    with (trained / "logs" / "steps.csv").open() as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    divisions = [row for row in rows if "pseudo_label/kept" in row]
    assert [int(row["step"]) for row in divisions] == [0, 6]
    for row in divisions:
        assert 0 < float(row["pseudo_label/kept"]) <= 1
        assert 0 <= float(row["pseudo_label/auc"]) <= 1
        assert 0 <= float(row["pseudo_label/disputed"]) <= 1
        assert 0 < float(row["pseudo_label/kept_clean"]) <= 1
    state = last(trained)
    weights = state["labeler.pair_weights"]
    assert weights.shape == (48,)
    assert weights.mean().item() == pytest.approx(float(divisions[-1]["pseudo_label/kept"]))
    assert (trained / "pair_losses.png").stat().st_size > 0
    assert "noise" in json.dumps(json.loads((trained / "metrics.json").read_text())["run"])


def test_only_the_kept_pairs_are_trained(trained: Path, small_root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def nothing(self: Consensus, pairs: Any, *args: Any) -> Division:
        count = len(pairs.texts)
        return Division(torch.zeros(count), torch.zeros(count), torch.zeros(count, dtype=torch.bool))

    monkeypatch.setattr(Consensus, "find", nothing)
    trainer.train(config(small_root, tmp_path, "trainer.max_epochs=1", "trainer.limit_train_batches=2"))
    with (tmp_path / "logs" / "steps.csv").open() as file:
        losses = [row["train/loss/tal"] for row in csv.DictReader(file) if row.get("train/loss/tal")]
    assert losses == ["0.0", "0.0"]


class Died(Exception):  # noqa: N818
    """What stops a training in place of a power cut."""


@pytest.mark.parametrize("dies_at", [3, 9])
def test_continued_within_an_epoch_it_is_bit_identical(
    dies_at: int, trained: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LitTBPS.training_step

    def dying(self: LitTBPS, *args: Any) -> torch.Tensor:
        if self.global_step == dies_at:
            raise Died
        return step(self, *args)

    overrides = ("callbacks.last.every_n_steps=2", "shown_queries=1")
    with monkeypatch.context() as patch:
        patch.setattr(LitTBPS, "training_step", dying)
        with pytest.raises(Died):
            trainer.train(config(small_root, tmp_path, *overrides))
    trainer.train(config(small_root, tmp_path, *overrides, f"ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"))
    assert differences(trained, tmp_path) == []


def test_a_test_of_its_checkpoint_has_the_same_figures(trained: Path, small_root: Path, tmp_path: Path) -> None:
    best = next((trained / "checkpoints").glob("best-*"))
    figures = trainer.test(config(small_root, tmp_path, "task=test", f"ckpt_path={best}"))
    saved = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert figures["test/t2i/mAP"] == pytest.approx(saved["t2i"]["mAP"], abs=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("backbone=tiny_siglip", "lora=default"), id="siglip-lora"),
        pytest.param(("trainer.precision=bf16-mixed", "backbone.gradient_checkpointing=true"), id="amp-recomputed"),
        pytest.param(("loss=sdm", "loss.terms.sdm.weighted=true", "head=global"), id="sdm-weighted"),
    ],
)
def test_other_compositions_train(overrides: tuple[str, ...], small_root: Path, tmp_path: Path) -> None:
    metrics = trainer.train(config(small_root, tmp_path, "trainer.max_epochs=1", *overrides))
    assert metrics["test/t2i/mAP"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in last(tmp_path).values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("backbone=tiny_resnet_bert",), r"^head=token_selection selects tokens by attention, but ResNetModel"),
        (("grad_cache.micro_batch=4",), r"^head=token_selection normalises over the whole batch"),
        (("pseudo_label=none",), r"^loss\.terms\.tal needs 'pair_weights', which this run lacks: set pseudo_label=con"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    overrides: tuple[str, ...], message: str, small_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trainer.train(config(small_root, tmp_path, *overrides))
