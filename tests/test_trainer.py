"""The whole path on a small drawn dataset: train, resume, test, refuse."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file

import trainer
from data.synthetic import SyntheticSpec, generate
from prepare_checkpoints import prepare
from utils.checkpoints import read_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
SMALL = (
    "img_size_str=64x32",
    "dataset.batch_size=8",
    "dataset.num_instance=2",
    "dataset.num_workers=0",
    "scheduler.warmup_epochs=0.5",
    "loss.terms.simclr.hidden_dim=16",
    "shown_queries=2",
    "logger=csv",
    "trainer.log_every_n_steps=2",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 + 4 + 6 persons, two pictures of each."""
    folder = tmp_path_factory.mktemp("root")
    spec = SyntheticSpec(train=12, val=4, test=6, images_per_identity=2, height=64, width=32)
    generate(folder, spec, workers=1)
    for name in ("tiny_siglip", "tiny_clip"):
        prepare(name, folder, steps=1)
    return folder


def config(root: Path, out: Path, *overrides: str, name: str = "demo") -> DictConfig:
    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        return compose(name, overrides=[*SMALL, f"dataset_root_dir={root}", f"run_dir={out}", *overrides])


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of two epochs with the default strategy: its folder and what `train` returned."""
    out = tmp_path_factory.mktemp("run")
    return out, trainer.train(config(root, out, "trainer.max_epochs=2"))


def test_train_returns_and_saves_both_splits(trained: tuple[Path, dict[str, float]]) -> None:
    out, metrics = trained
    names = {
        f"{s}/{d}/{m}" for s in ("val", "test") for d in ("t2i", "i2t") for m in ("R1", "R5", "R10", "mAP", "mINP")
    }
    assert set(metrics) == names
    assert all(0 <= value <= 100 for value in metrics.values())
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["metrics"]["t2i"]["R1"] == metrics["test/t2i/R1"]
    assert saved["run"]["strategy"] == "hybrid_circle"
    assert saved["run"]["val_protocol"] == "held_out"
    assert {file.name for file in out.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "ranked.jpg",
        "checkpoints",
        "logs",
    }
    names = {file.name for file in (out / "checkpoints").iterdir()}
    assert "last.ckpt" in names
    assert any(name.startswith("best-") for name in names)


def test_every_term_is_logged_raw_and_weighted(trained: tuple[Path, dict[str, float]]) -> None:
    with (trained[0] / "logs" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {key for row in rows for key, value in row.items() if value}
    for term in ("nitc", "cross_modal_circle", "citc", "simclr"):
        assert {f"train/loss/{term}", f"train/weighted/{term}"} <= logged
    assert {"train/grad_norm", "train/logit_scale", "train/logit_bias", "lr/backbone", "lr/simclr"} <= logged
    assert {"val/t2i/R1", "val/i2t/mINP", "throughput/images_per_s", "memory/peak_gib"} <= logged
    row = next(row for row in rows if row["train/loss/simclr"])
    assert float(row["train/weighted/simclr"]) == pytest.approx(0.4 * float(row["train/loss/simclr"]), rel=1e-4)


def test_a_checkpoint_is_tested_on_another_dataset_by_its_own_config(
    trained: tuple[Path, dict[str, float]], root: Path, tmp_path: Path
) -> None:
    out, metrics = trained
    best = next((out / "checkpoints").glob("best-*"))
    common = ("task=test", f"ckpt_path={best}")
    again = trainer.test(config(root, tmp_path / "same", *common, "seed=7", "loss=baseline"))
    assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert json.loads((tmp_path / "same" / "metrics.json").read_text())["run"]["strategy"] == "hybrid_circle"
    vietnamese = trainer.test(config(root, tmp_path / "vi", *common, "dataset.language=vi"))
    assert set(vietnamese) == set(again)


def test_the_checkpoint_holds_the_config_and_loads_without_code(
    trained: tuple[Path, dict[str, float]],
) -> None:
    checkpoint = read_checkpoint(trained[0] / "checkpoints" / "last.ckpt")
    assert checkpoint["config"]["loss"]["name"] == "hybrid_circle"
    assert checkpoint["config"]["img_size"] == [64, 32]
    assert any(name.startswith("objective.terms.simclr.") for name in checkpoint["state_dict"])


@pytest.mark.parametrize("strategy", ["baseline", "in_modal_circle", "nc_itc", "pure_circle", "tbps_clip"])
def test_every_strategy_trains_on_the_same_path(strategy: str, root: Path, tmp_path: Path) -> None:
    metrics = trainer.train(config(root, tmp_path, f"loss={strategy}", "trainer.max_epochs=1"))
    assert metrics["test/t2i/mAP"] > 0


def test_lora_saves_what_it_trains_and_reloads(root: Path, tmp_path: Path) -> None:
    overrides = (
        "lora=default",
        "backbone=tiny_clip",
        "trainer.max_epochs=1",
        "backbone.gradient_checkpointing=true",
    )
    metrics = trainer.train(config(root, tmp_path / "run", *overrides))
    best = next((tmp_path / "run" / "checkpoints").glob("best-*"))
    saved = read_checkpoint(best)["state_dict"]
    assert all("lora_" in name or "logit_scale" in name for name in saved if name.startswith("encoder."))
    again = trainer.test(config(root, tmp_path / "test", "task=test", f"ckpt_path={best}"))
    assert again["test/t2i/mAP"] == metrics["test/t2i/mAP"]
    adapters = load_file(tmp_path / "run" / "adapters" / "adapter_model.safetensors")
    trained = {name: tensor for name, tensor in saved.items() if "lora_" in name}
    assert len(adapters) == len(trained) > 0
    for name, tensor in adapters.items():
        own = name.replace(".weight", ".default.weight")
        assert torch.equal(tensor, next(value for key, value in trained.items() if key.endswith(own)))


def test_a_run_without_validation_says_that_it_has_no_best_checkpoint(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no epoch was validated"):
        trainer.train(config(root, tmp_path / "run", "trainer.max_epochs=1", "trainer.limit_val_batches=0"))


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]


def command(root: Path, out: Path, *overrides: str) -> list[str]:
    arguments = [*SMALL, f"dataset_root_dir={root}", f"output_dir={out}", "trainer.max_epochs=3", *overrides]
    return [sys.executable, str(ROOT / "trainer.py"), *arguments]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_of_an_epoch_and_continued_is_bit_identical(
    root: Path, tmp_path: Path, workers: int
) -> None:
    overrides = (
        f"dataset.num_workers={workers}",
        "callbacks.last.every_n_steps=2",
        "trainer.accumulate_grad_batches=2",
        "trainer.enable_model_summary=false",
        "lora=default",  # its dropout draws from the random state of the step
    )
    straight = tmp_path / "straight"
    trainer.train(config(root, straight, "trainer.max_epochs=3", *overrides))

    process = subprocess.Popen(command(root, tmp_path / "killed", *overrides), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (found := list((tmp_path / "killed").rglob("last.ckpt"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert found, "no checkpoint before the deadline"
    loops: Any = read_checkpoint(found[0])["loops"]["fit_loop"]
    done = loops["epoch_loop.batch_progress"]["current"]["completed"]
    subprocess.run(command(root, tmp_path / "killed", *overrides, "ckpt_path=last"), check=True, capture_output=True)

    runs = list((tmp_path / "killed").glob("*/*"))
    assert len(runs) == 1, "the continued run has to stay in its folder"
    expected, continued = last_weights(straight), last_weights(runs[0])
    assert expected.keys() == continued.keys()
    assert all(torch.equal(expected[name], continued[name]) for name in expected)
    assert done > 0


def test_cached_gradients_train_to_the_weights_of_the_plain_step(root: Path, tmp_path: Path) -> None:
    overrides = (
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=2",
        "optimizer.param_groups.default.eps=1e-3",  # Adam would make steps of gradients that are rounding alone
    )
    for micro_batch in ("null", "3"):
        trainer.train(config(root, tmp_path / micro_batch, *overrides, f"grad_cache.micro_batch={micro_batch}"))
    expected, found = last_weights(tmp_path / "null"), last_weights(tmp_path / "3")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    assert any(not torch.equal(found[name], expected[name]) for name in expected), "the same path was taken twice"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("grad_cache.micro_batch=0",), r"grad_cache\.micro_batch: 0 given, expected at least 1"),
        (("grad_cache.micro_batch=4", "+loss/term@loss.terms.words=mlm"), r"loss\.terms\.words reads tokens"),
    ],
)
def test_a_micro_batch_that_cannot_be_is_refused(
    overrides: tuple[str, ...], message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trainer.train(config(root, tmp_path, *overrides))


def test_a_missing_checkpoint_folder_names_the_command(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip_checkpoints does not exist; run 'uv run prepare_checkpoints.py clip'"):
        trainer.train(config(root, tmp_path, "backbone=clip", "img_size_str=32x16"))


def test_a_checkpoint_of_another_architecture_is_refused(
    trained: tuple[Path, dict[str, float]], root: Path, tmp_path: Path
) -> None:
    last = trained[0] / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"is of another architecture: .* backbone 'tiny_siglip', not 'tiny_clip'"):
        trainer.train(config(root, tmp_path, f"ckpt_path={last}", "backbone=tiny_clip"))
    with pytest.raises(UserError, match=r"is of another architecture: it (lacks|has in addition|has in another shape)"):
        trainer.train(config(root, tmp_path, f"ckpt_path={last}", "img_size_str=32x32"))


def test_a_loss_that_becomes_nan_stops_with_term_and_step(root: Path, tmp_path: Path) -> None:
    overrides = ("optimizer.param_groups.default.lr=1e12", "trainer.max_epochs=2")
    with pytest.raises(UserError, match=r"loss term '\w+' became (nan|-?inf) at step \d+: lower"):
        trainer.train(config(root, tmp_path, *overrides))
