"""Noise in the training captions: it stands in all that a run reports, and a continued run has the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer
from lightning_data import TBPSDataModule, build_data
from tests.small_run import ANY_METHOD, SMALL, command
from utils.checkpoints.weights import read_checkpoint
from utils.errors import UserError

TOLD = "trained with captions moved as in noise.npy"
COUNTS = "48 of 48 training captions moved, {} of them to another identity"


def train(root: Path, out: Path, *overrides: str) -> dict[str, float]:
    options = (*ANY_METHOD, "loss=itc", "logger=csv", "trainer.max_epochs=1", f"dataset_root_dir={root}")
    with command(*options, f"run_dir={out}", *overrides) as cfg:
        return trainer.TASKS[cfg.task](cfg)


def data_of(root: Path, *overrides: str) -> TBPSDataModule:
    with command(*SMALL, f"dataset_root_dir={root}", *overrides) as cfg:
        cfg.backbone.folder = str(root / "tiny_siglip_checkpoints")
        return build_data(cfg)


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_the_noise_is_in_every_record_and_part_of_the_run(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "noise.npy", tmp_path / "run"
    np.save(file, np.roll(np.arange(48), 3))  # a person has four pairs in a row
    order = np.roll(np.arange(48), 3)
    wrong = int((order // 4 != np.arange(48) // 4).sum())
    counts = COUNTS.format(wrong)
    train(small_root, run, f"dataset.noise_file={file}", "callbacks.last.every_n_steps=2")
    lines = capsys.readouterr().out.splitlines()
    assert f"noise   {TOLD} ({counts})" in lines
    assert f"drawn-en, test split; {TOLD}" in lines
    record = metrics(run)
    assert record["run"]["noise"] == TOLD
    assert TOLD in (run / "report.html").read_text(encoding="utf-8")
    last = run / "checkpoints" / "last.ckpt"
    noise = record["provenance"]["data"]["noise"]
    assert noise == read_checkpoint(last)["provenance"]["data"]["noise"]
    assert [noise[key] for key in ("pairs", "moved", "wrong")] == [48, 48, wrong]

    with pytest.raises(UserError, match=r"dataset.noise_rate=0.2: .* was trained with 0.0, and only that"):
        train(small_root, run, f"ckpt_path={last}", "trainer.max_epochs=2", "dataset.noise_rate=0.2")
    np.save(file, np.roll(np.arange(48), 4))
    with pytest.raises(UserError, match=r"noise.npy moves other captions than when .* was trained: restore"):
        train(small_root, run, f"ckpt_path={last}", "trainer.max_epochs=2")

    file.unlink()
    capsys.readouterr()
    train(small_root, tmp_path / "test", "task=test", f"ckpt_path={last}", "dataset.noise_rate=0.9")
    lines = capsys.readouterr().out.splitlines()
    assert f"noise   {TOLD}" in lines, "that of the checkpoint, whose file the test does not need"
    assert metrics(tmp_path / "test")["run"]["noise"] == TOLD


def test_only_captions_of_training_pairs_move_and_the_truth_is_known(small_root: Path) -> None:
    clean, noisy = data_of(small_root), data_of(small_root, "dataset.noise_rate=0.5")
    assert clean.true_pairs is None
    assert noisy.true_pairs is not None
    assert (noisy.true_pairs.dtype, noisy.true_pairs.shape) == (torch.bool, (48,))
    assert (noisy.dataset.val, noisy.dataset.test) == (clean.dataset.val, clean.dataset.test)
    before, after = clean.dataset.captions("train"), noisy.dataset.captions("train")
    unmoved = torch.tensor([old == new for old, new in zip(before, after, strict=True)])
    assert 24 <= int(unmoved.sum()) < 30
    assert noisy.true_pairs[unmoved].all()
    assert not noisy.true_pairs.all()
    assert "noise" not in clean.provenance
    assert noisy.provenance["noise"]["wrong"] == 48 - int(noisy.true_pairs.sum())


def test_noise_goes_with_a_share_of_the_data_and_without_identities(small_root: Path) -> None:
    part = data_of(small_root, "dataset.proportion=0.5", "dataset.noise_rate=0.5", "dataset.val_protocol=held_out")
    assert part.true_pairs is not None
    assert len(part.true_pairs) == 24
    blind = data_of(small_root, "dataset.noise_rate=0.5", "pseudo_label=dbscan", "dataset.sampler=random")
    whole = data_of(small_root, "dataset.noise_rate=0.5")
    assert torch.equal(blind.true_pairs, whole.true_pairs)  # type: ignore[arg-type]
